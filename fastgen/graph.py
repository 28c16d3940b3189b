"""A training step as one CUDA graph: its thousand launches for the price of one."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.config import DiffusersConfig, TrainConfig
from fastgen.errors import expect
from fastgen.ranks import world

Step = Callable[..., Tensor]
WARM_UP = 3


def use_graph(config: TrainConfig, device: torch.device) -> bool:
    """Whether the step is to be a graph: for "auto" where nothing stands against it. Raises ValueError for "on" where it does."""
    against = _obstacle(config, device)
    expect("cuda_graph", config.cuda_graph, config.cuda_graph != "on" or against is None, f"auto or off: {against}")
    return config.cuda_graph != "off" and against is None


def _obstacle(config: TrainConfig, device: torch.device) -> str | None:
    if device.type != "cuda":
        return "the device is no GPU"
    if world() > 1:
        return "several ranks exchange gradients, which is not captured"
    if isinstance(config.model, DiffusersConfig):
        return "the UNet is not fastgen's own, and may wait for the host"
    if getattr(config.model, "checkpointing", False):
        return "checkpointing saves the generators' state on the host"
    return None


class GraphedStep:
    """step(*inputs) -> loss, recorded once and replayed.

    inputs: tensors of the same shapes every time, or None. All else that `step` reads must lie in tensors that stay where they
    are, and change there: weights, the optimizer's state and learning rate; a key's step is in the key. The loss is a copy.
    Gradients must be None before and after a step, so that they lie in the graph's own memory. The first WARM_UP calls run as
    they are, on a side stream: they make the optimizer's state and compile and tune kernels.
    https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture
    """

    def __init__(self, step: Step):
        self._step, self._calls = step, 0
        self._inputs: list[Tensor | None] = []
        self._replay: Callable[[], Tensor] | None = None

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        self._calls += 1
        if self._calls <= WARM_UP:
            return on_side_stream(lambda: self._step(*inputs))
        if self._replay is None:
            self._inputs = [None if x is None else x.clone() for x in inputs]
            self._replay = capture(lambda: self._step(*self._inputs))
        for static, x in zip(self._inputs, inputs, strict=True):
            if static is not None and x is not None:
                static.copy_(x)
        return self._replay().clone()


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
