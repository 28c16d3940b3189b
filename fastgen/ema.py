"""The moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn

from fastgen.sharding import local


class EMA:
    """`model` is a copy whose parameters follow the trained ones as decay · average + (1 - decay) · weights.

    The decay warms up as (1 + step) / (10 + step), so that the average forgets the initial weights (TensorFlow's
    ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int | Tensor, kept: Tensor | None = None) -> None:
        """Takes in the weights after optimizer step `step`, counted from 0, unless `kept` is False.

        step and kept are 0-dim tensors where they are known on the device alone, which nothing waits for."""
        average, weights = local(self.model.parameters()), local(model.parameters())
        step = torch.as_tensor(step, device=weights[0].device)
        weight = (9 / (10 + step)).clamp(min=1 - self.decay)  # 1 - decay
        if kept is not None:
            weight = weight * kept
        if weight.is_cuda:  # a few launches; lerp by a weight on the device makes one for each parameter
            change = torch._foreach_sub(weights, average)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(average, change)
        else:
            torch._foreach_lerp_(average, weights, [weight] * len(average))
        for buffer, trained in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(trained)
