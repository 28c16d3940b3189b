"""Plots of values, of the data beside samples of a model. They need matplotlib."""

from pathlib import Path

import torch
from torch import Tensor

from fastgen.atomic import write_whole

SIGNALS = 6  # of each kind


def plot_values(path: Path, real: Tensor, drawn: Tensor, labels: Tensor | None) -> bool:
    """Writes a PNG of data, `real`, beside samples, `drawn`, each fp32 (N, C, *S) in a network's units, with the labels (N,) of
    both. Rows of a table (S = 1) are shown in the plane of the data's first two principal components, signals as lines, a colour
    a channel, and what has two or three dimensions by its first channel, of volumes the slice in the middle. Returns False, and
    writes nothing, where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    plot = _planes if real.dim() > 3 else _rows if real.shape[2] == 1 else _signals
    figure = Figure(figsize=(8, 4), layout="constrained")
    plot(figure, real, drawn, None if labels is None else labels.numpy())
    write_whole(path, lambda file: figure.savefig(file, dpi=100, format="png"))
    return True


def _rows(figure, real: Tensor, drawn: Tensor, labels) -> None:
    center, directions = _principal(real.flatten(1))
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, name, rows in zip(panels, ("real", "drawn"), (real, drawn), strict=True):
        x, y = ((rows.flatten(1) - center) @ directions).T
        axes.scatter(x, y, s=8, alpha=0.6, **({} if labels is None else {"c": labels, "cmap": "viridis"}))
        axes.set(title=f"{name}, {len(rows)} rows", xlabel="first principal component")
    panels[0].set(ylabel="second")


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean (F,) and the first two principal directions (F, 2) of rows (N, F); zeros where there is no second."""
    center = rows.mean(0)
    directions = torch.linalg.svd(rows - center, full_matrices=False).Vh[:2].T
    return center, torch.nn.functional.pad(directions, (0, 2 - directions.shape[1]))


def _signals(figure, real: Tensor, drawn: Tensor, labels) -> None:
    panels = figure.subplots(SIGNALS, 2, sharex=True, sharey=True, squeeze=False)
    for column, (name, signals) in enumerate((("real", real), ("drawn", drawn))):
        for i in range(SIGNALS):
            axes = panels[i, column]
            if i < len(signals):
                axes.plot(signals[i].T, linewidth=0.8)
                axes.set(ylabel="" if labels is None or column else str(labels[i]), yticks=[])
        panels[0, column].set(title=name)


def _planes(figure, real: Tensor, drawn: Tensor, labels) -> None:
    real, drawn = (x[:, 0] if x.dim() == 4 else x[:, 0, x.shape[2] // 2] for x in (real, drawn))
    panels = figure.subplots(2, SIGNALS, squeeze=False)
    for row, (name, planes) in enumerate((("real", real), ("drawn", drawn))):
        for i, axes in enumerate(panels[row]):
            axes.set_axis_off()
            if i < len(planes):
                axes.imshow(planes[i].numpy(), vmin=float(real.min()), vmax=float(real.max()), cmap="gray")
                axes.set_title(name if labels is None else f"{name}, {labels[i]}", fontsize=8)
