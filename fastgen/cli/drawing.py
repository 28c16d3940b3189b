"""What the commands that draw share: options, opening the run, progress and previews, writing the results."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import tyro

from fastgen.config.sampling import Sampling
from fastgen.errors import expect
from fastgen_kernels.messages import shown

if TYPE_CHECKING:
    from torch import Tensor

    from fastgen.runs.run import Run


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """Options of every command that draws. Raises ValueError for a preview_every below 1."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a training run."""
    label: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CLASS [CLASS ...]")] = ()
    """Classes by name or number, one for all or several in turn."""
    settings: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    guide: Path | None = None
    """A weaker run for autoguidance, in place of the unconditional model."""
    out: Path | None = None
    """Of images a .png, a .npz for arrays, or a folder for a PNG each; of values a .csv (tables alone), a .npz or a .npy; a new
    one in RUN when not given."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace files that are there."""
    preview_every: int | None = None
    """Steps after which the images as they then are go to a PNG beside the output."""
    batch_size: int = 64
    """Images that are drawn at once; fewer where memory does not suffice."""
    step: int | None = None
    """The checkpoint; the last one when not given."""
    device: str = "auto"
    """auto: cuda where there is one, else mps where it computes what is needed, else cpu."""

    def __post_init__(self):
        expect("preview_every", self.preview_every, self.preview_every is None or self.preview_every >= 1, "a number >= 1")


@dataclass(frozen=True, kw_only=True)
class FittingOptions(DrawingOptions):
    """Options of the commands that read images."""

    fit: Literal["crop", "resize", "pad"] = "crop"
    """How an image of another size comes to the size that the model takes: crop its middle and scale it, resize each side by
    itself, or scale it whole and pad it with black."""


@dataclass(frozen=True, kw_only=True)
class ImageOptions(FittingOptions):
    """Options of the commands that start from an image. Raises ValueError for n below 1."""

    image: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """The image."""
    n: int = 1
    """How many results: one is a plain image, several are a grid."""

    def __post_init__(self):
        super().__post_init__()
        expect("n", self.n, self.n >= 1, "a whole number >= 1")


class Drawing(TypedDict):
    """Arguments that `Run.sample` and the applications share."""

    label: Sequence[int | str] | None
    guide: "Run | None"
    batch_size: int
    settings: Sampling


def open_run(options: DrawingOptions, name: str, *, of_values: bool = False) -> tuple["Run", Path, Drawing]:
    """The run, the path of the results (by default `name` in the run's folder), and the arguments that `Run.sample` and the
    applications share. Raises ValueError for a run of values, unless the command takes one, and for a path that cannot be
    written, or where a file is that is not to be overwritten."""
    from fastgen.applications.batches import expect_run_of_images
    from fastgen.files import images
    from fastgen.files import values as value_files
    from fastgen.runs.run import load

    run = load(options.run, step=options.step, device=options.device)
    guide = None if options.guide is None else load(options.guide, device=options.device)
    if not of_values:
        expect_run_of_images(run)
    if run.values is None:
        out = options.out or images.free_name(options.run / name)
        images.check_out(out)
    else:
        expect("preview_every", options.preview_every, options.preview_every is None, "none for tables and signals")
        out = options.out or images.free_name(options.run / value_files.default_name(run.values))
        value_files.check_out(out, run.values)
    if not options.overwrite:
        expect("out", str(out), out.suffix == "" or not out.exists(), "a name that is free, or --overwrite")
        if not of_values:  # sample adds to a folder
            taken = [path for path in out.glob("*.png") if images.number_of(path) is not None]
            expect("out", str(out), not taken, "a folder without numbered images, or --overwrite")
    label = None if not options.label else [_class(run, "label", one) for one in options.label]
    negative = None if options.settings.negative is None else _class(run, "negative", options.settings.negative)
    settings = replace(options.settings, negative=negative)
    return run, out, {"label": label, "guide": guide, "batch_size": options.batch_size, "settings": settings}


def _class(run: "Run", argument: str, given: str | int) -> str | int:
    """The number of a class, and what was given where the run has none; says which class a number names that is another's."""
    from fastgen.runs.run import class_number

    if run.num_classes is None:
        return given
    number = class_number(argument, given, run.num_classes, run.classes)
    if str(given).isdecimal() and int(given) != number:
        say(f"{argument}: {given} is the class of that name, number {number}")
    return number


def read_fitted(options: FittingOptions, argument: str, path: Path, shape: tuple[int, ...]) -> "Tensor":
    """An image file as uint8 of shape (C, H, W); what was done to one of another size is said. Raises ValueError that names the
    argument for a file that cannot be read."""
    from fastgen.files.images import read_any_size

    return fitted(options, argument, path, read_any_size(argument, path, shape[0]), shape)


def fitted(options: FittingOptions, argument: str, path: Path, image: "Tensor", shape: tuple[int, ...]) -> "Tensor":
    """The image of a file, uint8 (C, h, w), as uint8 of shape (C, H, W); what was done to one of another size is said."""
    from fastgen.files.fitting import fit_image

    result, done = fit_image(image, shape[1:], options.fit)
    if done:
        h, w = image.shape[1:]
        say(f"{argument}: {shown(str(path))} of {w}x{h} pixels is {done} (--fit {options.fit})")
    return result


def say(message: str) -> None:
    """Prints a line on what is done, beside the results, which stdout names."""
    print(message, file=sys.stderr)


@contextmanager
def watched(options: DrawingOptions, out: Path, total: int) -> Iterator[Callable[[int, "Tensor", "Tensor"], None]]:
    """The callback of a sampler that shows a progress bar over `total` steps of single images, and writes previews."""
    from fastgen.files.images import free_name, save_grid
    from fastgen.pixels import signed_to_uint8
    from fastgen.progress_bar import progress_bar

    preview, every = out.with_name(f"{out.stem}-preview.png"), options.preview_every
    if not options.overwrite:
        preview = free_name(preview)
    with progress_bar(total) as bar:

        def callback(i: int, x: "Tensor", x0_hat: "Tensor") -> None:
            bar.update(len(x))
            if every is not None and (i + 1) % every == 0:
                save_grid(preview, signed_to_uint8(x0_hat))

        yield callback
    if preview.exists():
        print(preview)


def save_results(out: Path, images: "Tensor") -> None:
    """One image in a .png as it is, else as `save_images` does."""
    from fastgen.files.images import save_image, save_images

    if len(images) == 1 and out.suffix == ".png":
        save_image(out, images[0])
    else:
        save_images(out, images, None)
    print(out)
