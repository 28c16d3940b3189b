"""Random flips and shifts of a batch, on its device."""

import torch

from fastgen.errors import expect
from fastgen_kernels.philox import philox_uniform


def augment(x: torch.Tensor, key: torch.Tensor, *, flip: bool = False, shift: int = 0) -> torch.Tensor:
    """The images, each flipped left to right with probability 1/2, and moved by up to `shift` pixels.

    x: (N, C, H, W), uint8 or any dtype; key: int64 (N, 4) of fastgen.noise_key, on x's device. The moves are whole
    pixels, uniform in [-shift, shift] downwards and to the right; edge pixels are repeated. Returns x's shape and
    dtype; x itself, of any shape, when flip is False and shift 0. Each image's draw depends on its row of the key alone.
    Raises ValueError for an x that is not (N, C, H, W) and for a negative shift.
    """
    if not flip and shift == 0:
        return x
    expect("x", tuple(x.shape), x.ndim == 4, "images (N, C, H, W)")
    expect("shift", shift, shift >= 0, "a number of pixels >= 0")
    n, c, h, w = x.shape
    u = philox_uniform((n, 3), key)
    # fp32 may round u·(2·shift + 1) up to its bound: clamp.
    move = ((u[:, 1:] * (2 * shift + 1)).floor().long() - shift).clamp(max=shift)
    rows = (torch.arange(h, device=x.device) - move[:, :1]).clamp(0, h - 1)  # (N, H)
    columns = (torch.arange(w, device=x.device) - move[:, 1:]).clamp(0, w - 1)  # (N, W)
    if flip:
        columns = torch.where(u[:, :1] < 0.5, w - 1 - columns, columns)
    pixels = (rows[:, :, None] * w + columns[:, None, :]).view(n, 1, h * w).expand(n, c, h * w)
    return x.reshape(n, c, h * w).gather(2, pixels).view(n, c, h, w)
