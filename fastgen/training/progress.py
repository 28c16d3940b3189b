"""Metrics and the progress bar of a training run, written without waiting for the device."""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.config.schema import TrainConfig
from fastgen.progress_bar import progress_bar
from fastgen.training.metrics_log import MetricsLog, open_writer
from fastgen.training.ranks import mean, rank


class Progress:
    """The metrics of a run, in metrics.jsonl and where `config.log_to` says, and `bar`, a progress bar; all by the first rank
    alone.

    The mean loss is copied from the device while training goes on. `coming` is the copy that is under way, None where there is
    none; it is logged once it has come, at the next loss at the latest, so that the host runs ahead of a GPU by at most two
    intervals of `config.log_every`.
    """

    def __init__(self, out: Path, step: int, config: TrainConfig):
        writes = rank() == 0
        self._out, self._config = out, config
        self._log = MetricsLog(out / "metrics.jsonl", step) if writes else None
        self._writer = open_writer(config, out, step) if writes else None
        self.bar = progress_bar(config.steps, initial=step, shown=None if writes else False)
        self.coming: tuple[Reading, int, dict[str, Any]] | None = None
        self._since = time.monotonic()

    def loss(self, losses: list[Tensor], *, images: int, step: int, **values: Any) -> None:
        """Begins to log the mean over the steps and the ranks of `losses`, 0-dim tensors, and `values` beside it.

        images: the number of samples that went into them, for images_per_second. Every rank must call it. Raises
        FloatingPointError as `settle` does."""
        self.settle()
        self.coming = Reading(mean(torch.stack(losses).mean())), images, {"step": step, **values}
        self.settle(wait=False)

    def announce(self, data: str, model: nn.Module, precision: str, device: torch.device) -> None:
        """Says, before the first step, what is trained on what, and how."""
        config, parameters = self._config, sum(p.numel() for p in model.parameters())
        self._say(f"data: {data}")
        self._say(
            f"model: {type(model).__name__} of {parameters:,} parameters, {precision} on {device}; weights, gradients, optimizer "
            f"and averages take {24 * parameters / 1e9:.2g} GB, the activations of a batch come on top"
        )
        self._say(f"steps: {config.steps:,} of {config.batch_size} samples; lr {config.lr:g} after a warm-up of {config.warmup}")

    def first_step(self, seconds: float, steps: int) -> None:
        """Says how long `steps` more will take, from the time of the first, where that is long enough to tell."""
        if seconds >= 1:
            self._say(f"the first step took {seconds:.3g} s: {steps:,} more take at most about {duration(seconds * steps)}")

    def _say(self, text: str) -> None:
        if self._log is not None:
            self.bar.write(text, file=sys.stderr)

    def write(self, *, step: int, **values: Any) -> None:
        """Logs values of a step that were waited for, and the pictures of samples/ with its number. The time that they took does
        not count in images_per_second."""
        self.settle()
        self._write(step=step, **values)
        if self._writer is not None:
            for path in sorted((self._out / "samples").glob(f"{step:08d}*.png")):  # 00000500.png, 00000500-reconstructed.png
                self._writer.image(path.stem.partition("-")[2] or "samples", path, step)
        self._since = time.monotonic()

    def look(self, preview: Callable[[int], dict[str, float]], step: int) -> None:
        """Calls preview(step), and logs what it returns. What fails there is said, and training goes on."""
        attempt(f"samples at step {step}", lambda: self.write(step=step, **preview(step)))

    def close(self) -> None:
        """Closes the bar and the logs."""
        self.bar.close()
        for log in (self._log, self._writer):
            if log is not None:
                log.close()

    def settle(self, *, wait: bool = True) -> None:
        """Logs the loss that is on its way from the device, where one is, and waits for it; or, without `wait`, only where it has
        come. Raises FloatingPointError for one that is not finite."""
        if self.coming is None or not (wait or self.coming[0].has_come()):
            return
        (reading, images, values), self.coming = self.coming, None
        loss, now = reading.value(), time.monotonic()
        expect_finite(loss, values["step"])
        speed, self._since = images / (now - self._since), now
        self._write(**values, loss=loss, images_per_second=round(speed, 1))
        self.bar.set_postfix_str(f"loss {loss:.4g}, {speed:.0f} images/s")
        if self._log is not None and self.bar.disable:  # no terminal: a line
            steps = self._config.steps
            left = duration((steps - values["step"]) * self._config.batch_size / speed)
            line = f"step {values['step']:,} of {steps:,}: loss {loss:.4g}, {speed:.3g} images/s, {left} left"
            print(line, file=sys.stderr, flush=True)

    def _write(self, **values: Any) -> None:
        for log in (self._log, self._writer):
            if log is not None:
                log.write(**values)


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "12 min", "3.5 h", "5.2 days"."""
    for unit, size in (("days", 86_400), ("h", 3_600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


class Reading:
    """A 0-dim tensor on its way from the device to the host."""

    def __init__(self, value: Tensor):
        self._event = torch.cuda.Event() if value.is_cuda else None
        self._host = value
        if self._event is not None:
            self._host = torch.empty_like(value, device="cpu", pin_memory=True).copy_(value, non_blocking=True)
            self._event.record()

    def has_come(self) -> bool:
        """Whether `value` need not wait."""
        return self._event is None or self._event.query()

    def value(self) -> float:
        """The number, which this waits for."""
        if self._event is not None:
            self._event.synchronize()
        return self._host.item()


def attempt(what: str, do: Callable[[], object]) -> object:
    """do(), which training can do without: an error is said in a line, and goes no further; None is returned then."""
    try:
        return do()
    except Exception as error:
        print(f"no {what}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


def report_changes(step: int, changed: dict[str, tuple[Any, Any]], *, other_data: bool) -> None:
    """Says what a run goes on with from `step` that is not as it was: its settings, {"lr": (before, now)}, or its data."""
    for name, (before, now) in changed.items():
        print(f"{name} is {now} from step {step} on, and was {before}", file=sys.stderr)
    if other_data:
        print(f"the data from step {step} on are others than those that the run was trained on", file=sys.stderr)


def expect_finite(loss: float, step: int) -> None:
    """Raises FloatingPointError for a loss that is infinite or NaN, so that the weights it led to are not saved."""
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss is {loss} by step {step}: a lower lr may help")
