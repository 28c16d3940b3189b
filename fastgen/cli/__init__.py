"""The command line: `fastgen COMMAND …`. Only the command that is run is imported, so that help comes at once."""

import importlib
import os
import sys

from fastgen import __version__
from fastgen.errors import did_you_mean

COMMANDS = {
    "train": "train a preset: fastgen train mnist",
    "sample": "draw images from a run: fastgen sample runs/mnist --label 7",
    "inpaint": "fill a hole in an image: fastgen inpaint runs/mnist image.png mask.png",
    "edit": "change an image: fastgen edit runs/mnist image.png --strength 0.6",
    "upscale": "enlarge an image: fastgen upscale runs/mnist-upscale small.png",
    "interpolate": "go from one image to another: fastgen interpolate runs/mnist a.png b.png",
    "export": "write the UNet of a run with --init-from as diffusers loads it",
    "info": "versions, devices, and which path each op takes",
}


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and exits: with 2 and one line on what was expected for bad input, with 128 + n when signal n stopped it."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
    elif arguments[0] == "--version":
        print(f"fastgen {__version__}")
    elif arguments[0] not in COMMANDS:
        _fail(f"command: expected one of {', '.join(COMMANDS)}, got {arguments[0]!r}{did_you_mean(arguments[0], COMMANDS)}")
    else:
        _run(arguments[0], arguments[1:])


def _run(command: str, arguments: list[str]) -> None:
    try:
        importlib.import_module(f"fastgen.cli.{command}").main(arguments)
    except (ValueError, OSError, ModuleNotFoundError, FloatingPointError) as error:
        if os.environ.get("FASTGEN_TRACEBACK"):
            raise
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(message: str) -> None:
    print(f"fastgen: error: {message}", file=sys.stderr)
    sys.exit(2)


def _usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:{width}}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastgen COMMAND ...",
            "",
            "VAEs and diffusion models that train and sample fast.",
            "",
            *lines,
            "",
            "`fastgen COMMAND --help` has the options; FASTGEN_TRACEBACK=1 shows where an error came from.",
        ]
    )
