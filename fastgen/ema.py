"""The moving average of a model's weights."""

import copy

import torch
from torch import nn


class EMA:
    """`model` is a copy whose parameters follow the trained ones as decay · average + (1 - decay) · weights.

    The decay warms up as (1 + step) / (10 + step), so that the average forgets the initial weights (TensorFlow's
    ExponentialMovingAverage with num_updates).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average: list[torch.Tensor] = list(self.model.parameters())
        self._buffers = list(self.model.buffers())

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._average, list(model.parameters()), 1 - decay)
        for average, buffer in zip(self._buffers, model.buffers(), strict=True):
            average.copy_(buffer)
