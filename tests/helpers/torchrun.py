"""Starting processes under torchrun as a user does."""

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.command import ROOT


def start(*arguments: object, cwd: Path, **settings: str) -> subprocess.Popen:
    """`torchrun --standalone --nproc-per-node 2 ARGUMENTS` in `cwd`, on this checkout. It chooses a free port."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | settings
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments: object, cwd: Path, **settings: str) -> subprocess.CompletedProcess:
    process = start(*arguments, cwd=cwd, **settings)
    try:
        out, err = process.communicate(timeout=600)
    except BaseException:
        process.terminate()  # it ends the ranks too
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
