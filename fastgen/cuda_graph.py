"""Work on a GPU recorded as one CUDA graph: a training step's thousand launches, or a sampler's, for the price of one."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3


class Graphed:
    """function(*inputs) -> tensor, recorded once and replayed.

    inputs: tensors on the GPU, or None; others than of the shapes that were recorded run the function as it is. All else that it
    reads must lie in tensors that stay where they are, and change there: weights, the optimizer's state and learning rate; a
    key's step is in the key. The result is a copy. The function must not wait for the device. It must enter autocast itself:
    copies of weights that autocast keeps outside of the recording would be gone at the replay. Gradients must be None before and
    after, so that they lie in the graph's own memory.

    The first `warm_up` calls run the function as it is, on a side stream: what happens once, such as making the optimizer's state
    and compiling and tuning kernels, is not to be recorded.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    def __init__(self, function: Callable[..., Tensor], *, warm_up: int = 1):
        self._function, self._to_warm_up = function, warm_up
        self._inputs: list[Tensor | None] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if self._to_warm_up > 0:
            self._to_warm_up -= 1
            return on_side_stream(lambda: self._function(*inputs))
        if self._replay is None:
            self._inputs = [None if x is None else x.clone() for x in inputs]
            self._replay = capture(lambda: self._function(*self._inputs))
        if [_shape(x) for x in inputs] != [_shape(x) for x in self._inputs]:
            return self._function(*inputs)
        for static, x in zip(self._inputs, inputs, strict=True):
            if static is not None and x is not None:
                static.copy_(x)
        return self._replay().clone()


def _shape(x: Tensor | None) -> torch.Size | None:
    return None if x is None else x.shape


def on_side_stream(function: Callable[[], Tensor]) -> Tensor:
    """function(), as it will be captured: on another stream than the default one, between what was and will be asked of that."""
    stream, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(stream)
    with torch.cuda.stream(side):
        result = function()
    stream.wait_stream(side)
    result.record_stream(stream)
    return result


def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function that does again, on the same memory, what function() asks of the GPU, and returns the same tensor each time.
    Nothing is computed yet. The default generator of the device goes on from replay to replay."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # a thread may be pinning the next batch meanwhile
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
