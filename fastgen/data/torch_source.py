"""torch Datasets, and whatever has len() and [index] as they do."""

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, Subset

from fastgen.data.arrays import check_labels
from fastgen.data.convert import as_numpy, from_item
from fastgen.data.reader import BrokenImage

IMAGE_KEYS = ("image", "pixel_values", "img")
LABEL_KEYS = ("label", "labels")
PROBES = 32  # items read twice to tell whether a Dataset draws random transforms


class DatasetSource:
    """A `Source` of a map-style Dataset. An item that raises OSError or SyntaxError, as Pillow does on damaged files, is broken.
    Raises ValueError for an empty Dataset."""

    def __init__(self, dataset: Any, size: int | None = None, channels: int | None = None):
        if len(dataset) == 0:
            raise ValueError(f"source: expected at least one image, got a {type(dataset).__name__} of length 0")
        self.dataset, self.size, self.channels = dataset, size, channels
        self.names = class_names(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __str__(self) -> str:
        return type(self.dataset).__name__

    def name(self, index: int) -> str:
        """The sample in a message: "item 17"."""
        return f"item {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """An item's image, uint8 (C, H, W), and its label or None. Raises BrokenImage where reading it raises OSError or
        SyntaxError, ValueError for an item that is not an image, or whose label is not one of the classes."""
        image, label = self._item(index)
        if label is not None and self.names and label >= len(self.names):
            raise ValueError(f"labels: expected one of {len(self.names)} classes in a {self}, got {label} in item {index}")
        return from_item(image, self.size, self.channels), label

    @cached_property
    def classes(self) -> list[str] | None:
        """The Dataset's own names; else "0", "1" …, up to the largest label, for which every item is read once."""
        if not self._labels(PROBES):
            return None
        return self.names or [str(i) for i in range(max(self._labels(len(self))) + 1)]

    @cached_property
    def fixed(self) -> bool:
        """Whether the first items have the same pixels when read twice: no random transforms."""
        with torch.random.fork_rng(devices=[]):
            return all(map(self._repeats, range(min(PROBES, len(self)))))

    def _item(self, index: int) -> tuple[Any, int | None]:
        try:
            image, label = split_item(self.dataset[index])
        except (OSError, SyntaxError) as error:
            raise BrokenImage(f"{type(error).__name__}: {error}") from error
        return image, None if label is None else int(check_labels(as_numpy(label).reshape(-1), 1)[0])

    def _labels(self, count: int) -> list[int]:
        """Labels of the readable items among the first `count`; empty where they have none."""
        labels = []
        for index in range(min(count, len(self))):
            try:
                labels.append(self._item(index)[1])
            except BrokenImage:
                continue
        return [label for label in labels if label is not None]

    def _repeats(self, index: int) -> bool:
        try:
            return np.array_equal(self.read(index)[0], self.read(index)[0])
        except BrokenImage:
            return True


def is_map_style(source: Any) -> bool:
    """Whether samples can be had by index: len() and [index], as a torch Dataset has unless it is an IterableDataset."""
    if isinstance(source, IterableDataset | dict):
        return False
    return hasattr(source, "__len__") and hasattr(source, "__getitem__")


def split_item(item: Any) -> tuple[Any, Any]:
    """Image and label, or None, of an item or a batch: an image, (image, label), or a dict with one of IMAGE_KEYS and, with
    labels, one of LABEL_KEYS. Raises ValueError for a dict without an image."""
    if isinstance(item, tuple | list):
        image, label = item[0], item[1] if len(item) > 1 else None
    elif isinstance(item, dict):
        image, label = _by_key(item, IMAGE_KEYS), _by_key(item, LABEL_KEYS)
        if image is None:
            raise ValueError(f"source: expected an item's image under {' or '.join(IMAGE_KEYS)}, got the keys {', '.join(item)}")
    else:
        image, label = item, None
    return image, label


def class_names(dataset: Any) -> list[str] | None:
    """The class names that a Dataset (torchvision's, Hugging Face's, a Subset of one) knows, or None."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    names = getattr(dataset, "classes", None)
    if names is None and isinstance(getattr(dataset, "features", None), dict):
        names = getattr(_by_key(dataset.features, LABEL_KEYS), "names", None)
    return None if names is None else [str(name) for name in names]


def _by_key(item: Any, keys: tuple[str, ...]) -> Any:
    return next((item[key] for key in keys if key in item), None)
