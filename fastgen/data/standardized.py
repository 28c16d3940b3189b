"""Values as a network sees them."""

from collections.abc import Iterator
from typing import Any

import torch

from fastgen.data.dataset import ImageDataset
from fastgen.data.reader import Batch
from fastgen.data.units import Values, standardized


class Standardized(ImageDataset):
    """The values of a data set, of its shape, in batches fp32 (B, C, L) with mean 0 and deviation 1."""

    kind = "values"

    def __init__(self, data: ImageDataset, values: Values):
        self.data, self.values, self.shape = data, values, data.shape

    def __len__(self) -> int:
        return len(self.data)

    @property
    def classes(self) -> list[str] | None:
        return self.data.classes

    def batches(self, batch_size: int, *, device: str | torch.device = "cpu", **options: Any) -> Iterator[Batch]:
        mean, std = self.values.moments(device)  # once: copies to a device would wait for it in every batch
        return ((standardized(x, mean, std), label) for x, label in self.data.batches(batch_size, device=device, **options))
