"""What a run writes of itself on the way: metrics.jsonl and the loss curve."""

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """metrics.jsonl: a JSON object a line, each with its `step`. Lines past `step`, whose steps come again, are dropped."""

    def __init__(self, path: Path, step: int):
        kept = [line for line in read_metrics(path) if line["step"] <= step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.replace(path)
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics.jsonl; a last one that a crash cut off is left out."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object a line: {error}") from None


def plot_loss(metrics: Path, out: Path) -> bool:
    """The loss over steps, and the held-out loss where there is one, as a PNG. False without matplotlib or a line."""
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
    figure.savefig(out, dpi=120)
    return True
