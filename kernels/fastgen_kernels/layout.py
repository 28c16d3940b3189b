"""Dtypes and memory formats: what references and launchers share."""

import math

import torch
from torch import Tensor


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: fp64 if any of them is fp64, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device; it is not on the meta device, which torch.is_autocast_enabled refuses."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *S) has its channels innermost: as channels_last, a slice of it, or (N, T, C) transposed."""
    return x.dim() > 2 and x.stride(1) == 1 and not x.is_contiguous()


def in_format(x: Tensor, innermost: bool) -> Tensor:
    """x (N, C, *S) with its channels innermost, or contiguous; x itself where it is so already."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if innermost else x.contiguous()


def like(y: Tensor, x: Tensor) -> Tensor:
    """y, of x's shape, in its memory format: channels innermost or contiguous; y itself where it is so already."""
    return in_format(y, channels_last(x))


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten tensor as `like` lays it out: x's shape and memory format, and its dtype where none is given."""
    if channels_last(x):
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype).movedim(-1, 1)
    return x.new_empty(x.shape, dtype=dtype)


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """(N,) made to broadcast over x (N, ...)."""
    return coefficient.view(-1, *[1] * (x.dim() - 1))


def as_ncs(x: Tensor) -> Tensor:
    """(N, C, S), a view unless the spatial dimensions cannot be seen as one."""
    return x.reshape(x.shape[0], x.shape[1] if x.dim() > 1 else 1, -1)


def in_memory_order(y: Tensor, x: Tensor) -> Tensor:
    """y seen as (N, C, S), or as (N, S, C) where x has its channels innermost: in the order in which x lies in memory."""
    return as_ncs(y).mT if channels_last(x) else as_ncs(y)


def as_rows(x: Tensor) -> Tensor:
    """(rows, C), a view where the rows have one stride and the elements of a row lie side by side."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def split_heads(qkv: Tensor, num_heads: int, order: str) -> tuple[Tensor, ...]:
    """q, k and v (N, H, T, D) of (N, 3C, *S), views where *S can be seen as one dimension."""
    heads = _as_nct(qkv).unflatten(1, (3, num_heads, -1) if order == "qkv_major" else (num_heads, 3, -1))
    heads = heads if order == "qkv_major" else heads.transpose(1, 2)
    return heads.transpose(3, 4).unbind(1)


def as_heads(x: Tensor, num_heads: int) -> Tensor:
    """x (N, C, *S) as (N, H, T, D): a view where *S can be seen as one dimension of T positions."""
    return _as_nct(x).unflatten(1, (num_heads, -1)).transpose(2, 3)


def _as_nct(x: Tensor) -> Tensor:
    """x (N, C, *S) as (N, C, T), of no elements too."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
