"""Dtypes and memory formats that the references share."""

import torch
from torch import Tensor


def compute_dtype(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic: fp64 if any of them is fp64, else fp32."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *S) has its channels innermost: as channels_last, a slice of it, or (N, T, C) transposed."""
    return x.dim() > 2 and x.stride(1) == 1 and not x.is_contiguous()


def like(y: Tensor, x: Tensor) -> Tensor:
    """y, of x's shape, in its memory format: channels innermost or contiguous; y itself where it is so already."""
    return y.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last(x) else y.contiguous()


def empty_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An unwritten tensor as `like` lays it out: x's shape and memory format, and its dtype where none is given."""
    if channels_last(x):
        return x.new_empty((x.shape[0], *x.shape[2:], x.shape[1]), dtype=dtype).movedim(-1, 1)
    return x.new_empty(x.shape, dtype=dtype)


def per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """(N,) made to broadcast over x (N, ...)."""
    return coefficient.view(-1, *[1] * (x.dim() - 1))
