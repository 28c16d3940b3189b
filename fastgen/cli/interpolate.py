"""`fastgen interpolate RUN A B [OPTIONS]`"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from fastgen.cli.drawing import FittingOptions, open_run, read_fitted, watched
from fastgen.config.sampling import Sampling


@dataclass(frozen=True, kw_only=True)
class InterpolateOptions(FittingOptions):
    """Go from one image to another through the noise that gives them, or through the codes of a VAE."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """The first image."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The last."""
    n: int = 8
    """How many images, with the first and the last."""
    settings: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=lambda: Sampling(steps=100, sampler="ddim"))


def main(arguments: list[str]) -> None:
    """Interpolates between two images and writes a grid. arguments: those after `fastgen interpolate`. Raises ValueError for
    an image or an output that does not fit, and as `interpolate` does."""
    options = tyro.cli(InterpolateOptions, args=arguments, prog="fastgen interpolate")
    from fastgen.applications.interpolate import interpolate
    from fastgen.files.images import save_images

    run, out, shared = open_run(options, "interpolated.png")
    a, b = (read_fitted(options, name, path, run.shape) for name, path in (("a", options.a), ("b", options.b)))
    with watched(options, out, options.n * options.settings.steps) as callback:
        images = interpolate(run, a, b, options.n, callback=callback, **shared)
    save_images(out, images, None, columns=options.n)
    print(out)
