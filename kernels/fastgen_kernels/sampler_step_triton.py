"""Kernels of sampler_step.py, one each way. The noise is drawn where it is added."""

from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, rounded
from fastgen_kernels.blocks_triton import cover, noise, offsets
from fastgen_kernels.elements_triton import elements, elementwise_launch
from fastgen_kernels.layout import as_ncs, compute_dtype, empty_like, in_memory_order, like
from fastgen_kernels.noise_triton import load_key
from fastgen_kernels.recording import launch


@triton.jit
def load_coefficients(ptr, stride, COMPUTE: tl.constexpr):
    """a, b, c and s."""
    a = tl.load(ptr).to(COMPUTE)
    b = tl.load(ptr + stride).to(COMPUTE)
    c = tl.load(ptr + 2 * stride).to(COMPUTE)
    s = tl.load(ptr + 3 * stride).to(COMPUTE)
    return a, b, c, s


@triton.jit
def forward_kernel(
    x_ptr, x_strides, x0_ptr, x0_strides, previous_ptr, previous_strides, key_ptr,
    coefficients_ptr, coefficients_stride, x_next_ptr, x_next_strides, N, C, S, E, Q,
    COMPUTE: tl.constexpr, FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """x_next = a x + b x0_hat + c previous + s noise, without the terms whose pointers are None."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCKS)[None, :]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS
    Q = tl.cast(Q, tl.int64)
    a, b, c, s = load_coefficients(coefficients_ptr, coefficients_stride, COMPUTE)
    if key_ptr is not None:
        normal = noise(load_key(key_ptr, n, n < N), first, j, C, S, QUARTERS)
    for w in tl.static_range(4):
        inside = (n < N) & (j < Q - first) & (first + w * Q + j < E)
        x_next_at = n * x_next_strides[0] + offsets(w, first, j, C, S, Q, x_next_strides, FLAT, QUARTERS)
        x_at = n * x_strides[0] + offsets(w, first, j, C, S, Q, x_strides, FLAT, QUARTERS)
        x0_at = n * x0_strides[0] + offsets(w, first, j, C, S, Q, x0_strides, FLAT, QUARTERS)
        x_next = a * tl.load(x_ptr + x_at, inside).to(COMPUTE)
        x_next += b * tl.load(x0_ptr + x0_at, inside).to(COMPUTE)
        if previous_ptr is not None:
            previous_at = n * previous_strides[0] + offsets(w, first, j, C, S, Q, previous_strides, FLAT, QUARTERS)
            x_next += c * tl.load(previous_ptr + previous_at, inside).to(COMPUTE)
        if key_ptr is not None:
            x_next += s * normal[w]
        tl.store(x_next_ptr + x_next_at, x_next, inside)


@triton.jit
def backward_kernel(
    grad_ptr, coefficients_ptr, coefficients_stride, dx_ptr, dx0_ptr, dprevious_ptr, N, E,
    COMPUTE: tl.constexpr, SAMPLES: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """dx = a grad, dx0_hat = b grad, dprevious = c grad; the pointer of one not wanted is None."""
    _, at, inside = elements(N, E, SAMPLES, ELEMENTS)
    a, b, c, _ = load_coefficients(coefficients_ptr, coefficients_stride, COMPUTE)
    grad = tl.load(grad_ptr + at, inside).to(COMPUTE)
    if dx_ptr is not None:
        tl.store(dx_ptr + at, rounded(a * grad, dx_ptr.dtype.element_ty), inside)
    if dx0_ptr is not None:
        tl.store(dx0_ptr + at, rounded(b * grad, dx0_ptr.dtype.element_ty), inside)
    if dprevious_ptr is not None:
        tl.store(dprevious_ptr + at, rounded(c * grad, dprevious_ptr.dtype.element_ty), inside)


def forward(
    x: Tensor, x0_hat: Tensor, coefficients: Tensor, previous: Tensor | None, key: Tensor | None
) -> Tensor:
    """The op sampler_step: x_next, like x."""
    x_next = empty_like(x)
    if x.numel() == 0:
        return x_next
    # Noise follows the logical order; without it that of memory is taken.
    view = as_ncs if key is not None else partial(in_memory_order, x=x_next)
    out, *inputs = (view(y) for y in (x_next, x, x0_hat, previous) if y is not None)
    sizes, constants, tiles = cover(out, *inputs)
    places = [argument for y in inputs for argument in (y, y.stride())] + [None, None] * (previous is None)
    with torch.cuda.device_of(x):
        launch(forward_kernel, (triton.cdiv(len(x), constants["SAMPLES"]) * tiles,),
            *places, None if key is None else key.contiguous(), coefficients, coefficients.stride(0),
            out, out.stride(), **sizes, COMPUTE=TRITON_DTYPE[compute_dtype(x.dtype)], **constants,
        )  # fmt: skip
    return x_next


def backward(grad: Tensor, coefficients: Tensor, *dtypes: torch.dtype | None) -> tuple[Tensor, ...]:
    """The gradients of x, x0_hat and previous in the dtypes given; of no elements where None is."""
    grads = tuple(grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in dtypes)
    if grad.numel() == 0:
        return grads
    grid, arguments = elementwise_launch(grad, compute_dtype(grad.dtype))
    with torch.cuda.device_of(grad):
        launch(backward_kernel, grid,
            like(grad, grad), coefficients, coefficients.stride(0), *(y if y.numel() else None for y in grads),
            **arguments,
        )  # fmt: skip
    return grads
