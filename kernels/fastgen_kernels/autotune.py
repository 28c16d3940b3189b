"""The fastest of several ways to launch an op.

By default the first, which the op's own rule puts there: nothing is tried, and the first step is as fast as the others. With
FASTGEN_AUTOTUNE=1 in the environment, read once at import, each way is timed on the first call of its kind in the process.
"""

import os
import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median
from typing import TypeVar

import torch

_SWITCH = os.environ.get("FASTGEN_AUTOTUNE", "0")
if _SWITCH not in ("0", "1"):
    raise ValueError(f"FASTGEN_AUTOTUNE: expected 0 or 1, got {_SWITCH!r}")
_searching = _SWITCH == "1"
_found: dict[Hashable, int] = {}

Way = TypeVar("Way")


def fastest(kind: Hashable, ways: Sequence[Way], launch: Callable[[Way], None]) -> Way:
    """One of the ways. kind: what the choice depends on, such as the op, the device, dtypes and sizes. launch: may be called any
    number of times. While a CUDA graph is captured nothing is timed, and what was not searched before is the first."""
    if not _searching or len(ways) == 1:
        return ways[0]
    if kind not in _found:
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return ways[0]
        times = [_seconds(launch, way) for way in ways]
        _found[kind] = times.index(min(times))
    return ways[_found[kind]]


def _seconds(launch: Callable[[Way], None], way: Way) -> float:
    """The median of five launches, after one that compiles."""
    launch(way)
    return median(_once(launch, way) for _ in range(5))


def _once(launch: Callable[[Way], None], way: Way) -> float:
    if not torch.cuda.is_available():  # in the interpreter
        start = time.perf_counter()
        launch(way)
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    launch(way)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
