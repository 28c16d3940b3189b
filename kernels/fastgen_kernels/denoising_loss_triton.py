"""Kernels of denoising_loss.py, one each way. The noise is drawn where the target is made, in backward again, and not stored."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, quotient, remaining
from fastgen_kernels.blocks_triton import cover, noise, offsets, splits
from fastgen_kernels.element_losses_triton import element_loss, slope, times_weight
from fastgen_kernels.layout import as_ncs, compute_dtype, empty_like
from fastgen_kernels.noise_triton import load_key
from fastgen_kernels.recording import launch
from fastgen_kernels.targets_triton import as_signal, make_target


@triton.jit
def load_target(x0_ptr, at, inside, eps, alpha, sigma, TARGET: tl.constexpr, SIGNAL: tl.constexpr):
    """The target of the elements at x0_ptr + at, made in SIGNAL; "eps" reads no x0."""
    if TARGET == "eps":
        return eps
    return make_target(as_signal(tl.load(x0_ptr + at, inside), SIGNAL), eps, alpha.to(SIGNAL), sigma.to(SIGNAL), TARGET)


@triton.jit
def forward_kernel(
    pred_ptr, pred_strides, x0_ptr, x0_strides, alpha_ptr, alpha_stride, sigma_ptr, sigma_stride, key_ptr,
    weight_ptr, loss_ptr,
    N, C, S, E, Q, SPAN,
    TARGET: tl.constexpr, KIND: tl.constexpr, SIGNAL: tl.constexpr, COMPUTE: tl.constexpr,
    FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """weight / E times the loss of SPAN blocks of a sample, summed over each lane and then across the lanes. What a target has no
    use for, noise or coefficients, the compiler leaves out."""
    sample, i = tl.program_id(0).to(tl.int64) * SAMPLES, tl.arange(0, SAMPLES)[:, None]
    n, exists = sample + i, i < remaining(sample, N, SAMPLES)
    j = tl.arange(0, BLOCKS)[None, :]
    Q = tl.cast(Q, tl.int64)
    start = tl.program_id(1).to(tl.int64) * SPAN
    stop = tl.minimum(start + SPAN, Q)
    alpha = tl.load(alpha_ptr + n * alpha_stride, exists)
    sigma = tl.load(sigma_ptr + n * sigma_stride, exists)
    key = load_key(key_ptr, n, exists)
    total = tl.zeros((SAMPLES, BLOCKS), COMPUTE)
    for first in range(start, stop, BLOCKS):
        normal = noise(key, first, j, C, S, QUARTERS)
        for w in tl.static_range(4):
            inside = exists & (j < remaining(first, stop, BLOCKS)) & (j < remaining(first + w * Q, E, BLOCKS))
            pred_at = n * pred_strides[0] + offsets(w, first, j, C, S, Q, pred_strides, FLAT, QUARTERS)
            x0_at = n * x0_strides[0] + offsets(w, first, j, C, S, Q, x0_strides, FLAT, QUARTERS)
            pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
            target = load_target(x0_ptr, x0_at, inside, normal[w], alpha, sigma, TARGET, SIGNAL).to(COMPUTE)
            total += tl.where(inside, element_loss(pred - target, KIND), 0.0)
    loss = times_weight(quotient(tl.sum(total, 1)[:, None], E), weight_ptr, n, N)
    tl.store(loss_ptr + n * tl.num_programs(1) + tl.program_id(1), loss, exists)


@triton.jit
def backward_kernel(
    dloss_ptr, dloss_stride, pred_ptr, pred_strides, x0_ptr, x0_strides, alpha_ptr, alpha_stride, sigma_ptr, sigma_stride,
    key_ptr, weight_ptr, dpred_ptr, dpred_strides,
    N, C, S, E, Q,
    TARGET: tl.constexpr, KIND: tl.constexpr, SIGNAL: tl.constexpr, COMPUTE: tl.constexpr,
    FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """dpred = dloss weight / E l'(pred - target)."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCKS)[None, :]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS
    Q = tl.cast(Q, tl.int64)
    alpha = tl.load(alpha_ptr + n * alpha_stride, n < N)
    sigma = tl.load(sigma_ptr + n * sigma_stride, n < N)
    delement = quotient(times_weight(tl.load(dloss_ptr + n * dloss_stride, n < N), weight_ptr, n, N), E)
    normal = noise(load_key(key_ptr, n, n < N), first, j, C, S, QUARTERS)
    for w in tl.static_range(4):
        inside = (n < N) & (j < Q - first) & (first + w * Q + j < E)
        pred_at = n * pred_strides[0] + offsets(w, first, j, C, S, Q, pred_strides, FLAT, QUARTERS)
        x0_at = n * x0_strides[0] + offsets(w, first, j, C, S, Q, x0_strides, FLAT, QUARTERS)
        pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
        target = load_target(x0_ptr, x0_at, inside, normal[w], alpha, sigma, TARGET, SIGNAL).to(COMPUTE)
        dpred_at = n * dpred_strides[0] + offsets(w, first, j, C, S, Q, dpred_strides, FLAT, QUARTERS)
        tl.store(dpred_ptr + dpred_at, delement * slope(pred - target, KIND), inside)


def forward(
    pred: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, key: Tensor, weight: Tensor | None, target: str, kind: str
) -> Tensor:
    """The op denoising_loss: (N,), in fp32, in fp64 for fp64 pred; NaN where samples have no elements."""
    n, compute = len(pred), compute_dtype(pred.dtype)
    if pred.numel() == 0:
        return pred.new_full((n,), torch.nan, dtype=compute)  # the mean of nothing
    arguments, constants, tiles = plan(pred, x0, alpha, sigma, key, weight, target, kind)
    parts = splits(n, tiles)
    loss = pred.new_empty((n, parts), dtype=compute)
    grid = triton.cdiv(n, constants["SAMPLES"]), parts
    with torch.cuda.device_of(pred):
        span = triton.cdiv(tiles, parts) * constants["BLOCKS"]
        launch(forward_kernel, grid, **arguments, loss_ptr=loss, SPAN=span, **constants)
    return loss.sum(1) if parts > 1 else loss[:, 0]


def backward(
    dloss: Tensor, pred: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, key: Tensor, weight: Tensor | None,
    target: str, kind: str,
) -> Tensor:  # fmt: skip
    """The gradient of pred, in its dtype and memory format."""
    dpred = empty_like(pred)
    if pred.numel() == 0:
        return dpred
    arguments, constants, tiles = plan(pred, x0, alpha, sigma, key, weight, target, kind)
    grid = (triton.cdiv(len(pred), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(pred):
        launch(backward_kernel, grid,
            **arguments, dloss_ptr=dloss, dloss_stride=dloss.stride(0), dpred_ptr=dpred, dpred_strides=as_ncs(dpred).stride(),
            **constants,
        )  # fmt: skip
    return dpred


def plan(
    pred: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, key: Tensor, weight: Tensor | None, target: str, kind: str
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What both kernels take, as arguments and constants, and the number of tiles that cover a sample."""
    compute, signal = compute_dtype(pred.dtype), compute_dtype(pred.dtype, x0.dtype)
    pred, x0 = as_ncs(pred), as_ncs(x0)
    sizes, constants, tiles = cover(pred, *() if target == "eps" else (x0,))
    arguments = {
        "pred_ptr": pred, "pred_strides": pred.stride(), "x0_ptr": x0, "x0_strides": x0.stride(),
        "alpha_ptr": alpha, "alpha_stride": alpha.stride(0), "sigma_ptr": sigma, "sigma_stride": sigma.stride(0),
        "key_ptr": key.contiguous(), "weight_ptr": None if weight is None else weight.contiguous(), **sizes,
    }  # fmt: skip
    constants |= {"TARGET": target, "KIND": kind, "SIGNAL": TRITON_DTYPE[signal], "COMPUTE": TRITON_DTYPE[compute]}
    return arguments, constants, tiles
