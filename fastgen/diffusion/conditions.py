"""Images that a network sees beside x_t, as further channels (SR3, Saharia et al. 2021, arXiv:2104.07636, section 2.3; Palette,
arXiv:2111.05826): in training they are made from x0.

A condition is condition(x0, key) -> (N, condition.channels(C), H, W) for x0 (N, C, H, W) in [-1, 1]. `CONDITIONS` is the table of
names that configurations use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.config.schema import DiffusionConfig
from fastgen.functional import philox_uniform


class Condition(Protocol):
    """The further input channels that are made from images."""

    def channels(self, channels: int) -> int:
        """How many channels it has for images of `channels`."""
        ...

    def __call__(self, x0: Tensor, key: Tensor) -> Tensor:
        """floating (N, self.channels(C), H, W) of x0 (N, C, H, W) in [-1, 1]; key: int64 (N, 4), for random conditions."""
        ...


@dataclass(frozen=True)
class LowResolution:
    """The mean of each square of factor by factor pixels, repeated over the square: the condition of a model that upscales."""

    factor: int

    def channels(self, channels: int) -> int:
        """As many as the images have."""
        return channels

    def __call__(self, x0: Tensor, key: Tensor) -> Tensor:
        return enlarged(F.avg_pool2d(x0, self.factor), self.factor)


@dataclass(frozen=True)
class Hole:
    """The image with a random rectangle of zeros, and its mask: the condition of a model that inpaints."""

    def channels(self, channels: int) -> int:
        """One more than the images have, for the mask."""
        return channels + 1

    def __call__(self, x0: Tensor, key: Tensor) -> Tensor:
        return with_hole(x0, random_rectangles(key, x0.shape[2], x0.shape[3]))


CONDITIONS: dict[str, Callable[[DiffusionConfig], Condition | None]] = {
    "none": lambda config: None,
    "low_resolution": lambda config: LowResolution(config.factor),
    "hole": lambda config: Hole(),
}


def make_condition(config: DiffusionConfig | None) -> Condition | None:
    """The condition that a configuration asks for; None for a network that sees x_t alone."""
    return None if config is None else CONDITIONS[config.condition](config)


def enlarged(images: Tensor, factor: int) -> Tensor:
    """(N, C, H, W) as (N, C, factor·H, factor·W), every pixel a square."""
    return F.interpolate(images, scale_factor=float(factor), mode="nearest")


def with_hole(images: Tensor, hole: Tensor) -> Tensor:
    """(N, C + 1, H, W): the images, zero where `hole`, bool (N, 1, H, W), is true, and after them 1 there and -1 elsewhere."""
    return torch.cat([images.masked_fill(hole, 0), hole.to(images.dtype) * 2 - 1], dim=1)


def random_rectangles(key: Tensor, height: int, width: int) -> Tensor:
    """Bool (N, 1, height, width), true in a rectangle. The edges are uniform on [-1/4, 5/4] of a side, so that many holes reach
    the image's edge."""
    top, bottom, left, right = (philox_uniform((key.shape[0], 4), key) * 1.5 - 0.25).unbind(1)
    rows = _between(top, bottom, height)  # [N, H]
    columns = _between(left, right, width)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _between(a: Tensor, b: Tensor, side: int) -> Tensor:
    place = (torch.arange(side, device=a.device) + 0.5) / side
    low, high = torch.minimum(a, b)[:, None], torch.maximum(a, b)[:, None]
    return (place > low) & (place < high)


class Beside(nn.Module):
    """net with a condition beside x: (N, C', H, W), for N samples or a whole multiple of them, as guidance asks for."""

    def __init__(self, net: nn.Module, condition: Tensor):
        super().__init__()
        self.net, self.condition = net, condition
        self.num_classes = getattr(net, "num_classes", None)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        condition = self.condition.to(x.dtype).repeat(x.shape[0] // self.condition.shape[0], 1, 1, 1)
        return self.net(torch.cat([x, condition], dim=1), t, label, context)
