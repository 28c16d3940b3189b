"""`fastgen inpaint RUN IMAGE MASK [OPTIONS]`"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastgen.cli.drawing import ImageOptions, open_run, save_results, watched


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(ImageOptions):
    """Fill a hole in an image; the pixels around it stay as they are."""

    mask: tyro.conf.Positional[Path]
    """An image of the same size, white where the hole is."""
    resample: int = 1
    """How often each stretch of steps is made, going back to noise between: more fits better, and takes longer."""
    jump: int = 1
    """Steps of a stretch."""


def main(arguments: list[str]) -> None:
    """Fills a hole in an image and writes the results. arguments: those after `fastgen inpaint`. Raises ValueError for an
    image, a mask or an output that does not fit, and as `inpaint` does."""
    options = tyro.cli(InpaintOptions, args=arguments, prog="fastgen inpaint")
    from fastgen.applications.inpaint import inpaint
    from fastgen.files.images import read_image

    run, out, shared = open_run(options, "inpainted.png")
    image = read_image("image", options.image, run.shape).repeat(options.n, 1, 1, 1)
    hole = read_image("mask", options.mask, (1, *run.shape[1:])).repeat(options.n, 1, 1, 1) >= 128
    with watched(options, out, options.n * options.settings.steps * options.resample) as callback:
        images = inpaint(run, image, hole, resample=options.resample, jump=options.jump, callback=callback, **shared)
    save_results(out, images)
