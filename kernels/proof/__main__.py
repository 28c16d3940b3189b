"""`python kernels/proof COMMAND …`, from anywhere: what proves the kernels without a GPU."""

import runpy
import sys
from pathlib import Path

COMMANDS = {
    "traffic": "bytes that each op moves, beside its floor and PyTorch eager",
    "aot": "every kernel compiled ahead of time: registers, spills, widths of accesses",
    "host": "what a call costs its host, in Python and dispatch, beside PyTorch eager",
    "mutate": "does a test fail for each change of a kernel",
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        lines = [f"  {name:9}{text}" for name, text in COMMANDS.items()]
        print("\n".join(["usage: python kernels/proof COMMAND ...", "", *lines]))
        sys.exit(0 if sys.argv[1:] in ([], ["-h"], ["--help"]) else 2)
    folder = Path(__file__).resolve().parent
    sys.path[0] = str(folder.parent)  # in place of this folder, whose modules are the package's
    command = sys.argv.pop(1)
    runpy.run_module(f"proof.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
