"""Kernels of to_x0.py, one each way."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, rounded
from fastgen_kernels.blocks_triton import cover, offsets
from fastgen_kernels.elements_triton import elements, elementwise_launch
from fastgen_kernels.layout import compute_dtype, empty_like, in_memory_order, like
from fastgen_kernels.recording import launch


@triton.jit
def load_coefficients(
    n, N, c_skip_ptr, c_skip_stride, c_out_ptr, c_out_stride, scale, scales_ptr, scales_stride, COMPUTE: tl.constexpr
):
    """c_skip, c_out and guidance of the samples n."""
    c_skip = tl.load(c_skip_ptr + n * c_skip_stride, n < N).to(COMPUTE)
    c_out = tl.load(c_out_ptr + n * c_out_stride, n < N).to(COMPUTE)
    if scales_ptr is None:
        guidance = tl.full(n.shape, scale, COMPUTE)
    else:
        guidance = tl.load(scales_ptr + n * scales_stride, n < N).to(COMPUTE)
    return c_skip, c_out, guidance


@triton.jit
def forward_kernel(
    out_ptr, out_strides, x_ptr, x_strides, uncond_ptr, uncond_strides,
    c_skip_ptr, c_skip_stride, c_out_ptr, c_out_stride, scale: tl.float64, scales_ptr, scales_stride,
    x0_ptr, x0_strides, N, C, S, E, Q,
    COMPUTE: tl.constexpr, FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """x0_hat = c_skip x + c_out (uncond + scale (out - uncond))."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCKS)[None, :]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS
    Q = tl.cast(Q, tl.int64)
    c_skip, c_out, scale = load_coefficients(
        n, N, c_skip_ptr, c_skip_stride, c_out_ptr, c_out_stride, scale, scales_ptr, scales_stride, COMPUTE
    )
    for w in tl.static_range(4):
        inside = (n < N) & (j < Q - first) & (first + w * Q + j < E)
        x0_at = n * x0_strides[0] + offsets(w, first, j, C, S, Q, x0_strides, FLAT, QUARTERS)
        out_at = n * out_strides[0] + offsets(w, first, j, C, S, Q, out_strides, FLAT, QUARTERS)
        x_at = n * x_strides[0] + offsets(w, first, j, C, S, Q, x_strides, FLAT, QUARTERS)
        out = tl.load(out_ptr + out_at, inside).to(COMPUTE)
        x = tl.load(x_ptr + x_at, inside).to(COMPUTE)
        if uncond_ptr is not None:
            uncond_at = n * uncond_strides[0] + offsets(w, first, j, C, S, Q, uncond_strides, FLAT, QUARTERS)
            uncond = tl.load(uncond_ptr + uncond_at, inside).to(COMPUTE)
            out = uncond + scale * (out - uncond)
        tl.store(x0_ptr + x0_at, c_skip * x + c_out * out, inside)


@triton.jit
def backward_kernel(
    grad_ptr, c_skip_ptr, c_skip_stride, c_out_ptr, c_out_stride, scale: tl.float64, scales_ptr, scales_stride,
    dout_ptr, dx_ptr, duncond_ptr, N, E,
    COMPUTE: tl.constexpr, SAMPLES: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """dout = scale c_out grad, dx = c_skip grad, duncond = (1 - scale) c_out grad; the pointer of one not wanted is None."""
    n, at, inside = elements(N, E, SAMPLES, ELEMENTS)
    c_skip, c_out, scale = load_coefficients(
        n, N, c_skip_ptr, c_skip_stride, c_out_ptr, c_out_stride, scale, scales_ptr, scales_stride, COMPUTE
    )
    grad = tl.load(grad_ptr + at, inside).to(COMPUTE)
    if dout_ptr is not None:
        tl.store(dout_ptr + at, rounded(scale * c_out * grad, dout_ptr.dtype.element_ty), inside)
    if dx_ptr is not None:
        tl.store(dx_ptr + at, rounded(c_skip * grad, dx_ptr.dtype.element_ty), inside)
    if duncond_ptr is not None:
        tl.store(duncond_ptr + at, rounded((1.0 - scale) * c_out * grad, duncond_ptr.dtype.element_ty), inside)


def forward(
    out: Tensor, x: Tensor, c_skip: Tensor, c_out: Tensor, uncond: Tensor | None, scale: float, scales: Tensor | None
) -> Tensor:
    """The op to_x0: x0_hat, like x. Guidance is `scale`, or of each sample where there are scales (N,)."""
    x0_hat = empty_like(x)
    if x.numel() == 0:
        return x0_hat
    inputs = [in_memory_order(y, x0_hat) for y in (out, x, uncond) if y is not None]
    x0 = in_memory_order(x0_hat, x0_hat)
    sizes, constants, tiles = cover(x0, *inputs)
    places = [argument for y in inputs for argument in (y, y.stride())] + [None, None] * (uncond is None)
    with torch.cuda.device_of(x):
        launch(forward_kernel, (triton.cdiv(len(x), constants["SAMPLES"]) * tiles,),
            *places, *coefficients(c_skip, c_out, scale, scales), x0, x0.stride(), **sizes,
            COMPUTE=TRITON_DTYPE[compute_dtype(x.dtype)], **constants,
        )  # fmt: skip
    return x0_hat


def backward(
    grad: Tensor, c_skip: Tensor, c_out: Tensor, scale: float, scales: Tensor | None, *dtypes: torch.dtype | None
) -> tuple[Tensor, ...]:
    """The gradients of out, x and uncond in the dtypes given; of no elements where None is."""
    grads = tuple(grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in dtypes)
    if grad.numel() == 0:
        return grads
    grid, arguments = elementwise_launch(grad, compute_dtype(grad.dtype))
    with torch.cuda.device_of(grad):
        launch(backward_kernel, grid,
            like(grad, grad), *coefficients(c_skip, c_out, scale, scales), *(y if y.numel() else None for y in grads),
            **arguments,
        )  # fmt: skip
    return grads


def coefficients(c_skip: Tensor, c_out: Tensor, scale: float, scales: Tensor | None) -> tuple[Any, ...]:
    """As load_coefficients takes them."""
    each = (None, None) if scales is None else (scales, scales.stride(0))
    return c_skip, c_skip.stride(0), c_out, c_out.stride(0), scale, *each
