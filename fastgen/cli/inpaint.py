"""`fastgen inpaint RUN IMAGE MASK [OPTIONS]`"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from fastgen.cli.drawing import ImageOptions, fitted, open_run, save_results, say, watched
from fastgen.errors import expect
from fastgen_kernels.messages import shown

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class InpaintOptions(ImageOptions):
    """Fill a hole in an image; the pixels around it stay as they are."""

    mask: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MASK")]
    """An image of the same size, whose white pixels, or what is painted on its transparent layer, are the hole; see --hole."""
    hole: Literal["auto", "painted", "transparent", "white", "black"] = "auto"
    """What marks the hole in the mask: what is painted on a layer that else is transparent, what is transparent, white or black.
    auto: painted where the mask has transparent pixels, else white."""
    resample: int = 1
    """How often each stretch of steps is made, going back to noise between: more fits better, and takes longer."""
    jump: int = 1
    """Steps of a stretch."""


def main(arguments: list[str]) -> None:
    """Fills a hole in an image and writes the results. arguments: those after `fastgen inpaint`. Raises ValueError for an
    image, a mask or an output that cannot be read or written, and as `inpaint` does."""
    options = tyro.cli(InpaintOptions, args=arguments, prog="fastgen inpaint")
    from fastgen.applications.inpaint import inpaint
    from fastgen.files.images import read_any_size

    run, out, shared = open_run(options, "inpainted.png")
    picture = read_any_size("image", options.image, run.shape[0])
    hole = _read_hole(options, picture, run.shape).repeat(options.n, 1, 1, 1)
    image = fitted(options, "image", options.image, picture, run.shape).repeat(options.n, 1, 1, 1)
    with watched(options, out, options.n * options.settings.steps * options.resample) as callback:
        images = inpaint(run, image, hole, resample=options.resample, jump=options.jump, callback=callback, **shared)
    save_results(out, images)


def _read_hole(options: InpaintOptions, picture: "Tensor", shape: tuple[int, ...]) -> "Tensor":
    """The hole, bool (1, H, W), fitted as `picture` will be; says where it is."""
    from fastgen.files.fitting import fit_hole, read_hole

    name = shown(str(options.mask))
    drawn, marked = read_hole("mask", options.mask, options.hole)
    (height, width), (h, w) = picture.shape[1:], drawn.shape[1:]
    alike = abs(w * height - h * width) <= height  # but for a pixel, as programs round
    expect("mask", f"{w}x{h}", alike, f"the image's size of {width}x{height} pixels, or its proportions, in {name}")
    hole = fit_hole(drawn, shape[1:], options.fit)
    expect("mask", str(options.mask), hole.any(), f"a hole in what --fit {options.fit} leaves of the image")
    say(f"mask: what is {marked} in {name} is the hole, {hole.float().mean():.0%} of the image")
    return hole
