"""Running the command line as a user does: in a process of its own."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FRAME = re.compile("[│╭╮╰╯─]|-{3,}")  # what the command line draws around help and errors


def start(*arguments: object, cwd: Path, program: Sequence[str] = ("-m", "fastgen"), **settings: str) -> subprocess.Popen:
    """`fastgen ARGUMENTS` in `cwd`, from this checkout, or another program than fastgen."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    environment.pop("TRITON_INTERPRET", None)  # as users have it: the tests set it
    environment |= settings
    return subprocess.Popen(
        [sys.executable, *program, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: object, cwd: Path, timeout: float = 600, **settings: str) -> subprocess.CompletedProcess:
    """timeout: in seconds, after which it is killed and TimeoutExpired is raised."""
    process = start(*arguments, cwd=cwd, **settings)
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
