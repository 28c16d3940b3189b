"""Addresses beyond 2^31 elements, on a machine of any size: memory that is committed only where it is touched."""

import mmap
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from proof.laboratory.child import died
from proof.laboratory.guard_pages import span

MAP_NORESERVE = 0x4000  # Linux's, which Python 3.11 has no name for
LIMIT = 2**31  # the first offset that int32 does not hold


def far(x: Tensor) -> Tensor:
    """A copy of x (N, ...) whose last sample lies beyond LIMIT elements, each sample with its strides. N: 2 or more."""
    if not x.dim() or len(x) < 2:
        raise ValueError(f"far: x must be (N, ...) with N >= 2, got shape {tuple(x.shape)}")
    size = span(x[0])
    stride = max(size, -(-LIMIT // (len(x) - 1)))
    copy = lazy((len(x) - 1) * stride + size, x.dtype).as_strided(x.shape, (stride, *x.stride()[1:]))
    once = tuple(slice(1) if stride == 0 else slice(None) for stride in copy.stride())  # expanded elements are one place
    copy[once].copy_(x.detach()[once])
    return copy.requires_grad_(x.requires_grad)


def lazy(elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros that take memory only where they are written."""
    region = mmap.mmap(-1, elements * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE)
    return torch.frombuffer(region, dtype=dtype, count=elements)


def assert_reaches_far(fn: Callable[..., Any], *args: Any, near: Any = None) -> None:
    """fn gives the same results, bit for bit, when samples lie so far apart that the last is beyond 2^31 elements.

    A kernel that computes a sample's offset in int32 crashes, or reads another sample. The tensors that are stretched are
    those whose first dimension is the first tensor's, the batch. near: the results of fn(*args), where they are known.
    """
    batch = len(next(x for x in args if isinstance(x, Tensor)))

    def stretched(x: Tensor) -> Tensor:
        return far(x) if x.dim() and len(x) == batch else x

    def run() -> None:
        expected = fn(*args) if near is None else near
        stretched_far = fn(*tree_map_only(Tensor, stretched, args))
        for i, (x, y) in enumerate(zip(tree_leaves(expected), tree_leaves(stretched_far), strict=True)):
            if not torch.equal(x, y):
                raise AssertionError(f"result {i} is another one")

    report = died(run)
    assert report is None, f"with samples more than 2^31 elements apart: {report}"
