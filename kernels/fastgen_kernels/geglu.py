"""The gated linear unit of transformer blocks, with GELU for its gate:

    y = x[..., :D] * gelu(x[..., D:]),   gelu(g) = g Phi(g),   Phi(g) = (1 + erf(g / sqrt(2))) / 2

Sources: Shazeer, arXiv:2002.05202, section 2; Hendrycks & Gimpel, arXiv:1606.08415, section 2 (GELU).
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_float
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.library import define


def geglu(x: Tensor) -> Tensor:
    """The first half of x times the GELU of its second: (..., D) of x's dtype, contiguous.

    x: (..., 2D) float, any strides.

    The kernel's arithmetic is in fp32, in fp64 for fp64 x; the reference rounds the GELU to x's dtype. Autocast has no effect.

    Raises TypeError for a dtype that is not a float, ValueError for a last dimension that is odd.
    """
    if (y := _geglu.repeat(x)) is not None:
        return y  # type: ignore[no-any-return]
    check_float(x=x)
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"x: expected (..., 2D), got shape {tuple(x.shape)}")
    return _geglu(x) if use_triton(x) else geglu_reference(x)


def geglu_reference(x: Tensor) -> Tensor:
    """x[..., :D] · gelu(x[..., D:]) of x (..., 2D) float: (..., D) of x's dtype, contiguous. Each op rounds to x's dtype."""
    value, gate = x.chunk(2, -1)
    return (value * F.gelu(gate)).contiguous()


def _fake_forward(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def _fake_backward(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradient(ctx: Any, dy: Tensor) -> Tensor:
    return _geglu_backward(dy, *ctx.saved_tensors)


_geglu_backward = define(
    "geglu_backward(Tensor dy, Tensor x) -> Tensor", "fastgen_kernels.geglu_triton:backward", _fake_backward
)
_geglu = define(
    "geglu(Tensor x) -> Tensor",
    "fastgen_kernels.geglu_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradient,
)
