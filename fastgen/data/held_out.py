"""The part of a data set that is kept out of training."""

from typing import Any

from fastgen.data import ImageDataset, NoTestSplit, open_dataset


def open_held_out(source: Any, **options: Any) -> ImageDataset | None:
    """open_dataset's split "test" with its options; None for a source that has none."""
    try:
        return open_dataset(source, split="test", **options)
    except NoTestSplit:
        return None
