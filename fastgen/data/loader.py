"""A DataLoader, or any iterable of images, regrouped into batches of the size asked for."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import chain, count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler

from fastgen.data.arrays import check_labels
from fastgen.data.convert import as_numpy, from_array, from_item
from fastgen.data.dataset import SampleDataset, check_batches
from fastgen.data.reader import Batch
from fastgen.data.torch_source import DatasetSource, class_names, is_map_style, split_item

Part = tuple[np.ndarray, np.ndarray | None]  # uint8 (n, C, H, W), int64 (n,) or None


class LoaderDataset(SampleDataset):
    """Batches of an iterable of items or batches, in its own order: nothing is read by index.

    len() is that of the Dataset inside and raises TypeError where that has none. The iterable is gone through anew
    for each epoch. `resident` and `max_broken` do not apply.
    """

    def __init__(self, iterable: Iterable[Any], size: int | None = None, channels: int | None = None):
        if isinstance(getattr(iterable, "sampler", None), DistributedSampler):
            raise ValueError("source: expected the Dataset of a DataLoader with a DistributedSampler, which would split it twice")
        self.iterable, self.size, self.channels = iterable, size, channels
        self.names = class_names(self._dataset)
        first, rest = _peek(iterable)
        self._opened: Iterator[Any] | None = chain([first], rest)  # the first batches() loses nothing to this look
        image, label = self._convert(first)
        self.shape, self._labelled = image.shape[1:], label is not None

    def __len__(self) -> int:
        return len(self._dataset)

    @cached_property
    def classes(self) -> list[str] | None:
        """Names, or None without labels; a Dataset that has no attribute `classes` is read once to count them. Raises ValueError
        for an iterable with labels and without `classes`."""
        if not self._labelled or self.names:
            return self.names if self._labelled else None
        if is_map_style(self._dataset):
            return DatasetSource(self._dataset).classes
        raise ValueError(f"source: expected a list `classes` of the {type(self._dataset).__name__}, got labels without names")

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
        """As `SampleDataset.batches`, but the order and the workers are the iterable's own: `seed`, `workers` and `shuffle` do
        nothing.

        start: that many samples are read and dropped; a run is resumed exactly where the iterable repeats its order. Each rank
        reads every batch and keeps its share.
        """
        check_batches(batch_size, seed, start, workers, rank, world, epochs, shuffle)
        share = slice(rank * batch_size, (rank + 1) * batch_size)
        return self._batches(batch_size * world, start, share, torch.device(device), epochs)

    @property
    def _dataset(self) -> Any:
        return getattr(self.iterable, "dataset", self.iterable)

    def _batches(self, batch_size: int, start: int, share: slice, device: torch.device, epochs: int | None) -> Iterator[Batch]:
        for image, label in _recut(self._parts(start, epochs), batch_size):
            if len(image) <= share.start:  # a last batch that is smaller than the ranks before this one take
                return
            yield _to(image[share], device), None if label is None else _to(label[share], device)

    def _parts(self, skip: int, epochs: int | None) -> Iterator[Part]:
        """Everything after the first `skip` samples, epoch after epoch."""
        for element in self._elements(epochs):
            image, label = self._convert(element)
            if image.shape[1:] != self.shape:
                raise ValueError(f"images: expected one shape, {self.shape} as the first, got {image.shape[1:]}")
            if (label is not None) != self._labelled:
                raise ValueError(f"labels: expected {'one for each' if self._labelled else 'none'}, as of the first, got others")
            if skip < len(image):
                yield image[skip:], None if label is None else label[skip:]
            skip = max(skip - len(image), 0)

    def _elements(self, epochs: int | None) -> Iterator[Any]:
        for _ in count() if epochs is None else range(epochs):
            opened, self._opened = self._opened or iter(self.iterable), None
            element = None
            for element in opened:
                yield element
            if element is None:
                name = type(self.iterable).__name__
                raise ValueError(f"source: expected a {name} that can be read once an epoch, got one that is used up")

    def _convert(self, element: Any) -> Part:
        image, label = split_item(element)
        collated = isinstance(self.iterable, DataLoader) and self.iterable.batch_sampler is not None
        if collated or getattr(image, "ndim", 0) == 4:
            images = from_array(image, self.size, self.channels)
            labels = None if label is None else check_labels(label, len(images))
        else:
            images = from_item(image, self.size, self.channels)[None]
            labels = None if label is None else check_labels(as_numpy(label).reshape(-1), 1)
        if labels is not None and self.names and labels.max() >= len(self.names):
            raise ValueError(f"labels: expected one of {len(self.names)} classes, got {labels.max()}")
        return images, labels


def _peek(iterable: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    iterator = iter(iterable)
    for first in iterator:
        return first, iterator
    raise ValueError(f"source: expected at least one image, got an empty {type(iterable).__name__}")


def _recut(parts: Iterator[Part], batch_size: int) -> Iterator[Part]:
    """The same samples in parts of batch_size, the last smaller where they end."""
    pending: list[Part] = []
    for part in parts:
        pending.append(part)
        if sum(len(image) for image, _ in pending) < batch_size:
            continue
        image, label = _concatenate(pending)
        whole = len(image) // batch_size * batch_size
        for i in range(0, whole, batch_size):
            yield image[i : i + batch_size], None if label is None else label[i : i + batch_size]
        pending = [(image[whole:], None if label is None else label[whole:])]
    if pending and (rest := _concatenate(pending)) and len(rest[0]):
        yield rest


def _concatenate(parts: list[Part]) -> Part:
    labels = [label for _, label in parts if label is not None]
    return np.concatenate([image for image, _ in parts]), np.concatenate(labels) if labels else None


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.copy()).to(device)
