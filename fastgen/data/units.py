"""Values, which are rows of a table or signals: from their own units to what a network sees, and back."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastgen.config.files import plain
from fastgen.data import table as tables
from fastgen.data.dataset import Sample, SampleDataset
from fastgen.data.indexed import IndexedDataset
from fastgen.data.reader import Batch

CHUNK = 4096  # samples measured at a time


@dataclass(frozen=True)
class Values:
    """The statistics of its values that a run keeps, in their own units.

    shape: (F,) of a table's rows, (C, L) of signals, (C, H, W) or (C, D, H, W) of others. mean, std: of each feature or channel
    over the training split; std is 0 where it is constant. features: the names of the features or channels; None where they have
    none. table: the columns that the features stand for; None where each feature is a column of numbers."""

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    features: tuple[str, ...] | None = None
    table: tables.Table | None = None

    @property
    def network_shape(self) -> tuple[int, ...]:
        """(C, *S): the shape, or (F, 1), as the features of a row are the channels of a signal of length 1."""
        return self.shape if len(self.shape) > 1 else (*self.shape, 1)

    def to_network(self, x: Tensor) -> Tensor:
        """x (N, *shape), in its own units, as fp32 (N, C, *S), each channel with mean 0 and standard deviation 1 over the
        training split, and 0 where the channel is constant there."""
        return standardized(x, *self.moments(x.device))

    def from_network(self, x: Tensor) -> Tensor:
        """The inverse of `to_network`: x (N, C, *S) as fp32 (N, *shape). A constant channel is exactly what it was."""
        mean, std = self.moments(x.device)
        return (x.float().flatten(2) * std + mean).reshape(-1, *self.shape)

    def columns(self, x: Tensor, labels: Tensor | None = None) -> list[tables.Cells]:
        """The columns of rows x, fp32 (N, F), and, last where the table has no place for it, their labels, int64 (N,)."""
        rows, codes = x.cpu().numpy(), None if labels is None else labels.cpu().numpy()
        if self.table is not None:
            return self.table.decode(rows, codes)
        names = self.features or [f"x{i}" for i in range(rows.shape[1])]
        cells = [tables.Cells(name, "number", rows[:, i], "float32") for i, name in enumerate(names)]
        return cells if codes is None else [*cells, tables.Cells("label", "number", codes, "int64")]

    def moments(self, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation on the device, each fp32 (C, 1)."""
        mean, std = (torch.tensor(moment, dtype=torch.float32, device=device)[:, None] for moment in (self.mean, self.std))
        return mean, std


def standardized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std as fp32 (N, C, *S), x - mean where std is 0. x: (N, *shape); (N, F) becomes (N, F, 1). mean, std:
    (C, 1)."""
    standard = (x.float().reshape(len(x), len(mean), -1) - mean) / torch.where(std > 0, std, 1)
    return standard if x.dim() == 2 else standard.reshape(x.shape)


class Standardized(SampleDataset):
    """A data set of values whose batches are as the network sees them: fp32 (B, C, *S), by `values.to_network`."""

    kind = "values"

    def __init__(self, data: SampleDataset, values: Values):
        self.data, self.values, self.shape, self.table = data, values, data.shape, data.table

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        sample = self.data[index]
        x, *label = sample if isinstance(sample, tuple) else (sample,)
        seen = self.values.to_network(x[None])[0]
        return (seen, label[0]) if label else seen

    @property
    def classes(self) -> list[str] | None:
        return self.data.classes

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu", **options: Any) -> Iterator[Batch]:
        mean, std = self.values.moments(device)  # once: copies to a device would wait for it in every batch
        return ((standardized(x, mean, std), label) for x, label in self.data.batches(batch_size, device=device, **options))


def measure(data: IndexedDataset) -> Values:
    """Mean and standard deviation of a data set of values, computed in fp64. It is read once, CHUNK samples at a time; their sums
    of squares are combined as in Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample
    variances"."""
    count, mean, square = 0, np.zeros(data.shape[0]), np.zeros(data.shape[0])
    for begin in range(0, len(data), CHUNK):
        x = data.reader.read(range(begin, min(begin + CHUNK, len(data))))[0].double().numpy()
        axes = (0, *range(2, x.ndim))
        n, own = x.size // x.shape[1], x.mean(axes)
        step = own - mean
        square = square + ((x - own.reshape(-1, *[1] * (x.ndim - 2))) ** 2).sum(axes) + step**2 * count * n / (count + n)
        mean = mean + step * n / (count + n)
        count += n
    std = np.sqrt(square / count)
    std[std <= np.finfo(np.float32).eps * np.abs(mean)] = 0  # what differs by less is one number in fp32
    if data.table is not None:  # categories are +1 and -1 to the network, however rare
        mean, std = np.where(data.table.scaled, mean, 0), np.where(data.table.scaled, std, 1)
    return Values(tuple(data.shape), tuple(mean.tolist()), tuple(std.tolist()), data.features, data.table)


def to_document(values: Values | None) -> dict[str, Any] | None:
    """The values' shape, mean, std and features, and the table where there is one, as lists, numbers and text, for a checkpoint's
    JSON; None for images."""
    if values is None:
        return None
    document = plain(dataclasses.asdict(values))
    return {name: value for name, value in document.items() if name != "table" or value is not None}


def from_document(document: dict[str, Any] | None) -> Values | None:
    """The inverse of `to_document`."""
    if document is None:
        return None
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in document.items()}
    table = known.get("table")
    return Values(**known | {"table": None if table is None else tables.from_document(table)})
