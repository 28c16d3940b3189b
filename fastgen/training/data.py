"""The data that a configuration trains on, as its network sees them."""

from pathlib import Path

from fastgen.config.schema import TrainConfig
from fastgen.data import ImageDataset, open_dataset
from fastgen.data.held_out import open_held_out
from fastgen.data.indexed import IndexedDataset
from fastgen.data.standardized import Standardized
from fastgen.data.units import Values, measure
from fastgen.data.unlabelled import Unlabelled
from fastgen.errors import expect
from fastgen.models.build import refuses_labels
from fastgen.runs.run import find_values


def open_training_data(config: TrainConfig, run: Path | None = None) -> tuple[ImageDataset, ImageDataset | None, Values | None]:
    """The data, those that are kept out of training where there are some, and the units of what is no image: those of `run`,
    where it is gone on with, or measured. Raises what `open_dataset` does."""
    settings = config.data
    expect("data.source", settings.source, settings.source, "images: give a folder of them, --data.source FOLDER")
    data = open_dataset(settings.source, size=settings.size, channels=settings.channels, kind=settings.kind)
    held_out = open_held_out(settings.source, data, settings.size)
    values = None
    if isinstance(data, IndexedDataset) and data.kind == "values":
        values = (find_values(run) if run else None) or measure(data)
        data, held_out = Standardized(data, values), None if held_out is None else Standardized(held_out, values)
    if refuses_labels(config):
        data, held_out = Unlabelled(data), None if held_out is None else Unlabelled(held_out)
    return data, held_out, values
