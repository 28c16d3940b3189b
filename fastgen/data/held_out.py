"""The part of a data set that is kept out of training."""

from typing import Any

from fastgen.data import ImageDataset, NoTestSplit, open_dataset
from fastgen.errors import expect


def open_held_out(source: Any, data: ImageDataset, size: int | None = None) -> ImageDataset | None:
    """open_dataset's split "test" of the source that `data` is the training split of; None where there is none.

    Raises ValueError where a model of `data` could not take it."""
    try:
        channels = data.shape[0] if data.kind == "images" else None
        held_out = open_dataset(source, split="test", size=size, channels=channels, kind=data.kind)
    except NoTestSplit:
        return None
    kind = data.kind
    expect("data", held_out.shape, held_out.shape == data.shape, f"test {kind} of the training {kind}' shape {data.shape}")
    known, num_classes = data.num_classes or 0, held_out.num_classes or 0
    expect("data", num_classes, num_classes <= known, f"test labels of the {known} classes of training")
    return held_out
