"""Stopwatches in processes of their own, where each variant runs as its user runs it: with threads and an allocator that no
other variant has set."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager

from benchmarks.harness.clocks import Call, Stopwatch, wall

_stopwatch: Stopwatch


@contextmanager
def apart(makers: dict[str, Callable[[], Call]]) -> Iterator[dict[str, Stopwatch]]:
    """A stopwatch for what each maker makes in its own process; makers can be pickled. The processes end with the context."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pools = {name: stack.enter_context(ProcessPoolExecutor(1, spawn)) for name in makers}
        for name, maker in makers.items():
            pools[name].submit(_make, maker).result()
        yield {name: lambda pool=pool: pool.submit(_read).result() for name, pool in pools.items()}


def _make(maker: Callable[[], Call]) -> None:
    global _stopwatch
    _stopwatch = wall([maker()])


def _read() -> float:
    return _stopwatch()
