"""A folder of image files; its subfolders are the classes."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fastgen.data.convert import GREY_MODES, from_picture
from fastgen.data.dataset import NoTestSplit
from fastgen.data.hold_out import files_of_split
from fastgen.data.reader import BrokenImage

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
NEED_PLUGIN = (".heic", ".heif", ".jxl")  # broken images unless a plugin of Pillow, such as pillow-heif, is registered
TRAIN, TEST, VALIDATION = ("train", "training"), ("test", "testing"), ("val", "valid", "validation")


class FolderSource:
    """A `Source` of the image files under a folder, in the order of their names.

    split: "train", "test" or "all". A folder with subfolders train and test has all three; val, valid or validation holds out,
    too, and is "test" where there is no test. In any other folder, "test" is the share `hold_out`. Hidden files and folders are
    passed over, links are followed. Raises ValueError when there is no image, or none of a class, no test split, or an image
    beside class folders.
    """

    fixed = True

    def __init__(
        self, folder: Path, split: str = "train", size: int | None = None, channels: int | None = None, hold_out: float = 0.0
    ):
        self.folder, self.size = folder, size
        shared = bool(hold_out) and not _has_test(folder)
        roots = _roots(folder, "train" if shared and split == "test" else split)
        names = sorted({name for root in _roots(folder, "all") for name in _subfolders(root)})
        self.classes = names or None
        files = [(path, label) for root in roots for path, label in _scan(root, names)]
        if not files:
            raise ValueError(f"source: expected images, {' '.join(SUFFIXES)}, got none in {', '.join(map(str, roots))}")
        if split == "train" and names and (empty := _empty(folder, names, {label for _, label in files})):
            raise ValueError(f"source: expected images in every class folder, got none in {empty} of {folder}")
        if shared:
            labels = np.array([label for _, label in files]) if names else None
            found = [Path(os.path.relpath(path, folder)).as_posix() for path, _ in files]
            files = [files[i] for i in files_of_split(split, hold_out, found, labels)]
        self.paths, self.labels = zip(*files, strict=True)
        self.channels = channels or (1 if all(map(_is_grey, self.paths)) else 3)

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        return str(self.folder)

    @cached_property
    def original_size(self) -> tuple[int, int] | None:
        """Width and height of the first image that can be opened, before it is cropped and scaled; None without one."""
        for path in self.paths[:100]:
            try:
                with Image.open(path) as image:
                    return image.size
            except Exception:
                continue
        return None

    def sizes(self, most: int = 2000) -> list[tuple[int, int]]:
        """Width and height of the images that can be opened, of at most so many that are spread over all. Raises ValueError
        without one."""
        found = []
        for path in self.paths[:: -(-len(self.paths) // most)]:
            try:
                with Image.open(path) as image:
                    found.append(image.size)
            except Exception:
                continue
        if not found:
            raise ValueError(f"source: expected images that can be opened, got none in {self.folder}")
        return found

    def name(self, index: int) -> str:
        """The path of the file relative to the folder."""
        return os.path.relpath(self.paths[index], self.folder)

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """The image of a file, uint8 (C, H, W), and its label or None. Raises BrokenImage for a file that cannot be decoded."""
        try:
            return decode(self.paths[index], self.size, self.channels), self.labels[index]
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            if isinstance(error, UnidentifiedImageError) and self.paths[index].lower().endswith(NEED_PLUGIN):
                raise BrokenImage("Pillow reads such files with a plugin alone, such as pillow-heif: convert them") from None
            raise BrokenImage(f"{type(error).__name__}: {error}") from error


def decode(path: str, size: int | None, channels: int | None) -> np.ndarray:
    """uint8 (C, H, W) of an image file; see from_picture."""
    with Image.open(path) as image:
        if size is not None:
            image.draft(None, (2 * size, 2 * size))  # JPEG: decode at the smallest of 1, 1/2, 1/4, 1/8 that suffices
        return from_picture(image, size, channels)


def _roots(folder: Path, split: str) -> list[Path]:
    """The folders whose images are a split's: subfolders train, test or val where they are that, else the folder itself."""
    found = {name.lower(): folder / name for name in _subfolders(folder)}
    train, test, validation = ([found[name] for name in names if name in found] for names in (TRAIN, TEST, VALIDATION))
    held_out = test or validation
    if train and (held_out or len(found) == 1):
        if split == "test" and not held_out:
            raise NoTestSplit(f"split: expected 'train' or 'all' for {folder}, which has a subfolder train alone, got 'test'")
        return {"train": train, "test": held_out, "all": train + test + validation}[split]
    if split == "test":
        raise NoTestSplit(f"split: expected 'train' or 'all' for {folder}, without subfolders train and test, got 'test'")
    return [folder]


def _has_test(folder: Path) -> bool:
    try:
        return bool(_roots(folder, "test"))
    except NoTestSplit:
        return False


def _empty(folder: Path, classes: list[str], present: set[int | None]) -> str:
    """The names of the classes, "" where there are none, that have no image in any split."""
    absent = [name for label, name in enumerate(classes) if label not in present]
    return ", ".join(n for n in absent if not any(_images(root / n) for root in _roots(folder, "all") if (root / n).is_dir()))


def _subfolders(root: Path) -> list[str]:
    return [entry.name for entry in os.scandir(root) if entry.is_dir() and not _is_hidden(entry.name)]


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
    """The image files at any depth, sorted; links are followed, a folder that one leads back to is read once."""
    found, seen, todo = [], set(), [str(folder)]
    while todo:
        parent = todo.pop()
        if not os.path.isdir(parent) or (real := os.path.realpath(parent)) in seen:
            continue
        seen.add(real)
        with os.scandir(parent) as entries:
            for entry in entries:
                if _is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    todo.append(entry.path)
                elif _is_image(entry.name) and entry.is_file():  # and no pipe, which opening would wait for
                    found.append(entry.path)
    return sorted(found)


def _is_hidden(name: str) -> bool:
    """.ipynb_checkpoints, .thumbnails, ._photo.jpg; and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES + NEED_PLUGIN) and not _is_hidden(name)


def _is_grey(path: str) -> bool:
    """Whether the file's header says so; True for a broken file, so that it does not decide."""
    try:
        with Image.open(path) as image:
            return image.mode in GREY_MODES
    except Exception:
        return True
