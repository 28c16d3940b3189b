"""A plot of an op: how many times as fast as each peer, and how near to its roof."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks.report.report import CLOCK_NAMES, Line, charted, peer_names

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLORS = ("#4269d0", "#efb118", "#a463f2", "#6cc5b0")  # eager, torch.compile, named peers


def plot(some: Sequence[Line], path: Path, title: str) -> None:
    """Writes a PNG of the lines of one op."""
    shown = charted(some)
    with_roof = any(line.share is not None for line in shown)
    peers = peer_names(shown)
    figure, axes = plt.subplots(
        1,
        1 + with_roof,
        figsize=(8 + 4 * with_roof, 1.8 + 0.16 * (len(peers) + 1.2) * len(shown)),
        width_ratios=[2, 1][: 1 + with_roof],
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    _ratios(axes[0, 0], shown, peers)
    if with_roof:
        _shares(axes[0, 1], shown)
    axes[0, 0].set_yticks(range(len(shown)), [line.case for line in shown])
    axes[0, 0].invert_yaxis()
    axes[0, 0].margins(y=0.02)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(peers), fontsize=8, frameon=False
    )
    figure.suptitle(f"{title}\n{CLOCK_NAMES[shown[0].clock]}", fontsize=10)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=120, format="png")
    temporary.replace(path)
    plt.close(figure)


def _ratios(axes, shown: Sequence[Line], peers: Sequence[str]) -> None:
    height = 0.8 / len(peers)
    for i, (peer, color) in enumerate(zip(peers, COLORS, strict=False)):
        have = [(y, line.peers[peer]) for y, line in enumerate(shown) if peer in line.peers]
        at = np.array([y for y, _ in have]) + (i - (len(peers) - 1) / 2) * height
        ratios = np.array([ratio for _, ratio in have])
        axes.barh(at, np.log2(ratios), height, color=color, label=f"than {peer}")
        for y, ratio in zip(at, ratios, strict=True):
            side = "left" if ratio >= 1 else "right"
            axes.annotate(f"{ratio:.2f}x", (np.log2(ratio), y), (3 if ratio >= 1 else -3, 0), textcoords="offset points",
                          ha=side, va="center", fontsize=7, color="#b3261e" if ratio < 1 else "#222222")  # fmt: skip
    low = min([-1.0, *(np.log2(ratio) for line in shown for ratio in line.peers.values())])
    high = max([1.0, *(np.log2(ratio) for line in shown for ratio in line.peers.values())])
    low, high = low - 0.12 * (high - low), high + 0.12 * (high - low)
    axes.axvspan(low, 0, color="#b3261e", alpha=0.06, linewidth=0)
    axes.axvline(0, color="#222222", linewidth=0.8)
    axes.set_xlim(low, high)
    ticks = range(int(np.ceil(low)), int(np.floor(high)) + 1)
    axes.set_xticks(ticks, [f"{2.0**tick:g}x" for tick in ticks])
    axes.set_xlabel("slower  ←  times as fast  →  faster")
    axes.spines[["top", "right"]].set_visible(False)


def _shares(axes, shown: Sequence[Line]) -> None:
    shares = [(y, 100 * line.share, line.roof) for y, line in enumerate(shown) if line.share is not None]
    axes.barh([y for y, _, _ in shares], [share for _, share, _ in shares], 0.6, color="#59636e")
    longest = max([100.0, *(share for _, share, _ in shares)])
    for y, share, roof in shares:
        text = f"{share:.0f}% ({roof.removesuffix(' roof')})"
        axes.annotate(text, (longest, y), (5, 0), textcoords="offset points", va="center", fontsize=7)
    axes.axvline(100, color="#222222", linewidth=0.8)
    axes.set_xlim(0, 1.4 * longest)
    axes.set_xlabel("share of the roof, %")
    axes.spines[["top", "right"]].set_visible(False)
