"""Images that lie in one array: in memory, in a .npy or in a .npz."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from fastgen.data.dataset import NoTestSplit
from fastgen.data.pixels import as_numpy, from_array, to_nchw

IMAGE_KEYS = ("images", "x", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train", "arr_1")
CHUNK = 1024  # images converted at a time, so that a float file needs no second float copy


class ArraySource:
    """Images in memory: uint8 (N, C, H, W) and labels int64 (N,) or None, as tensors."""

    fixed = True

    def __init__(self, images: Any, labels: Any = None, size: int | None = None, channels: int | None = None):
        array = as_numpy(images)
        check_shape(array, "an array")
        self.images = torch.from_numpy(_convert(array, size, channels))
        self.labels = None if labels is None else torch.from_numpy(check_labels(labels, len(array)))
        self.classes = None if self.labels is None else [str(i) for i in range(int(self.labels.max()) + 1)]

    def __len__(self) -> int:
        return len(self.images)

    def __str__(self) -> str:
        return f"an array of shape {tuple(self.images.shape)}"

    def name(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        return self.images[index].numpy(), None if self.labels is None else int(self.labels[index])


class MappedSource:
    """A .npy too large for memory, read row by row through a memory map."""

    fixed = True
    classes = None

    def __init__(self, path: Path, size: int | None = None, channels: int | None = None):
        self.path, self.size, self.channels = path, size, channels
        self.array = _load(path)
        check_shape(self.array, str(path))

    def __len__(self) -> int:
        return len(self.array)

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": None}  # a pickled memory map would carry the whole file to each worker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "array": _load(state["path"])}

    def name(self, index: int) -> str:
        return f"row {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        return from_array(np.array(self.array[index : index + 1]), self.size, self.channels)[0], None


def load_npz(path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Images and labels of a .npz, under the keys above; x_test and y_test, where present, are its test split."""
    with _load(path) as file:
        if split == "test" and "x_test" not in file:
            raise NoTestSplit(f'{path} has no split "test": no x_test among its keys {", ".join(file)}')
        images, labels = _pick(file, path, split)
        if split == "all" and "x_test" in file:
            more_images, more_labels = _pick(file, path, "test")
            images = np.concatenate([images, more_images])
            labels = None if labels is None or more_labels is None else np.concatenate([labels, more_labels])
        return images, labels


def check_shape(array: np.ndarray, name: str) -> None:
    """Raise ValueError unless these are images, one at least."""
    to_nchw(array)
    if len(array) == 0:
        raise ValueError(f"no images found in {name} of shape {array.shape}")


def check_labels(labels: Any, n: int) -> np.ndarray:
    """Labels as int64 (n,). Raises ValueError when there are not n of them, or they are no whole numbers >= 0."""
    labels = as_numpy(labels)
    if labels.shape not in ((n,), (n, 1)):
        raise ValueError(f"labels must have shape ({n},), one for each image; got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be whole numbers from 0, got {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"labels must be whole numbers from 0, got a minimum of {labels.min()}")
    return labels.reshape(n).astype(np.int64)


def _convert(array: np.ndarray, size: int | None, channels: int | None) -> np.ndarray:
    if array.dtype == np.uint8 and size is None and channels is None:
        images = np.ascontiguousarray(from_array(array))
        return images if images.flags.writeable else images.copy()  # torch wants writable memory
    return np.concatenate([from_array(array[i : i + CHUNK], size, channels) for i in range(0, len(array), CHUNK)])


def _pick(file: Any, path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    image_keys, label_keys = (("x_test",), ("y_test",)) if split == "test" else (IMAGE_KEYS, LABEL_KEYS)
    images = next((file[key] for key in image_keys if key in file), None)
    labels = next((file[key] for key in label_keys if key in file), None)
    if images is None:
        raise ValueError(f"{path}: images expected under {' or '.join(image_keys)}; keys found: {', '.join(file)}")
    return images, labels


def _load(path: Path) -> Any:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a numpy file: {error}") from error
