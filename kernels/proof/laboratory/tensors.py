"""Tensors of every dtype and layout that an op may be given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from proof.laboratory.device import DEVICE

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The same values, laid out in another way: each takes a tensor of any shape.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x,
    "permuted": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "sliced": lambda x: torch.stack((x, torch.full_like(x, torch.nan)), -1).flatten(-2)[..., ::2] if x.dim() else x,
    "half": lambda x: torch.cat((torch.full_like(x, torch.nan), x), 1).chunk(2, 1)[1] if x.dim() > 1 and x.shape[1] else x,
    "row_gap": lambda x: torch.cat((x, torch.full_like(x[..., :1], torch.nan)), -1)[..., :-1] if x.dim() and x.shape[-1] else x,
}


def _expanded(grad: Tensor) -> Tensor:
    """One value for all, stride 0 everywhere: what sum().backward() hands down."""
    return grad.flatten()[:1].sum().expand(grad.shape)


# How the gradient of an output arrives: laid out in any way, or of stride 0.
GRADIENTS = {**LAYOUTS, "expanded": _expanded}


def upstream(y: Tensor, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """A random gradient for y, for the same seed the same values in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(y.shape, generator=generator).mul(32).round().clamp(-128, 128) / 32  # 8 bits: exact in bf16 too
    return GRADIENTS[layout](grad.to(y.device, y.dtype))


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """Standard normal values on DEVICE."""
    generator = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randn(tuple(shape), generator=generator).to(DEVICE, dtype))
