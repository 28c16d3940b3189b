"""Kernels of q_sample.py, one each way. Noise under a key is drawn where it is used and never stored."""

from typing import cast

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
from fastgen_kernels.targets_triton import as_signal, make_target


@triton.jit
def through_target(dtarget, alpha, sigma, TARGET: tl.constexpr):
    """What x0 and the noise get of the target's gradient."""
    if TARGET == "eps":
        return tl.zeros_like(dtarget), dtarget
    if TARGET == "x0":
        return dtarget, tl.zeros_like(dtarget)
    if TARGET == "v":
        return -sigma * dtarget, alpha * dtarget
    return -dtarget, dtarget


@triton.jit
def forward_kernel(
    x0_ptr, x0_strides, alpha_ptr, alpha_stride, sigma_ptr, sigma_stride, eps_ptr, key_ptr, x_t_ptr, target_ptr, out_strides,
    N, C, S, E, Q,
    TARGET: tl.constexpr, COMPUTE: tl.constexpr,
    FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """x_t = alpha x0 + sigma eps and the target, without which TARGET is None; eps is the noise given, or that of the key."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCKS)[None, :]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS
    Q = tl.cast(Q, tl.int64)
    alpha = tl.load(alpha_ptr + n * alpha_stride, n < N).to(COMPUTE)
    sigma = tl.load(sigma_ptr + n * sigma_stride, n < N).to(COMPUTE)
    if key_ptr is not None:
        normal = noise(load_key(key_ptr, n, n < N), first, j, C, S, QUARTERS)
    for w in tl.static_range(4):
        inside = (n < N) & (j < Q - first) & (first + w * Q + j < E)
        out = n * out_strides[0] + offsets(w, first, j, C, S, Q, out_strides, FLAT, QUARTERS)
        x0_at = n * x0_strides[0] + offsets(w, first, j, C, S, Q, x0_strides, FLAT, QUARTERS)
        x0 = as_signal(tl.load(x0_ptr + x0_at, inside), COMPUTE)
        eps = normal[w] if key_ptr is not None else tl.load(eps_ptr + out, inside).to(COMPUTE)
        tl.store(x_t_ptr + out, rounded(alpha * x0 + sigma * eps, x_t_ptr.dtype.element_ty), inside)
        if TARGET is not None:
            made = make_target(x0, eps, alpha, sigma, TARGET)
            tl.store(target_ptr + out, rounded(made, target_ptr.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    dx_t_ptr, dtarget_ptr, alpha_ptr, alpha_stride, sigma_ptr, sigma_stride, dx0_ptr, dnoise_ptr, N, E,
    TARGET: tl.constexpr, COMPUTE: tl.constexpr, SAMPLES: tl.constexpr, ELEMENTS: tl.constexpr,
):  # fmt: skip
    """dx0 = alpha dx_t and dnoise = sigma dx_t, each with its part of the target's gradient; all lie in one order of memory, and
    the pointer of one that is absent or not wanted is None."""
    n, at, inside = elements(N, E, SAMPLES, ELEMENTS)
    alpha = tl.load(alpha_ptr + n * alpha_stride, n < N).to(COMPUTE)
    sigma = tl.load(sigma_ptr + n * sigma_stride, n < N).to(COMPUTE)
    dx0 = tl.zeros((SAMPLES, ELEMENTS), COMPUTE)
    dnoise = tl.zeros((SAMPLES, ELEMENTS), COMPUTE)
    if dx_t_ptr is not None:
        dx_t = tl.load(dx_t_ptr + at, inside).to(COMPUTE)
        dx0 += alpha * dx_t
        dnoise += sigma * dx_t
    if dtarget_ptr is not None:
        of_x0, of_noise = through_target(tl.load(dtarget_ptr + at, inside).to(COMPUTE), alpha, sigma, TARGET)
        dx0 += of_x0
        dnoise += of_noise
    if dx0_ptr is not None:
        tl.store(dx0_ptr + at, rounded(dx0, dx0_ptr.dtype.element_ty), inside)
    if dnoise_ptr is not None:
        tl.store(dnoise_ptr + at, rounded(dnoise, dnoise_ptr.dtype.element_ty), inside)


def forward(
    x0: Tensor, alpha: Tensor, sigma: Tensor, eps: Tensor | None, key: Tensor | None, target: str | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The op q_sample: x_t and the target in `dtype`, in x0's memory format; without a target the second is of no elements."""
    x_t = empty_like(x0, dtype)
    made = x0.new_empty(0, dtype=dtype) if target is None else empty_like(x0, dtype)
    if x0.numel() == 0:
        return x_t, made
    # Noise that is drawn follows the logical order; what is given is taken in that of memory.
    clean, out = (as_ncs(x) if eps is None else in_memory_order(x, x_t) for x in (x0, x_t))
    compute = compute_dtype(x0.dtype, dtype)
    sizes, constants, tiles = cover(out, clean)
    grid = (triton.cdiv(len(x0), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(x0):
        launch(forward_kernel, grid,
            clean, clean.stride(), alpha, alpha.stride(0), sigma, sigma.stride(0), None if eps is None else like(eps, x_t),
            None if key is None else key.contiguous(), x_t, None if target is None else made, out.stride(), **sizes,
            TARGET=target, COMPUTE=TRITON_DTYPE[compute], **constants,
        )  # fmt: skip
    return x_t, made


def backward(
    dx_t: Tensor | None, dtarget: Tensor | None, alpha: Tensor, sigma: Tensor, target: str | None,
    x0: torch.dtype | None, noise: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of x0 and noise in the dtypes given; of no elements where None is."""
    grad = cast(Tensor, dtarget if dx_t is None else dx_t)
    dx0, dnoise = (grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in (x0, noise))
    if grad.numel() == 0:
        return dx0, dnoise
    compute = compute_dtype(grad.dtype, *filter(None, (x0, noise)))
    grid, arguments = elementwise_launch(grad, compute)
    with torch.cuda.device_of(grad):
        launch(backward_kernel, grid,
            *(None if x is None else like(x, grad) for x in (dx_t, dtarget)),
            alpha, alpha.stride(0), sigma, sigma.stride(0),
            *(x if x.numel() else None for x in (dx0, dnoise)), TARGET=target, **arguments,
        )  # fmt: skip
    return dx0, dnoise
