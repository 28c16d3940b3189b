"""Reading samples of a source, with broken images replaced by the next good one."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

Batch = tuple[torch.Tensor, torch.Tensor | None]  # uint8 (B, C, H, W) or fp32 (B, *shape), int64 (B,) or None
Read = tuple[torch.Tensor, torch.Tensor | None, dict[int, str]]  # a batch and the broken images met so far


class BrokenImage(Exception):
    """An image that cannot be read; its text says why."""


class Source(Protocol):
    """Samples by index. len(): how many. str(): what to call it in a message."""

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes, in the order of their labels; None without labels."""

    @property
    def fixed(self) -> bool:
        """Whether a sample has the same pixels at every read, so that it may be read once and kept."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """What to call this sample in a message."""

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """A sample, uint8 (C, H, W) or fp32 values, and its label or None. Raises BrokenImage for an image that cannot be read,
        ValueError for a sample that does not fit the others."""


class Reader(Dataset):
    """Reads batches; copied into each worker of a DataLoader, where it meets broken images of its own."""

    def __init__(self, source: Source, max_broken: int):
        self.source, self.max_broken = source, max_broken
        self.broken: dict[int, str] = {}  # index: reason
        image, label = self._read_good(0)
        self.shape: tuple[int, ...] = image.shape
        self.dtype = image.dtype
        self._labelled = label is not None

    def __getitems__(self, indices: Iterable[int]) -> Read | ValueError:
        """What DataLoader calls: read(), its ValueError returned, since torch buries a message in a traceback."""
        try:
            return self.read(indices)
        except ValueError as error:
            return error

    def read(self, indices: Iterable[int]) -> Read:
        """Images uint8 (B, C, H, W) or values fp32 (B, *shape), labels int64 (B,) or None, and the broken images that this reader
        has met. Raises ValueError for samples of different shapes, for labels of some alone, and as `note` does."""
        images, labels = zip(*(self._read_checked(int(index)) for index in indices), strict=True)
        label = None if labels[0] is None else torch.tensor(labels, dtype=torch.int64)
        return torch.from_numpy(np.stack(images)), label, dict(self.broken)

    def note(self, broken: dict[int, str]) -> None:
        """Counts broken images, {index: reason}, found here or in a worker. Raises ValueError where they are too many."""
        self.broken.update(broken)
        if len(self.broken) == len(self.source):
            raise ValueError(f"source: expected readable images in {self.source}, got {len(self.source)} broken: {self._first()}")
        if len(self.broken) > self.max_broken:
            raise ValueError(
                f"source: expected at most {self.max_broken} broken images in {self.source}, see max_broken, "
                f"got {len(self.broken)}: {self._first()}"
            )

    def _read_checked(self, index: int) -> tuple[np.ndarray, int | None]:
        image, label = self._read_good(index)
        if image.shape != self.shape:
            raise ValueError(
                f"images: expected one shape, (C, H, W) = {self.shape} as the first of {self.source}, got {image.shape} of "
                f"{self.source.name(index)}; size= crops and resizes them all, channels= makes them all grey or RGB"
            )
        if (label is not None) != self._labelled:
            expected, got = ("one for each", "none") if self._labelled else ("none", "one")
            raise ValueError(
                f"labels: expected {expected} in {self.source}, as for the first, got {got} for {self.source.name(index)}"
            )
        return image, label

    def _read_good(self, index: int) -> tuple[np.ndarray, int | None]:
        while True:  # ends: note() raises when all are broken
            if index not in self.broken:
                try:
                    return self.source.read(index)
                except BrokenImage as error:
                    self.note({index: str(error)})
            index = (index + 1) % len(self.source)

    def _first(self) -> str:
        return "; ".join(f"{self.source.name(i)} ({reason})" for i, reason in sorted(self.broken.items())[:5])
