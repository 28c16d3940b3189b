"""Between the bytes of images and what models see."""

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """0 to 255 as fp32 in [-1, 1], what diffusion models see; floating images as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] as the nearest of 0 to 255."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
