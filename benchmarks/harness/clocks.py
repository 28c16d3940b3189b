"""Three clocks for calls that run on a GPU, and which Triton kernels a call launches.

wall:    the host's clock around many calls, waiting for the device at both ends: what eager code pays, its overhead included.
cold:    the GPU's clock around one call whose data is not in the L2 cache: the kernels alone.
graph:   the GPU's clock around a CUDA graph of many calls, each on tensors of its own: the kernels and the gaps between them.

Each takes the calls and gives a stopwatch, which reads the seconds per call when it is called. cold and graph have to be made and
read on a stream other than the default one, the one that made the tensors too: only such a stream can be captured, and
autograd runs a backward pass on the stream of its forward pass.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Call = Callable[[], object]
Stopwatch = Callable[[], float]

_LONGEST_WAIT = 2**27  # cycles, about 70 ms


def wall(calls: Sequence[Call]) -> Stopwatch:
    """Seconds per call by the host's clock, of all calls one after another."""
    def seconds() -> float:
        _synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        _synchronize()
        return (time.perf_counter() - start) / len(calls)

    return seconds


def cold(calls: Sequence[Call]) -> Stopwatch:
    """Seconds of the first call by the GPU's clock, after a write as large as the L2 cache."""
    cache = _as_large_as_the_cache()
    return lambda: _on_device(calls[0], cache)


def graph(calls: Sequence[Call]) -> Stopwatch:
    """The calls have to have run before: nothing can be compiled or loaded while a graph is captured."""
    cache, captured = _as_large_as_the_cache(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured, stream=torch.cuda.current_stream()):
        # Outputs live until all calls are captured: a later call would otherwise write to memory that is still in the cache.
        outputs = [call() for call in calls]
    del outputs
    return lambda: _on_device(captured.replay, cache) / len(calls)


CLOCKS: dict[str, Callable[[Sequence[Call]], Stopwatch]] = {"cold": cold, "graph": graph, "wall": wall}


@contextmanager
def launches() -> Iterator[list[str]]:
    """A list that fills with the names of the Triton kernels that are launched inside, not those of torch.compile."""
    from triton import knobs

    names: list[str] = []

    def launched(metadata) -> None:
        names.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(launched)
    try:
        yield names
    finally:
        knobs.runtime.launch_enter_hook.remove(launched)


def l2_bytes() -> int:
    """Size of the GPU's L2 cache."""
    return torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size


def _as_large_as_the_cache() -> torch.Tensor:
    return torch.empty(l2_bytes(), device="cuda")  # fp32: four times the cache


def _on_device(call: Call, cache: torch.Tensor, wait: int = 2**21) -> float:
    """Seconds of a call by the GPU's clock. `wait` is how many cycles the GPU has to wait before it: about a millisecond."""
    cache.fill_(1.0)
    cache.sum()  # or the call would pay for writing back to memory what fill_ left in the cache
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(wait)
    start.record()
    call()
    end.record()
    host_was_first = not start.query()
    end.synchronize()
    if host_was_first:
        return start.elapsed_time(end) / 1e3
    # The GPU began before all of the call was queued, so it may have waited for the host.
    if wait >= _LONGEST_WAIT:
        raise RuntimeError("the call waits for the GPU, or takes the host longer to queue than 70 ms")
    return _on_device(call, cache, 4 * wait)


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
