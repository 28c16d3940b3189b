"""SampleDataset: what every opened data set offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from fastgen.data.reader import Batch
from fastgen.data.table import Table
from fastgen.errors import expect, is_whole

Sample = torch.Tensor | tuple[torch.Tensor, int]


class NoTestSplit(ValueError):
    """split="test" of a source that holds nothing out."""


class SampleDataset(Dataset[Sample], ABC):
    """Samples of one `shape`, with or without labels, in batches. len(): the number of samples. [i]: sample i, (image, label), or
    the image alone without labels, as a DataLoader of torch takes them.

    kind: "images", uint8 (C, H, W), or "values", fp32: rows of a table, (F,), or signals, (C, L), in their own units. features:
    the names of the features or channels of values; None where they have none. table: the columns of a table of several kinds
    of columns, whose rows are the features that `table.encode` makes; else None."""

    shape: tuple[int, ...]
    kind: Literal["images", "values"] = "images"
    features: tuple[str, ...] | None = None
    table: Table | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Sample `index`, counted from the end where it is negative: uint8 (C, H, W) or fp32 (*shape), with its label, an int,
        where there are labels. Raises IndexError beyond the last, TypeError where samples are not read by index."""
        raise TypeError(f"source: expected one that is read by index, got a {type(self).__name__}, which has batches alone")

    @property
    @abstractmethod
    def classes(self) -> list[str] | None:
        """Names of the classes, in the order of their labels; None without labels."""

    @property
    def num_classes(self) -> int | None:
        """The number of classes; None without labels."""
        return None if self.classes is None else len(self.classes)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """Name and reason of each unreadable image found so far."""
        return []

    @abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        device: str | torch.device = "cpu",
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
        shuffle: bool = True,
    ) -> Iterator[Batch]:
        """Batches, each (samples, labels) on `device`: uint8 (batch_size, C, H, W) or fp32 (batch_size, *shape), and int64
        (batch_size,) or None.

        epochs: how often every sample comes, the last batch with what is left; None: without end. shuffle: in another order each
        epoch; False: in the order of their numbers.
        seed: the order of an epoch depends on it and on the epoch's number alone. start: samples already consumed, over all
        ranks; the iterator goes on as one that was never stopped. workers: processes or threads that decode; None: one a core, 8
        at most; 0: none. rank, world: of each global batch of world·batch_size this process gets the samples from
        rank·batch_size on. Raises ValueError for a value out of range, and for images that cannot be read.
        """


def check_batches(
    batch_size: int, seed: int, start: int, workers: int | None, rank: int, world: int, epochs: int | None, shuffle: bool
) -> None:
    """Raises ValueError for an argument of batches() that is out of range."""
    expect("batch_size", batch_size, is_whole(batch_size, 1), "a whole number >= 1")
    expect("seed", seed, is_whole(seed, 0), "a whole number >= 0")
    expect("start", start, is_whole(start, 0), "a number of samples >= 0")
    expect("workers", workers, workers is None or is_whole(workers, 0), "a number of processes >= 0, or None")
    expect("epochs", epochs, epochs is None or is_whole(epochs, 1), "a whole number >= 1, or None")
    expect("shuffle", shuffle, isinstance(shuffle, bool), "True or False")
    expect("rank", rank, 0 <= rank < world, f"a number from 0, below world {world}")


class Relabelled(SampleDataset):
    """A data set whose labels skip numbers, with consecutive ones: kept[i] becomes i. kept: int64 (K,), the labels that occur, in
    their order."""

    def __init__(self, data: SampleDataset, kept: torch.Tensor):
        self.data, self.shape, self.kind, self.features = data, data.shape, data.kind, data.features
        self.kept = kept
        self.numbers = torch.zeros(data.num_classes or 0, dtype=torch.int64)
        self.numbers[kept] = torch.arange(len(kept))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        x, label = self.data[index]
        return x, int(self.numbers[label])

    @property
    def classes(self) -> list[str] | None:
        names = self.data.classes or []
        return [names[label] for label in self.kept.tolist()]

    @property
    def broken(self) -> list[tuple[str, str]]:
        return self.data.broken

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu", **options: Any) -> Iterator[Batch]:
        numbers = self.numbers.to(device)
        for x, label in self.data.batches(batch_size, device=device, **options):
            yield x, None if label is None else numbers.index_select(0, label)


class Unlabelled(SampleDataset):
    """A data set without its labels, for a model that takes none."""

    def __init__(self, data: SampleDataset):
        self.data, self.shape = data, data.shape

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        return sample[0] if isinstance(sample, tuple) else sample

    @property
    def classes(self) -> None:
        return None

    @property
    def broken(self) -> list[tuple[str, str]]:
        return self.data.broken

    def batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        return ((image, None) for image, _ in self.data.batches(batch_size, **options))
