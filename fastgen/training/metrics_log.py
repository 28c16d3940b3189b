"""Where a run's metrics go: metrics.jsonl and the loss curve; TensorBoard or Weights & Biases beside them."""

import json
import os
import uuid
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fastgen.atomic import is_no_room, no_room, write_text, write_whole
from fastgen.config.files import to_dict
from fastgen.config.schema import TrainConfig
from fastgen.errors import expect_package


class MetricsLog:
    """metrics.jsonl: a JSON object a line, each with its `step`. On opening, lines past `step` are dropped: their steps come
    again.

    Raises ValueError for a file that is not such, OSError where the disk is full."""

    def __init__(self, path: Path, step: int):
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._path, self._file = path, path.open("ab", buffering=0)

    def write(self, **values: Any) -> None:
        """Appends a line. Raises OSError where the disk is full."""
        line = (json.dumps(values) + "\n").encode()
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            raise no_room(self._path, len(line)) if is_no_room(error) else error from None

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON objects, such as metrics.jsonl, none where there is no file; a last one that a crash cut off is
    left out. Raises ValueError for a line that is not JSON."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object a line: {error}") from None


def plot_loss(metrics: Path, out: Path) -> bool:
    """Draws the loss over the steps, and the held-out loss where there is one, as a PNG. metrics: a metrics.jsonl. Returns
    whether it did: not without matplotlib, and not without a line."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines = read_metrics(metrics)
    if not lines:
        return False
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, style in (("loss", "-"), ("held_out_loss", "o-")):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), style, markersize=3, linewidth=1, label=name.replace("_", " "))
    axes.set(xlabel="step", ylabel="loss per sample")
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(out, lambda file: figure.savefig(file, dpi=120, format="png"))
    return True


class Writer(Protocol):
    """Where metrics and pictures go beside metrics.jsonl."""

    def write(self, *, step: int, **values: float) -> None:
        """Writes numbers of a step, by their names."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Writes a picture of a step, a PNG at `path`."""

    def close(self) -> None:
        """Writes what is pending, and ends."""


def open_writer(config: TrainConfig, out: Path, step: int) -> Writer | None:
    """The writer that `config.log_to` names, for a run in the folder `out` that goes on from `step`; None for "none". Raises
    ValueError where W&B cannot start."""
    if config.log_to == "none":
        return None
    return TensorBoard(out, step) if config.log_to == "tensorboard" else WeightsAndBiases(config, out, step)


def expect_writer(name: str) -> None:
    """Raises ModuleNotFoundError where the package that the writer needs is not installed."""
    if name != "none":
        expect_package(name, f"log_to {name}")


class TensorBoard:
    """Event files in the run's folder `tensorboard`. TensorBoard hides what an earlier process wrote past `step`."""

    def __init__(self, out: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def write(self, *, step: int, **values: float) -> None:
        """Adds a scalar for each value, and flushes."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def image(self, name: str, path: Path, step: int) -> None:
        """Adds the image file at `path`, as RGB, and flushes."""
        with Image.open(path) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        """Writes pending events and closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A W&B run with files under the run's folder `wandb`. W&B's own environment variables say where it goes: WANDB_PROJECT
    ("fastgen" unless set), WANDB_MODE=offline …

    A run that goes on keeps its id, in the file `wandb-id`. Raises ValueError where W&B cannot start, as without a login."""

    def __init__(self, config: TrainConfig, out: Path, step: int):
        import wandb

        kept = out / "wandb-id"
        if step == 0 or not kept.exists():
            write_text(kept, uuid.uuid4().hex)
        project = os.environ.get("WANDB_PROJECT", "fastgen")
        settings: dict[str, Any] = {"name": out.name, "id": kept.read_text(), "resume": "allow", "config": to_dict(config)}
        try:
            self._run = wandb.init(project=project, dir=str(out), **settings)
        except wandb.Error as error:
            raise ValueError(f"log_to: wandb cannot start: {error}") from error
        self._image = wandb.Image

    def write(self, *, step: int, **values: float) -> None:
        """Logs the values at this step."""
        self._run.log(values, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Logs the image file at `path`."""
        self._run.log({name: self._image(str(path))}, step=step)

    def close(self) -> None:
        """Finishes the W&B run."""
        self._run.finish()
