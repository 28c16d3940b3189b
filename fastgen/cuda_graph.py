"""Work on a GPU recorded as one CUDA graph: launched at once, however many kernels it has."""

from collections.abc import Callable

import torch
from torch import Tensor


class Graphed:
    """function(*inputs) -> tensor, where inputs are tensors on the GPU, or None. The first call runs the function and records it;
    inputs of the same shapes are then replayed, others run the function. What a replay returns is overwritten by the next.

    The function must not wait for the device, and must enter autocast itself: copies of weights that autocast keeps outside of
    the recording would be gone at the replay."""

    def __init__(self, function: Callable[..., Tensor]):
        self.function = function
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        if self.graph is None:
            self._record(inputs)
        if [_shape(x) for x in inputs] != [_shape(x) for x in self.inputs]:
            return self.function(*inputs)
        for kept, x in zip(self.inputs, inputs, strict=True):
            if kept is not None and x is not None:
                kept.copy_(x)
        assert self.graph is not None
        self.graph.replay()
        return self.output

    def _record(self, inputs: tuple[Tensor | None, ...]) -> None:
        self.inputs = [None if x is None else x.clone() for x in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what happens at the first call alone, such as choosing tiles, is not to be recorded
            self.function(*self.inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.output = self.function(*self.inputs)
        self.graph = graph


def _shape(x: Tensor | None) -> torch.Size | None:
    return None if x is None else x.shape
