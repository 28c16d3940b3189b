"""Group normalization with what surrounds it in a residual block:

    y = act((GN(x + pre_bias + residual) * weight + bias) * (1 + scale) + shift)

    GN(h) = (h - mean) / sqrt(var + eps),   mean and biased variance over a group's C/num_groups channels and all *S

Sources: Wu & He, arXiv:1803.08494 (GN); Dhariwal & Nichol, arXiv:2105.05233, section 3 (scale and shift, "AdaGN").
"""

import math
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_choice, check_float, check_shape
from fastgen_kernels.layout import channels_last, compute_dtype, like

Activation = Literal["silu"]


@overload
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pre_bias: Tensor | None = None,
    residual: None = None,
) -> Tensor: ...


@overload
def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pre_bias: Tensor | None = None,
    residual: Tensor,
) -> tuple[Tensor, Tensor]: ...


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pre_bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = act((GN(x + pre_bias + residual)·weight + bias)·(1 + scale) + shift), of x's shape, dtype and memory format.

    x: (N, C, *S), S of 0 to 3 dims, any strides.
    num_groups: a divisor of C.
    weight, bias: (C,), 1 and 0 where absent.
    activation: None or "silu".
    scale, shift: (N, C), 0 where absent.
    pre_bias: (N, C), added to x before the norm: a residual block's time embedding.
    residual: x's shape. With it the result is (y, x + residual), so that the next block has its skip connection.

    All are floats. The statistics and the affine part are in fp32, in fp64 for fp64 x; x, pre_bias and residual are
    added in x's dtype. Autocast has no effect.

    Raises TypeError for dtypes that are not floats, ValueError for shapes, num_groups or an activation that do not fit.
    """
    check_float("group_norm", x=x, weight=weight, bias=bias, scale=scale, shift=shift, pre_bias=pre_bias, residual=residual)
    if x.dim() < 2:
        raise ValueError(f"group_norm: x must be (N, C, *S), got shape {tuple(x.shape)}")
    n, c = x.shape[:2]
    if num_groups < 1 or c % num_groups:
        raise ValueError(f"group_norm: num_groups must divide C = {c}, got {num_groups}")
    check_shape("group_norm", (c,), "(C,)", weight=weight, bias=bias)
    check_shape("group_norm", (n, c), "(N, C)", scale=scale, shift=shift, pre_bias=pre_bias)
    check_shape("group_norm", x.shape, "of x", residual=residual)
    check_choice("group_norm", "activation", activation, (None, "silu"))
    return group_norm_reference(x, num_groups, weight, bias, eps, activation, scale, shift, pre_bias, residual)


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: Activation | None,
    scale: Tensor | None,
    shift: Tensor | None,
    pre_bias: Tensor | None,
    residual: Tensor | None,
) -> Tensor | tuple[Tensor, Tensor]:
    n, c, *spatial = x.shape
    compute = compute_dtype(x.dtype)
    modulated = scale is not None or shift is not None

    total = x if residual is None else like(x + residual.to(x.dtype), x)
    h = total if pre_bias is None else total + _per_channel(pre_bias.to(x.dtype), x)

    # PyTorch's CPU kernel for channels_last takes 1.5 to 8 times as long as conversions both ways in bf16 below 1,024
    # positions, and about as long above. In fp32 it is the faster one, but with scale and shift, which can then not be
    # folded, only from 1,024 positions on. (Forward and backward, torch 2.13.)
    if channels_last(h) and (x.dtype != compute or (modulated and math.prod(spatial) < 1024)):
        h = h.contiguous()

    if not modulated:
        y = _normalize(h, num_groups, weight, bias, eps)
    elif channels_last(h) or n == 0:
        y = _normalize(h, num_groups, weight, bias, eps)
        y = y if scale is None else y * (1 + _per_channel(scale, x))
        y = y if shift is None else y + _per_channel(shift, x)
    else:
        # As one sample of N·C channels in N·num_groups groups, each sample's own affine part is the weight and bias of
        # the native kernel: two passes less each way than multiplying and adding after it.
        gain = torch.ones(n, c, dtype=compute, device=x.device) if scale is None else 1 + scale.to(compute)
        offset = torch.zeros_like(gain) if shift is None else shift.to(compute)
        a = gain if weight is None else gain * weight
        b = offset if bias is None else offset + gain * bias
        y = _normalize(h.reshape(1, n * c, *spatial), n * num_groups, a.reshape(-1), b.reshape(-1), eps).view(x.shape)

    y = like(y, x)
    y = (F.silu(y) if activation == "silu" else y).to(x.dtype)
    return y if residual is None else (y, total)


def _normalize(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch.group_norm, but weight and bias may be of other dtypes than x, and bias may come without weight."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # torch's backward fails without (2.13)
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        compute = compute_dtype(x.dtype)
        weight = None if weight is None else weight.to(compute)
        bias = None if bias is None else bias.to(compute)
        x = x if x.device.type == "cpu" else x.to(compute)  # the CPU's kernel alone takes bf16 x with fp32 weight
    return torch.group_norm(x, num_groups, weight, bias, eps)


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """(N, C) made to broadcast over x (N, C, *S)."""
    return v.view(*v.shape, *[1] * (x.dim() - 2))
