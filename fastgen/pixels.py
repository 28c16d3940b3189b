"""Between the bytes of images and the two ranges that models see: [-1, 1], "signed", and [0, 1], "unit".

x is floating, of any shape; images are uint8 of the same shape. Arithmetic is fp32.
"""

import torch
from torch import Tensor


def uint8_to_signed(images: Tensor) -> Tensor:
    """0 to 255 as fp32 in [-1, 1], what diffusion models see; floating images as they are."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def signed_to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] as the nearest of 0 to 255; what lies beyond is clamped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def uint8_to_unit(images: Tensor) -> Tensor:
    """0 to 255 as fp32 in [0, 1], what VAEs see; other dtypes as they are."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


def unit_to_uint8(x: Tensor) -> Tensor:
    """[0, 1] as the nearest of 0 to 255; what lies beyond is clamped."""
    return (x.float() * 255).round().clamp(0, 255).to(torch.uint8)
