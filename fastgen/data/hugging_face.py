"""Hugging Face `datasets`: a Dataset, or a DatasetDict of splits, in memory or as save_to_disk wrote it.

Nothing is downloaded and no pickle is read: a saved data set is Arrow tables and JSON, and its images are decoded here.
"""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastgen.data.convert import from_picture
from fastgen.data.dataset import NoTestSplit
from fastgen.data.hold_out import rows_of_split
from fastgen.data.reader import BrokenImage
from fastgen.data.torch_source import LABEL_KEYS
from fastgen.errors import expect_package


class HuggingFaceSource:
    """A `Source` of a Dataset's one column of images and, where there is one, of class labels, found by their features.

    Raises ValueError for an empty Dataset, for another number of such columns, and for a column "label" without class names."""

    fixed = True

    def __init__(self, dataset: Any, size: int | None = None, channels: int | None = None):
        import datasets

        if len(dataset) == 0:
            raise ValueError("source: expected at least one image, got a datasets.Dataset of length 0")
        self.size, self.channels = size, channels
        self.image = _image_column(dataset.features, datasets.Image)
        self.label = _label_column(dataset.features, datasets.ClassLabel)
        self.mode = dataset.features[self.image].mode
        columns = [self.image] if self.label is None else [self.image, self.label]
        # As bytes or a path: decoding them, `datasets` would download what lies elsewhere.
        dataset = dataset.with_format(None).select_columns(columns)
        self.dataset = dataset.cast_column(self.image, datasets.Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def __str__(self) -> str:
        return "a datasets.Dataset"

    def name(self, index: int) -> str:
        """The sample in a message: "row 17"."""
        return f"row {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """A row's image, uint8 (C, H, W), and its label or None. Raises BrokenImage for an image that cannot be decoded,
        ValueError for a label that is not one of the classes."""
        row = self.dataset[index]
        label = None if self.label is None else row[self.label]
        if self.classes is not None and label not in range(len(self.classes)):
            raise ValueError(f"labels: expected one of {len(self.classes)} classes in {self}, got {label} in row {index}")
        try:
            with Image.open(_file(row[self.image])) as image:
                return from_picture(image.convert(self.mode) if self.mode else image, self.size, self.channels), label
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise BrokenImage(f"{type(error).__name__}: {error}") from error

    @cached_property
    def classes(self) -> list[str] | None:
        """The names of the ClassLabel feature, in the order of their labels; None without such a column."""
        return None if self.label is None else list(self.dataset.features[self.label].names)


def is_hugging_face(source: Any) -> bool:
    """Whether this is a Dataset or a DatasetDict of the package, which is not imported to tell."""
    kinds = {(kind.__module__, kind.__name__) for kind in type(source).__mro__}
    return not kinds.isdisjoint({("datasets.arrow_dataset", "Dataset"), ("datasets.dataset_dict", "DatasetDict")})


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("dataset_info.json", "state.json")
    )


def load_saved(folder: Path) -> Any:
    """The Dataset or DatasetDict that save_to_disk wrote. Raises ModuleNotFoundError without the package, ValueError for a folder
    that it cannot read."""
    expect_package("datasets", f'open_dataset("{folder}"), which save_to_disk wrote,')
    import datasets

    try:
        return datasets.load_from_disk(folder)
    except Exception as error:  # of JSON, of Arrow or of `datasets`
        raise ValueError(f"source: expected a saved datasets.Dataset, got {folder}: {type(error).__name__}: {error}") from error


def pick_split(source: Any, split: str, hold_out: float = 0.0) -> Any:
    """A split of a DatasetDict, or "all" of them concatenated; a Dataset itself, as "train" or "all". The share `hold_out` of
    what has no "test" is that. Raises ValueError for a split that there is not, which is NoTestSplit for "test"."""
    whole = source if not isinstance(source, dict) else source.get("train") if "test" not in source else None
    if hold_out and whole is not None and split != "all":
        return whole.select(rows_of_split(split, hold_out, len(whole)))
    if not isinstance(source, dict):
        if split == "test":
            raise NoTestSplit("split: expected 'train' or 'all' for a datasets.Dataset, which has no splits, got 'test'")
        return source
    if split == "all":
        import datasets

        return datasets.concatenate_datasets(list(source.values()))
    if split not in source:
        kind = NoTestSplit if split == "test" else ValueError
        raise kind(f"split: expected one of a datasets.DatasetDict, {', '.join(source) or 'which has none'}, got {split!r}")
    return source[split]


def _image_column(features: Any, kind: type) -> str:
    """The name of the column with this feature."""
    found = _columns(features, kind)
    if len(found) != 1:
        columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
        remedy = "select_columns keeps one of them" if found else "cast_column makes one"
        raise ValueError(f"source: expected one column of feature Image in a datasets.Dataset, got {columns}; {remedy}")
    return found[0]


def _label_column(features: Any, kind: type) -> str | None:
    """The name of the column with this feature, None where there is none and none that should have it."""
    found = _columns(features, kind)
    if len(found) > 1:
        raise ValueError(
            f"source: expected one column of feature ClassLabel in a datasets.Dataset, got {', '.join(found)}; "
            "remove_columns leaves out the others"
        )
    plain = [name for name in LABEL_KEYS if name in features]
    if plain and not found:
        raise ValueError(
            f"source: expected column {plain[0]} of a datasets.Dataset with feature ClassLabel, got {features[plain[0]]}; "
            "class_encode_column makes it one, remove_columns leaves it out"
        )
    return found[0] if found else None


def _columns(features: Any, kind: type) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, kind)]


def _file(image: Any) -> Any:
    """What Pillow opens of an image's bytes or its path on this machine."""
    if image is None:
        raise ValueError("no image")
    return image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"])
