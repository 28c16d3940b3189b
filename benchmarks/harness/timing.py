"""Timing variants of one job side by side: interleaved, so that a slow second of the machine hits all alike, and by medians."""

import platform
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fastgen.device import computes_bf16


@dataclass(frozen=True)
class Row:
    """The times of one variant."""

    name: str
    median: float  # seconds
    spread: float  # interquartile range over the median
    ratios: dict[str, float]  # a peer's median over this one's: above 1 is faster than the peer


def interleaved(stopwatches: dict[str, Callable[[], float]], *, rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """What the stopwatches read: all in turn, `rounds` times over, after `warmup` rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in stopwatches}
    for i in range(warmup + rounds):
        for name, stopwatch in stopwatches.items():
            reading = stopwatch()
            if i >= warmup:
                seconds[name].append(reading)
    return seconds


def rows(seconds: dict[str, list[float]], peers: dict[str, list[str]]) -> list[Row]:
    """A row for each variant; peers names whom it is compared with."""
    median = {name: statistics.median(values) for name, values in seconds.items()}
    result = []
    for name, values in seconds.items():
        low, _, high = statistics.quantiles(values, n=4)
        ratios = {peer: median[peer] / median[name] for peer in peers.get(name, [])}
        result.append(Row(name, median[name], (high - low) / median[name], ratios))
    return result


def readable(seconds: float) -> str:
    """Three figures and a unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{_figures(seconds / size)} {unit}"
    return f"{_figures(seconds / 1e-9)} ns"


def _figures(x: float) -> str:
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:.0f}"


def machine() -> str:
    """The versions and the processor or GPU that a table of times is of, as one line."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    return f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name and whether it computes in bf16."""
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{names[0] if names else platform.machine()}{' with bf16' if computes_bf16(torch.device('cpu')) else ''}"
