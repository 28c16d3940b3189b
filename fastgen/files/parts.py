"""Samples kept as they are drawn: a drawing that is stopped after hours goes on where it was."""

import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastgen.atomic import remove, write_text, write_whole
from fastgen.errors import expect
from fastgen.files.images import NOTE, number_of

Recipe = dict[str, Any]


class Parts:
    """Batches of samples on their way into one file: in a hidden folder beside it, until the file is written.

    recipe: all that the samples depend on but their number; what was kept under another one is dropped."""

    def __init__(self, out: Path, recipe: Recipe):
        self.folder = out.with_name(f".{out.name}.parts")
        text = json.dumps(recipe, sort_keys=True)
        note = self.folder / "recipe.json"
        if not note.is_file() or note.read_text() != text:
            remove(self.folder)
            self._text: str | None = text
        else:
            self._text = None

    def kept(self) -> list[tuple[Tensor, Tensor | None]]:
        """The batches so far, in their order: samples, and labels or None."""
        return [_read(path) for path in self._paths()]

    def keep(self, x: Tensor, labels: Tensor | None) -> None:
        """Keeps another batch. Raises OSError where the disk is full."""
        if self._text is not None:
            write_text(self.folder / "recipe.json", self._text)
            self._text = None
        arrays = {"x": x.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        write_whole(self.folder / f"{len(self._paths()):09d}.npz", lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]

    def drop(self) -> None:
        """Removes them: the file is written."""
        remove(self.folder)

    def _paths(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.npz") if re.fullmatch(r"\d{9}", path.stem))


def drawn_before(out: Path, note: Callable[[int], str], n: int, first: int) -> int:
    """How many of n images in a folder of PNGs were drawn before, without a gap, from number `first` on. note(i): what image
    first + i is marked with, see `save_images`. Raises ValueError for a file that has one of their numbers and another mark."""
    here = set()
    for path in out.glob("*.png"):
        i = (number_of(path) or 0) - first
        if number_of(path) is not None and 0 <= i < n:
            expect("out", str(path), _note(path) == note(i), "a free name, or what this command drew before; see --overwrite")
            here.add(i)
    return next(i for i in count() if i not in here)


def _note(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.info.get(NOTE)
    except Exception:  # Pillow's decoders raise nearly everything on damaged files
        return None


def _read(path: Path) -> tuple[Tensor, Tensor | None]:
    with np.load(path) as arrays:
        labels = torch.from_numpy(arrays["labels"]) if "labels" in arrays else None
        return torch.from_numpy(arrays["x"]), labels
