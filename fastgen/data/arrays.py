"""Samples that lie in one array, in memory, in a .npy or in a .npz: images as uint8, values as fp32."""

import math
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgen.data.convert import as_numpy, from_array, to_nchw
from fastgen.data.dataset import NoTestSplit
from fastgen.data.hold_out import rows_of_split
from fastgen.data.memory import free_memory
from fastgen.data.table import Table
from fastgen.errors import expect
from fastgen_kernels.messages import shown

KINDS = ("auto", "images", "values")
IMAGE_KEYS = ("images", "x", "x_train", "arr_0")
LABEL_KEYS = ("labels", "y", "y_train", "arr_1")
MOST_CLASSES = 1000  # where there are fewer samples; a label beyond is a date or an identifier
CHUNK = 1024  # samples converted at a time, so that a float file needs no second float copy

Convert = Callable[[np.ndarray], np.ndarray]  # rows of an array to samples: uint8 (n, C, H, W), or fp32 values


class ArraySource:
    """A `Source` in memory. `samples`: uint8 (N, C, H, W), or values fp32 (N, F) or (N, C, L). `labels`: int64 (N,) or None.

    array: what `convert` takes, N rows of it at a time. labels: as `check_labels` takes them. features: the names of the values'
    features or channels, (F,) or (C,) strings. classes: the names of the classes, "0", "1" … by default. table: the columns that
    the features were made of. Raises ValueError as `convert`, `check_labels` and `check_features` do."""

    fixed = True

    def __init__(
        self,
        array: np.ndarray,
        labels: Any = None,
        *,
        convert: Convert,
        features: np.ndarray | None = None,
        classes: list[str] | None = None,
        table: Table | None = None,
    ):
        self.samples = torch.from_numpy(_convert(array, convert))
        self.labels = None if labels is None else torch.from_numpy(check_labels(labels, len(array)))
        self.classes = None if self.labels is None else classes or [str(i) for i in range(int(self.labels.max()) + 1)]
        self.features = None if features is None or convert is not to_values else check_features(features, array)
        self.table = table

    def __len__(self) -> int:
        return len(self.samples)

    def __str__(self) -> str:
        return f"an array of shape {tuple(self.samples.shape)}"

    def name(self, index: int) -> str:
        """The sample in a message: "row 17"."""
        return f"row {index}"

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """Row `index` of `samples`, uint8 (C, H, W) or fp32 values, and its label or None."""
        return self.samples[index].numpy(), None if self.labels is None else int(self.labels[index])


class MappedSource:
    """A `Source` of a .npy too large for memory, read row by row through a memory map; it has no labels. rows: int64 (M,), those
    that are its samples, all where None."""

    fixed = True
    classes = None

    def __init__(self, path: Path, convert: Convert, rows: np.ndarray | None = None):
        self.path, self.convert, self.rows, self.array = path, convert, rows, load(path)

    def __len__(self) -> int:
        return len(self.array) if self.rows is None else len(self.rows)

    def __str__(self) -> str:
        return str(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "array": None}  # a pickled memory map would carry the whole file to each worker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "array": load(state["path"])}

    def name(self, index: int) -> str:
        """The sample in a message: "row 17"."""
        return f"row {self._row(index)}"

    def samples(self) -> np.ndarray:
        """All rows, (N, ...), which are read when they are used unless `rows` are some."""
        return self.array if self.rows is None else self.array[self.rows]

    def read(self, index: int) -> tuple[np.ndarray, int | None]:
        """Sample `index` as `convert` makes it, uint8 (C, H, W) or fp32 values, and None for its label. Raises ValueError as
        `convert` does."""
        row = self._row(index)
        return self.convert(np.array(self.array[row : row + 1]))[0], None

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


def conversion(array: np.ndarray, name: str, kind: str = "auto", size: int | None = None, channels: int | None = None) -> Convert:
    """The function that makes samples of rows of the array: uint8 images, of `size` and `channels` where given, or fp32 values.

    kind: "auto", "images" or "values". Raises ValueError, with the array's `name`, for an array that is not of the kind, and for
    a size or channels of values."""
    if is_values(array, kind):
        for argument, value in (("size", size), ("channels", channels)):
            expect(argument, value, value is None, f"None for {name} of shape {array.shape}, which is read as values")
        check_values(array, name)
        return to_values
    with _saying_what_is_not_guessed(array):
        check_shape(array, name)
    return from_array if (size, channels) == (None, None) else partial(from_array, size=size, channels=channels)


def load_npz(path: Path, split: str, hold_out: float = 0.0) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """What a .npz holds of a split: images or values, the first of IMAGE_KEYS, (N, ...); labels, the first of LABEL_KEYS, (N,) or
    None; and `features`, the names of the values' columns, (F,) or None. x_test and y_test, where present, are its test split,
    else the share `hold_out`.

    Raises NoTestSplit where x_test is missing, and ValueError for a file without images or that is no .npz."""
    with load(path) as file:
        if split == "test" and "x_test" not in file and not hold_out:
            raise NoTestSplit(f"split: expected 'train' or 'all' for {path}, without x_test among {', '.join(file)}, got 'test'")
        images, labels = _pick(file, path, split if "x_test" in file else "train")
        if "x_test" not in file:
            images, labels = split_arrays(images, labels, split, hold_out)
        if split == "all" and "x_test" in file:
            more_images, more_labels = _pick(file, path, "test")
            images = np.concatenate([images, more_images])
            labels = None if labels is None or more_labels is None else np.concatenate([labels, more_labels])
        return images, labels, member(file, "features", path) if "features" in file else None


def split_arrays(array: np.ndarray, labels: Any, split: str, hold_out: float) -> tuple[np.ndarray, Any]:
    """The rows of a split, of which the share `hold_out` is held out, and their labels, where there are any. Raises ValueError as
    `check_labels` does, and NoTestSplit for "test" of too few."""
    if not hold_out:
        return array, labels
    labels = None if labels is None else check_labels(labels, len(array))
    rows = rows_of_split(split, hold_out, len(array), labels)
    return array[rows], None if labels is None else labels[rows]


def check_shape(array: np.ndarray, name: str) -> None:
    """Raises ValueError, with the array's `name`, unless these are images, one at least."""
    to_nchw(array)
    if array.size == 0:
        raise ValueError(f"source: expected at least one image, got {name} of shape {array.shape}")


def check_labels(labels: Any, n: int) -> np.ndarray:
    """Labels, an array or tensor (n,) or (n, 1) of any integer type, as int64 (n,). Raises ValueError where there are not n of
    them, or they are not whole numbers >= 0."""
    labels = as_numpy(labels)
    if labels.shape not in ((n,), (n, 1)):
        raise ValueError(f"labels: expected shape ({n},), one for each image, got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels: expected whole numbers >= 0, got {labels.dtype}")
    if labels.min() < 0:
        hidden = "; leave out the samples without a label, or give none" if labels.min() == -1 else ""
        raise ValueError(f"labels: expected whole numbers >= 0, got a minimum of {labels.min()}{hidden}")
    if labels.max() >= max(MOST_CLASSES, n):
        raise ValueError(f"labels: expected classes numbered from 0, no more than there are samples, got {labels.max()}")
    return labels.reshape(n).astype(np.int64)


def _convert(array: np.ndarray, convert: Convert) -> np.ndarray:
    if array.dtype == np.uint8 and convert is from_array:
        images = np.ascontiguousarray(from_array(array))
        return images if images.flags.writeable else images.copy()  # torch wants writable memory
    with _saying_what_is_not_guessed(array):
        return np.concatenate([convert(array[i : i + CHUNK]) for i in range(0, len(array), CHUNK)])


@contextmanager
def _saying_what_is_not_guessed(array: np.ndarray) -> Iterator[None]:
    """Errors on reading images name the kind that the array may have been meant to be of."""
    try:
        yield
    except ValueError as error:
        if not 2 <= array.ndim <= 5 or not str(error).startswith("images"):
            raise
        raise ValueError(
            f"{error}; a table (N, F) or signals (N, C, L), and other arrays (N, C, …), are read with kind 'values'"
        ) from None


def _pick(file: Any, path: Path, split: str) -> tuple[np.ndarray, np.ndarray | None]:
    image_keys, label_keys = (("x_test",), ("y_test",)) if split == "test" else (IMAGE_KEYS, LABEL_KEYS)
    images = next((member(file, key, path) for key in image_keys if key in file), None)
    labels = next((member(file, key, path) for key in label_keys if key in file), None)
    if images is None:
        raise ValueError(f"source: expected images in {path} under {' or '.join(image_keys)}, got the keys {', '.join(file)}")
    return images, labels


def load(path: Path) -> Any:
    """A .npy as a memory map, or the opened .npz. Raises ValueError for a file that is neither, or holds Python objects."""
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise ValueError(f"source: expected a numpy file, got {shown(str(path))}, which is no regular file")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy evaluates the header: what is hostile raises nearly everything
        raise ValueError(f"source: expected a numpy file, got {shown(str(path))}: {reason(error)}") from error


def member(file: Any, key: str, path: Path) -> np.ndarray:
    """An array of an opened .npz. Raises ValueError for one that is damaged, holds Python objects, or would be larger than what
    its file holds or than the free memory."""
    name = f"{key} in {shown(str(path))}"
    stored = key if key in file.zip.namelist() else f"{key}.npy"
    size = file.zip.getinfo(stored).file_size
    if size > free_memory(torch.device("cpu")):
        raise ValueError(f"source: expected an array that fits the memory, got {name} of {size:,} bytes unpacked")
    try:
        with file.zip.open(stored) as content:
            read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[np.lib.format.read_magic(content)[0]](content)
        promised = math.prod(shape) * dtype.itemsize
        if not dtype.hasobject and not 0 <= promised <= size:
            raise ValueError(f"it promises {promised:,} bytes and holds {size:,}")
        return file[key]
    except Exception as error:  # as above
        raise ValueError(f"source: expected an array, got {name}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """The beginning of an error's message, in one line."""
    return shown(textwrap.shorten(str(error) or type(error).__name__, 120))[1:-1]


def is_values(array: np.ndarray, kind: str) -> bool:
    """Whether the array is read as values: with kind "auto" where it is floating and has two dimensions, whatever it holds."""
    return kind == "values" or (kind == "auto" and array.ndim == 2 and array.dtype.kind == "f")


def check_values(array: np.ndarray, name: str) -> None:
    """Raises ValueError unless these are the rows of a table, (N, F), signals, (N, C, L), or of two or three dimensions,
    (N, C, H, W) or (N, C, D, H, W), one at least."""
    if not 2 <= array.ndim <= 5:
        expected = "(N, F), a table, (N, C, L), signals, (N, C, H, W) or (N, C, D, H, W)"
        raise ValueError(f"values: expected shape {expected}, got {array.shape}")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"values: expected real numbers, got {array.dtype}")
    if array.size == 0:
        raise ValueError(f"source: expected at least one value, got {name} of shape {array.shape}")


def to_values(array: np.ndarray) -> np.ndarray:
    """The array in fp32. Raises ValueError, naming the column, for a number that is not finite in fp32."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, order="C")
    bad = ~np.isfinite(values)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        given = f"{array[index]} in column {index[1]}"
        raise ValueError(f"values: expected finite numbers in fp32, got {given}: leave out such rows, or fill them")
    return values


def check_features(features: np.ndarray, array: np.ndarray) -> tuple[str, ...]:
    """The names of the features or channels of an array of values, strings (F,). Raises ValueError unless each has one."""
    if features.shape != (array.shape[1],) or features.dtype.kind != "U":
        given = f"{features.dtype} {features.shape}"
        raise ValueError(f"features: expected {array.shape[1]} names, one for each feature or channel, got {given}")
    return tuple(features.tolist())
