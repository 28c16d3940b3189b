"""`fastgen export RUN [--out FOLDER]`"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class ExportOptions:
    """Write the trained UNet of diffusers, and its scheduler, as diffusers loads them."""

    run: tyro.conf.Positional[Path]
    """The folder of a training run that began with --init-from."""
    out: Path | None = None
    """A new or empty folder; RUN/diffusers when not given."""
    step: int | None = None
    """The checkpoint; the last one when not given."""


def main(arguments: list[str]) -> None:
    """Writes a run's UNet and scheduler for diffusers. arguments: those after `fastgen export`. Raises ValueError as
    `fastgen.interchange.export.export` does."""
    options = tyro.cli(ExportOptions, args=arguments, prog="fastgen export")
    from fastgen.interchange.export import export

    out = options.out or options.run / "diffusers"
    export(options.run, out, step=options.step)
    print(f"{out}: unet, scheduler")
