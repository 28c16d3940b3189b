"""A folder of image files; its subfolders are the classes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from fastgen.data.convert import GREY_MODES, from_picture
from fastgen.data.dataset import NoTestSplit
from fastgen.data.reader import BrokenImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")


class FolderSource:
    """A `Source` of the image files under a folder, in the order of their names.

    split: "train", "test" or "all". A folder with subfolders train and test has all three; in any other, "train" and
    "all" are every image. Raises ValueError when there is no image, no test split, or an image beside class folders.
    """

    fixed = True

    def __init__(self, folder: Path, split: str = "train", size: int | None = None, channels: int | None = None):
        self.folder, self.size = folder, size
        roots = _roots(folder, split)
        names = sorted({name for root in _roots(folder, "all") for name in _subfolders(root)})
        self.classes = names or None
        files = [(path, label) for root in roots for path, label in _scan(root, names)]
        if not files:
            raise ValueError(f"source: expected images, {' '.join(SUFFIXES)}, got none in {', '.join(map(str, roots))}")
        self.paths, self.labels = zip(*files, strict=True)
        self.channels = channels or (1 if all(map(_is_grey, self.paths)) else 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return str(self.folder)

    def name(self, index: int) -> str:
        """The path of the file relative to the folder."""
        return os.path.relpath(self.paths[index], self.folder)

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """The image of a file, uint8 (C, H, W), and its label or None. Raises BrokenImage for a file that cannot be decoded."""
        try:
            return decode(self.paths[index], self.size, self.channels), self.labels[index]
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise BrokenImage(f"{type(error).__name__}: {error}") from error


def decode(path: str, size: int | None, channels: int | None) -> np.ndarray:
    """uint8 (C, H, W) of an image file; see from_picture."""
    with Image.open(path) as image:
        if size is not None:
            image.draft(None, (2 * size, 2 * size))  # JPEG: decode at the smallest of 1, 1/2, 1/4, 1/8 that suffices
        return from_picture(image, size, channels)


def _roots(folder: Path, split: str) -> list[Path]:
    parts = [folder / "train", folder / "test"]
    if all(part.is_dir() for part in parts):
        return parts if split == "all" else [folder / split]
    if split == "test":
        raise NoTestSplit(f"split: expected 'train' or 'all' for {folder}, without subfolders train and test, got 'test'")
    return [folder]


def _subfolders(root: Path) -> list[str]:
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]


def _scan(root: Path, classes: list[str]) -> Iterator[tuple[str, int | None]]:
    """Paths and labels below root, sorted."""
    if not classes:
        yield from ((path, None) for path in _images(root))
        return
    loose = [entry.name for entry in os.scandir(root) if entry.is_file() and _is_image(entry.name)]
    if loose:
        expected = f"no image beside the class folders {', '.join(classes[:5])}"
        raise ValueError(f"source: expected {expected} in {root}, got {min(loose)}")
    for label, name in enumerate(classes):
        yield from ((path, label) for path in _images(root / name))


def _images(folder: Path) -> list[str]:
    found = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names if _is_image(name))
    return sorted(found)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")  # macOS leaves ._photo.jpg beside photo.jpg


def _is_grey(path: str) -> bool:
    """Whether the file's header says so; True for a broken file, so that it does not decide."""
    try:
        with Image.open(path) as image:
            return image.mode in GREY_MODES
    except Exception:
        return True
