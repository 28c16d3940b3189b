"""What is read from the environment when a module is imported."""

import os
import subprocess
import sys
from pathlib import Path

OURS = ("TRITON_INTERPRET", "FASTGEN_KERNELS", "FASTGEN_AUTOTUNE")
KERNELS = Path(__file__).parents[2] / "kernels"
PROGRAM = """
import os, sys
import torch  # once, for it takes seconds

for environment in {environments!r}:
    sys.stdout.flush()
    if os.fork() == 0:
        os.environ |= environment
        try:
            exec({code!r})
        except Exception as error:
            print(f"{{type(error).__name__}}: {{error}}")
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def printed_under(environments: list[dict[str, str]], code: str) -> list[str]:
    """The line that code prints, or its error, in a process of its own for each environment: without our variables, but for those
    that it has. The code imports what reads them."""
    clean = {name: value for name, value in os.environ.items() if name not in OURS}
    program = PROGRAM.format(environments=environments, code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean, cwd=KERNELS, check=True)
    return done.stdout.splitlines()
