"""Kernels of geglu.py, one each way, over the elements of the output in the order of memory."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, rounded
from fastgen_kernels.layout import as_rows, compute_dtype
from fastgen_kernels.recording import launch

BLOCK = 2048  # elements of a program


@triton.jit
def places(stride, N, D: tl.constexpr, BLOCK: tl.constexpr):
    """A program's elements of y, and the places of their values in x, and in a contiguous tensor of x's shape; gates lie D
    further. Remainders are differences, for of a remainder's remainder it is not known that it is aligned."""
    first, i = tl.program_id(0).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)
    row = first // D
    column = (first - row * D).to(tl.int32) + i
    rows_on = column // D
    row, column = row + rows_on, column - rows_on * D
    return first + i, row * stride + column, row * (2 * D) + column, i < tl.minimum(N - first, BLOCK).to(tl.int32)


@triton.jit
def normal_cdf(x):
    """Phi(x) of the normal distribution."""
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def forward_kernel(x_ptr, stride, y_ptr, N, D: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """y = value gelu(gate)."""
    at, x_at, _, inside = places(stride, N, D, BLOCK)
    value = tl.load(x_ptr + x_at, inside).to(COMPUTE)
    gate = tl.load(x_ptr + x_at + D, inside).to(COMPUTE)
    tl.store(y_ptr + at, rounded(value * (gate * normal_cdf(gate)), y_ptr.dtype.element_ty), inside)


@triton.jit
def backward_kernel(dy_ptr, x_ptr, stride, dx_ptr, N, D: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """dvalue = dy gelu(gate), dgate = dy value (Phi(gate) + gate phi(gate)), with phi the density of the normal distribution."""
    at, x_at, dx_at, inside = places(stride, N, D, BLOCK)
    value = tl.load(x_ptr + x_at, inside).to(COMPUTE)
    gate = tl.load(x_ptr + x_at + D, inside).to(COMPUTE)
    dy = tl.load(dy_ptr + at, inside).to(COMPUTE)
    cdf = normal_cdf(gate)
    density = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    tl.store(dx_ptr + dx_at, rounded(dy * (gate * cdf), dx_ptr.dtype.element_ty), inside)
    tl.store(dx_ptr + dx_at + D, rounded(dy * value * (cdf + gate * density), dx_ptr.dtype.element_ty), inside)


def forward(x: Tensor) -> Tensor:
    """The op geglu: (..., D) of x (..., 2D), contiguous."""
    y = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
    if x.numel() == 0:
        return y
    grid, arguments = plan(x)
    with torch.cuda.device_of(x):
        launch(forward_kernel, grid, y_ptr=y, **arguments)
    return y


def backward(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of x, contiguous."""
    dx = x.new_empty(x.shape)
    if x.numel() == 0:
        return dx
    grid, arguments = plan(x)
    with torch.cuda.device_of(x):
        launch(backward_kernel, grid, dy_ptr=dy.contiguous(), dx_ptr=dx, **arguments)
    return dx


def plan(x: Tensor) -> tuple[tuple[int], dict[str, Any]]:
    """The grid, and what both kernels are given."""
    rows, n = as_rows(x), x.numel() // 2
    sizes = {"N": n, "D": rows.shape[1] // 2, "COMPUTE": TRITON_DTYPE[compute_dtype(x.dtype)], "BLOCK": BLOCK}
    return (triton.cdiv(n, BLOCK),), {"x_ptr": rows, "stride": rows.stride(0), **sizes}
