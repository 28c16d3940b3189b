"""Image files: reading one; writing one, a grid, a folder of files, or arrays."""

import math
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from fastgen.atomic import write_whole
from fastgen.data.convert import from_picture
from fastgen.errors import expect

NOTE = "fastgen"  # the key of the text in a PNG that says what it was drawn from


def image_grid(images: Tensor, columns: int | None = None, border: int = 2) -> np.ndarray:
    """uint8 images (N, C, H, W) as one picture, uint8 (H', W', C), row by row on black. columns: as many as rows, about, when not
    given. border: pixels between images."""
    n, c, h, w = images.shape
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    picture = np.zeros((rows * (h + border) + border, columns * (w + border) + border, c), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).cpu().numpy()):
        top, left = border + i // columns * (h + border), border + i % columns * (w + border)
        picture[top : top + h, left : left + w] = image
    return picture


def save_grid(path: Path, images: Tensor, columns: int | None = None, smallest: int = 640) -> None:
    """Writes the grid of uint8 images (N, C, H, W) as a PNG, enlarged by a whole factor to about `smallest` pixels across or
    more."""
    picture = _pil(image_grid(images, columns))
    factor = max(1, round(smallest / max(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    write_whole(path, lambda file: picture.save(file, format="PNG"))


def save_images(
    out: str | Path,
    images: Tensor,
    labels: Tensor | None = None,
    columns: int | None = None,
    *,
    first: int = 0,
    notes: Sequence[str] | None = None,
) -> None:
    """Writes uint8 images (N, C, H, W), and their labels (N,), to `out`: a .png becomes a grid, a .npz the arrays `images`
    (N, H, W, C) and `labels`, and a name without suffix a folder of PNGs, numbered from `first` on, each with its entry of
    `notes` as the text `fastgen`. columns: of the grid, as many as rows, about, when not given. Raises ValueError where
    `check_out` does."""
    out = Path(out)
    check_out(out)
    arrays = images.permute(0, 2, 3, 1).cpu().numpy()
    if out.suffix == ".png":
        save_grid(out, images, columns)
    elif out.suffix == ".npz":
        named: dict[str, Any] = {"images": arrays} | ({} if labels is None else {"labels": labels.cpu().numpy()})
        write_whole(out, lambda file: np.savez_compressed(file, **named))
    else:
        for i, array in enumerate(arrays):
            text = PngInfo()
            if notes is not None:
                text.add_text(NOTE, notes[i])
            name = numbered(first + i, None if labels is None else int(labels[i]))
            write_whole(out / name, partial(_pil(array).save, format="PNG", pnginfo=text))


def numbered(number: int, label: int | None) -> str:
    """The name of an image in a folder of them, which `number_of` reads."""
    return f"{number:06d}.png" if label is None else f"{number:06d}-{label}.png"


def number_of(path: Path) -> int | None:
    """The number of an image that `numbered` named; None for other names."""
    found = re.fullmatch(r"([0-9]{6,})(-[0-9]+)?\.png", path.name)
    return int(found[1]) if found else None


def free_name(path: Path) -> Path:
    """The path, or, where something is there, the first of NAME-1.png, NAME-2.png ... where nothing is."""
    names = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in count(1))
    return path if not path.exists() else next(name for name in names if not name.exists())


def save_image(path: Path, image: Tensor) -> None:
    """Writes a uint8 image (C, H, W) as a PNG, pixel for pixel."""
    write_whole(path, lambda file: to_picture(image).save(file, format="PNG"))


def read_image(argument: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    """An image file as uint8 of shape (C, H, W), grey or coloured as C says. Raises ValueError that names the argument for a file
    that is missing, cannot be read, or holds an image of another size."""
    channels, height, width = shape
    image = read_any_size(argument, path, channels)
    size = f"{image.shape[2]}x{image.shape[1]}"
    expect(argument, str(path), image.shape[1:] == (height, width), f"an image of {width}x{height} pixels, not {size}")
    return image


def read_any_size(argument: str, path: Path, channels: int) -> Tensor:
    """An image file as uint8 (C, h, w), grey or coloured as C says. Raises ValueError as `opened` does."""
    with opened(argument, path) as picture:
        return torch.tensor(from_picture(picture, channels=channels))


@contextmanager
def opened(argument: str, path: Path) -> Iterator[Image.Image]:
    """The picture in an image file, to be decoded in this context. Raises ValueError that names the argument for a file that is
    missing or cannot be read."""
    expect(argument, str(path), not Path(path).is_fifo(), "an image file, not a pipe, which would be waited for")
    try:
        with Image.open(path) as picture:
            yield picture
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{type(error).__name__}: {error}"
        raise ValueError(f"{argument}: expected an image file, got {str(path)!r}: {reason}") from None


def to_picture(image: Tensor) -> Image.Image:
    """A uint8 image (C, H, W), of 1 or 3 channels, as Pillow has it."""
    return _pil(image.permute(1, 2, 0).cpu().numpy())


def check_out(out: Path) -> None:
    """Raises ValueError unless `save_images` can write to `out`. Call it before sampling for hours."""
    if out.suffix not in (".png", ".npz", ""):
        raise ValueError(f"out: expected a .png, a .npz, or a folder without a suffix, got {str(out)!r}")
    expect_place(out)


def expect_place(out: Path) -> None:
    """Raises ValueError unless a file, or a folder where there is no suffix, can be written at `out`."""
    folder = out if out.suffix == "" else out.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: expected a place that can be written, got {str(out)!r}: {error.strerror}") from None
    if out.suffix and out.is_dir():
        raise ValueError(f"out: expected a file, got the folder {str(out)!r}")


def _pil(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
