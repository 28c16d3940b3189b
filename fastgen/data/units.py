"""Data that are no images, rows of a table and signals: their way from their own units to what a network sees, and back."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.config.files import plain
from fastgen.data.dataset import SampleDataset
from fastgen.data.indexed import IndexedDataset
from fastgen.data.reader import Batch

CHUNK = 4096  # rows measured at a time


@dataclass(frozen=True)
class Values:
    """What a run knows of its values. `shape`: (F,), that of a table's rows, or (C, L), that of signals. `mean` and `std`: of
    each feature or channel over the training split, std 0 where it is constant. `features`: their names, None without."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: tuple[str, ...] | None = None

    @property
    def network_shape(self) -> tuple[int, int]:
        """(C, L): the features of a row are the channels of a signal of length 1."""
        return self.shape[0], self.shape[1] if len(self.shape) == 2 else 1

    def to_network(self, x: Tensor) -> Tensor:
        """fp32 (N, *shape) in their own units to (N, C, L), each channel with mean 0 and deviation 1 over the training split."""
        return standardized(x, *self.moments(x.device))

    def from_network(self, x: Tensor) -> Tensor:
        """The inverse; a constant channel is exactly what it was."""
        mean, std = self.moments(x.device)
        return (x.float() * std + mean).reshape(-1, *self.shape)

    def moments(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Mean and deviation, each fp32 (C, 1)."""
        mean, std = (torch.tensor(moment, dtype=torch.float32, device=device)[:, None] for moment in (self.mean, self.std))
        return mean, std


def standardized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(N, *shape) as fp32 (N, C, L); mean and std are (C, 1)."""
    x = x.float().reshape(len(x), len(mean), -1)
    return (x - mean) / torch.where(std > 0, std, 1)


class Standardized(SampleDataset):
    """The values of a data set, of its shape, in batches fp32 (B, C, L) with mean 0 and deviation 1."""

    kind = "values"

    def __init__(self, data: SampleDataset, values: Values):
        self.data, self.values, self.shape = data, values, data.shape

    def __len__(self) -> int:
        return len(self.data)

    @property
    def classes(self) -> list[str] | None:
        return self.data.classes

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu", **options: Any) -> Iterator[Batch]:
        mean, std = self.values.moments(device)  # once: copies to a device would wait for it in every batch
        return ((standardized(x, mean, std), label) for x, label in self.data.batches(batch_size, device=device, **options))


def measure(data: IndexedDataset) -> Values:
    """The values of a data set, which is read once: mean and deviation in fp64, a part of the rows after the other
    (Chan et al. 1979)."""
    count, mean, square = 0, np.zeros(data.shape[0]), np.zeros(data.shape[0])
    for first in range(0, len(data), CHUNK):
        rows = data.reader.read(range(first, min(first + CHUNK, len(data))))[0].double().numpy()
        axes = (0, *range(2, rows.ndim))
        n, own = rows.size // rows.shape[1], rows.mean(axes)
        step = own - mean
        square = square + ((rows - own.reshape(-1, *[1] * (rows.ndim - 2))) ** 2).sum(axes) + step**2 * count * n / (count + n)
        mean = mean + step * n / (count + n)
        count += n
    std = np.sqrt(square / count)
    std[std <= np.finfo(np.float32).eps * np.abs(mean)] = 0  # what differs by less is one number in fp32
    return Values(tuple(data.shape), tuple(mean.tolist()), tuple(std.tolist()), data.features)


def to_document(values: Values | None) -> dict[str, Any] | None:
    """As a checkpoint keeps it, in lists and numbers; None for images."""
    if values is None:
        return None
    return plain(dataclasses.asdict(values))


def from_document(document: dict[str, Any] | None) -> Values | None:
    """What `to_document` was given."""
    if document is None:
        return None
    return Values(**{name: tuple(value) if isinstance(value, list) else value for name, value in document.items()})
