"""A data set without its labels."""

from collections.abc import Iterator
from typing import Any

from fastgen.data.dataset import ImageDataset
from fastgen.data.reader import Batch


class Unlabelled(ImageDataset):
    """The images of a data set alone, for a model without classes."""

    def __init__(self, data: ImageDataset):
        self.data, self.shape = data, data.shape

    def __len__(self) -> int:
        return len(self.data)

    @property
    def classes(self) -> None:
        return None

    @property
    def broken(self) -> list[tuple[str, str]]:
        return self.data.broken

    def batches(self, batch_size: int, **options: Any) -> Iterator[Batch]:
        return ((image, None) for image, _ in self.data.batches(batch_size, **options))
