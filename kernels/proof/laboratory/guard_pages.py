"""Tensors that end, or begin, at a page that may not be touched: an access out of bounds is a SIGSEGV.

For kernels in the interpreter, on CPU tensors.
"""

import ctypes
import mmap
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from proof.laboratory.allocations import Allocations, fill
from proof.laboratory.child import died

Side = Literal["end", "start"]


def guarded(x: Tensor, side: Side = "end") -> Tensor:
    """A copy of x with its strides, whose last byte lies before a forbidden page, or its first after one.

    The memory between its elements, where strides leave gaps, is full of NaN.
    """
    memory = guarded_memory(span(x), x.dtype, side)
    fill(memory)
    # An empty tensor points at the page itself.
    offset = memory.numel() if x.numel() == 0 and side == "end" else 0
    copy = memory.as_strided(x.shape, x.stride(), offset)
    once = tuple(slice(1) if stride == 0 else slice(None) for stride in x.stride())  # expanded elements are one place
    copy[once].copy_(x.detach()[once])
    return copy.requires_grad_(x.requires_grad)


def assert_in_bounds(fn: Callable[..., Any], *args: Any) -> None:
    """fn(*args) touches nothing outside of the tensors among args, nor of those it allocates."""

    def run(side: Side) -> None:
        def place(x: Tensor) -> Tensor:
            return guarded(x, side)

        inputs = tree_map_only(Tensor, place, args)
        with Allocations(place):
            fn(*inputs)

    for side in ("end", "start"):
        report = died(lambda side=side: run(side))
        assert report is None, f"with tensors guarded at their {side}: {report}"


def span(x: Tensor) -> int:
    """Elements from the first to the last of x in memory."""
    if x.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))


def guarded_memory(elements: int, dtype: torch.dtype, side: Side) -> Tensor:
    """Zeros in memory of their own, beside a forbidden page."""
    size = max(1, elements) * dtype.itemsize
    used = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    region = mmap.mmap(-1, used + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    _forbid(start + used if side == "end" else start)
    offset = used - size if side == "end" else mmap.PAGESIZE
    return torch.frombuffer(region, dtype=dtype, count=max(1, elements), offset=offset)


def _forbid(page: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
