"""The data that a configuration trains on, as its network sees them."""

import hashlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastgen.config.schema import ConvVAEConfig, DataConfig, TrainConfig
from fastgen.data import SampleDataset, open_dataset, open_held_out
from fastgen.data.arrays import ArraySource
from fastgen.data.dataset import Relabelled, Unlabelled
from fastgen.data.folder import FolderSource
from fastgen.data.hugging_face import is_saved
from fastgen.data.indexed import IndexedDataset
from fastgen.data.packaged import SETS, TABLES
from fastgen.data.units import Standardized, Values, measure
from fastgen.errors import expect
from fastgen.models.build import refuses_labels, side_multiple
from fastgen.runs.run import find_values, num_classes_of

LARGEST = 128  # pixels on a side that are chosen where none are given


def open_training_data(config: TrainConfig, run: Path | None = None) -> tuple[SampleDataset, SampleDataset | None, Values | None]:
    """The data of `config.data` as the model takes them; the held-out split, None where the source has none; and the units of
    values, None for images: measured, or those of the run that is resumed.

    run: the folder of that run. Raises ValueError without a source, and whatever `open_dataset` does."""
    settings = config.data
    expect("data.source", settings.source, settings.source, "images or a table: give a folder or a file, --data.source PATH")
    values = find_values(run) if run else None
    options = reading(settings) | {"table": None if values is None else values.table}
    data = open_dataset(settings.source, **options)
    held_out = open_held_out(settings.source, data, **options)
    kept = labels_in_use(data)
    if kept is not None and (run is None or num_classes_of(run) == len(kept)):  # older runs have every number as a class
        data, held_out = Relabelled(data, kept), None if held_out is None else Relabelled(held_out, kept)
    inside = indexed(data)
    if isinstance(inside, IndexedDataset) and inside.kind == "values":
        values = values or measure(inside)
        data, held_out = Standardized(data, values), None if held_out is None else Standardized(held_out, values)
    if refuses_labels(config):
        data, held_out = Unlabelled(data), None if held_out is None else Unlabelled(held_out)
    return data, held_out, values


def labels_in_use(data: SampleDataset) -> torch.Tensor | None:
    """The labels of arrays without names that occur, int64 (K,), where they skip numbers; None where they do not."""
    source = data.source if isinstance(data, IndexedDataset) else None
    if not isinstance(source, ArraySource) or source.labels is None or source.table is not None:
        return None
    kept = source.labels.unique()
    return kept if len(kept) < len(source.classes or []) else None


def indexed(data: SampleDataset) -> SampleDataset:
    """What is inside of the data as the model takes them."""
    while isinstance(data, Standardized | Relabelled | Unlabelled):
        data = data.data
    return data


def sized(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The configuration with `data.size` where it has none and needs one, since the images of a folder have several sizes, or one
    that the model cannot take; and a line that says which and why, "" where nothing is chosen."""
    settings, folder = config.data, Path(config.data.source)
    named = settings.source in ("", *SETS, *TABLES)
    if settings.size is not None or named or not folder.is_dir() or is_saved(folder):
        return config, ""
    sizes = FolderSource(folder, channels=1).sizes()
    multiple, square = side_multiple(config), isinstance(config.model, ConvVAEConfig)
    fits = all(w % multiple == h % multiple == 0 and (w == h or not square) for w, h in sizes)
    if len(set(sizes)) < 2 and fits:
        return config, ""
    reached = sorted(map(min, sizes))[len(sizes) // 10]
    size = max(multiple, min(reached, LARGEST) // multiple * multiple)
    if len(set(sizes)) > 1:
        why = f"images are of {len(set(sizes))} sizes, on the shorter side {min(map(min, sizes))} to {max(map(min, sizes))}"
        why += f", 9 of 10 with at least {reached}"
    else:
        why = f"images are of {sizes[0][0]}x{sizes[0][1]}"
    why += f"; the model takes multiples of {multiple}" if multiple > 1 else ""
    return replace(config, data=replace(settings, size=size)), f"data.size: {size}, since none is given and {why}"


def reading(settings: DataConfig) -> dict[str, Any]:
    """The settings of how data are read, as `open_dataset` takes them."""
    names = ("size", "channels", "kind", "hold_out", "label", "exclude", "categories", "missing")
    return {name: getattr(settings, name) for name in names}


def describe_data(data: SampleDataset, held_out: SampleDataset | None) -> str:
    """A line on what is trained on: "3,000 images of 3x32x32 in 2 classes, 300 held out, scaled from 64x64"."""
    classes = "" if data.classes is None else f" in {len(data.classes)} classes"
    if isinstance(data, Relabelled) or (isinstance(data, Standardized) and isinstance(data.data, Relabelled)):
        classes += f", the labels {textwrap.shorten(', '.join(data.classes or []), 60)}"
    share = "" if held_out is None else f", {len(held_out):,} held out"
    what = f"{data.kind} of {'x'.join(map(str, data.shape))}" if data.table is None else f"rows of {data.table}"
    text = f"{len(data):,} {what}{classes}{share}"
    source = data.source if isinstance(data, IndexedDataset) else None
    original = source.original_size if isinstance(source, FolderSource) else None
    if original is not None and original != (data.shape[2], data.shape[1]):
        text += f", cropped to a square and scaled from {original[0]}x{original[1]}"
    return text


def digest_of(data: SampleDataset, device: torch.device, workers: int | None) -> str | None:
    """A digest of a batch of 16 samples that are spread over the data: that of other data, or of more, is another. None for data
    that are not read by index, or not the same at every read."""
    inside = indexed(data)
    if not isinstance(inside, IndexedDataset) or not inside.source.fixed:
        return None
    x, label = next(inside.batches(16, device=device, workers=workers))
    content = x.cpu().numpy().tobytes() + (b"" if label is None else label.cpu().numpy().tobytes())
    return hashlib.sha256(content).hexdigest()


@contextmanager
def expecting_readers() -> Iterator[None]:
    """A context of one line for what torch raises, anywhere, where a process that reads data was ended by somebody else, as by a
    system that is out of memory. Raises ChildProcessError."""
    try:
        yield
    except (RuntimeError, EOFError, ConnectionResetError) as error:  # the latter while it handed over what it had read
        if isinstance(error, RuntimeError) and not ended_reader(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ChildProcessError(f"data.workers: expected processes that read until the end, got: {reason}") from None


def ended_reader(error: RuntimeError) -> bool:
    """Whether torch raises it because a process that reads data ended."""
    return "DataLoader worker" in str(error)


def report_broken(data: SampleDataset) -> None:
    """Names the images that could not be read and were replaced by others."""
    for name, reason in data.broken[:10]:
        print(f"skipped {name}: {reason}", file=sys.stderr)
    if len(data.broken) > 10:
        print(f"skipped {len(data.broken)} broken images in all", file=sys.stderr)
