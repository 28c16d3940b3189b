"""group_norm in plain torch: what the kernels are held to, and what runs on a CPU."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.layout import channels_last, compute_dtype, like


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    scale: Tensor | None,
    shift: Tensor | None,
    pre_bias: Tensor | None,
) -> Tensor:
    """act((GN(x + pre_bias)·weight + bias)·(1 + scale) + shift), of x's shape (N, C, *S), dtype and memory format.

    weight, bias: (C,). scale, shift, pre_bias: (N, C). All floats; the norm is in fp32, in fp64 for fp64 x. Arguments have passed
    group_norm's checks.
    """
    n, c, *spatial = x.shape
    compute = compute_dtype(x.dtype)
    modulated = scale is not None or shift is not None
    h = x if pre_bias is None else x + _per_channel(pre_bias.to(x.dtype), x)

    # In 16 bits PyTorch's CPU kernel for channels_last is slow where a group has less than a vector's channels: below 1,024
    # positions each way, and from there on, where forward is another algorithm, backward. Conversions both ways are then 1.4 to 5
    # times as fast. Elsewhere they are the slower way, forward by 1 to 8 times; in fp32 too, but in groups of 2.
    # (64 to 1,280 channels, 64 to 4,096 positions, with and without scale and shift, 1 and 2 threads, torch 2.13.)
    trained = torch.is_grad_enabled() and h.requires_grad
    if channels_last(h) and x.dtype != compute and c // num_groups < 16 and (trained or math.prod(spatial) < 1024):
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
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def add_group_norm_reference(x: Tensor, residual: Tensor | None, *parameters: Any) -> tuple[Tensor, Tensor]:
    """(group_norm_reference(h, *parameters), h), h = x + residual in x's dtype and memory format, x itself without a residual."""
    total = x if residual is None else like(x + residual.to(x.dtype), x)
    return group_norm_reference(total, *parameters), total


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
