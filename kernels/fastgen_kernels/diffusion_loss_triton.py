"""Kernels of diffusion_loss.py, one each way. The loss of an element, its derivative and what a sample's weight does to them are
those of denoising_loss_triton.py too.

An element's place in its sample matters to nothing, so the elements are taken in the order of pred's memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.blocks_triton import TRITON_DTYPE, as_ncs
from fastgen_kernels.diffusion_loss import CHARBONNIER_EPS
from fastgen_kernels.layout import channels_last, compute_dtype, empty_like
from fastgen_kernels.philox_triton import tile
from fastgen_kernels.q_sample_triton import rounded
from fastgen_kernels.reparameterize_kl_triton import splits

EPS = tl.constexpr(CHARBONNIER_EPS)


@triton.jit
def element_loss(d, KIND: tl.constexpr):
    """l(d), NaN where d is."""
    if KIND == "mse":
        loss = d * d
    elif KIND == "l1":
        loss = tl.abs(d)
    elif KIND == "huber":
        loss = tl.where(tl.abs(d) < 1.0, 0.5 * d * d, tl.abs(d) - 0.5)
    else:
        loss = tl.sqrt(d * d + EPS)
    return loss


@triton.jit
def slope(d, KIND: tl.constexpr):
    """The derivative of l at d; of |d| it is 0 at 0, and at NaN, as in PyTorch."""
    if KIND == "mse":
        dd = 2.0 * d
    elif KIND == "l1":
        dd = tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))
    elif KIND == "huber":
        dd = tl.where(d > 1.0, 1.0, tl.where(d < -1.0, -1.0, d))
    else:
        dd = d / tl.sqrt(d * d + EPS)
    return dd


@triton.jit
def times_weight(x, weight_ptr, n, N):
    """x, of one element a sample, times the samples' weights where there are any."""
    if weight_ptr is not None:
        x *= tl.load(weight_ptr + n, n < N)
    return x


@triton.jit
def place(e, S, strides, FLAT: tl.constexpr):
    """Where, within their sample, the elements e lie: one after another where they are FLAT."""
    if FLAT:
        return e
    return e // S * strides[1] + e % S * strides[2]


@triton.jit
def forward_kernel(
    pred_ptr, pred_strides, target_ptr, target_strides, weight_ptr, loss_ptr,
    N, S, E, SPAN,
    KIND: tl.constexpr, COMPUTE: tl.constexpr,
    PRED_FLAT: tl.constexpr, TARGET_FLAT: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """weight / E times the loss of SPAN elements of a sample, summed over each lane and then across the lanes."""
    n = (tl.program_id(0).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCK)[None, :]
    start = tl.program_id(1).to(tl.int64) * SPAN
    stop = tl.minimum(start + SPAN, E)
    total = tl.zeros((SAMPLES, BLOCK), COMPUTE)
    for first in range(start, stop, BLOCK):
        inside = (n < N) & (j < stop - first)
        pred_at = n * pred_strides[0] + place(first + j, S, pred_strides, PRED_FLAT)
        target_at = n * target_strides[0] + place(first + j, S, target_strides, TARGET_FLAT)
        pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
        target = tl.load(target_ptr + target_at, inside).to(COMPUTE)
        total += tl.where(inside, element_loss(pred - target, KIND), 0.0)
    loss = times_weight(tl.sum(total, 1)[:, None] / E, weight_ptr, n, N)
    tl.store(loss_ptr + n * tl.num_programs(1) + tl.program_id(1), loss, n < N)


@triton.jit
def backward_kernel(
    dloss_ptr, dloss_stride, pred_ptr, pred_strides, target_ptr, target_strides, weight_ptr, dpred_ptr,
    N, S, E,
    KIND: tl.constexpr, COMPUTE: tl.constexpr,
    PRED_FLAT: tl.constexpr, TARGET_FLAT: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dpred = dloss weight / E l'(pred - target)."""
    tiles = tl.cdiv(E, BLOCK)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    e = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)[None, :]
    delement = times_weight(tl.load(dloss_ptr + n * dloss_stride, n < N), weight_ptr, n, N) / E

    inside = (n < N) & (e < E)
    pred_at = n * pred_strides[0] + place(e, S, pred_strides, PRED_FLAT)
    target_at = n * target_strides[0] + place(e, S, target_strides, TARGET_FLAT)
    pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
    target = tl.load(target_ptr + target_at, inside).to(COMPUTE)
    dpred = delement * slope(pred - target, KIND)
    tl.store(dpred_ptr + n * E + e, rounded(dpred, dpred_ptr.dtype.element_ty), inside)


def forward(pred: Tensor, target: Tensor, weight: Tensor | None, kind: str) -> Tensor:
    n, compute = len(pred), compute_dtype(pred.dtype)
    if pred.numel() == 0:
        return pred.new_full((n,), torch.nan, dtype=compute)  # the mean of nothing
    arguments, constants, tiles = plan(pred, target, weight, kind, compute)
    parts = splits(n, tiles)
    loss = pred.new_empty((n, parts), dtype=compute)
    grid = triton.cdiv(n, constants["SAMPLES"]), parts
    with torch.cuda.device_of(pred):
        forward_kernel[grid](
            **arguments, loss_ptr=loss, SPAN=triton.cdiv(tiles, parts) * constants["BLOCK"], **constants,
            num_warps=8 if constants["SAMPLES"] == 1 else 4,  # with 4, the largest tile of unaligned elements spills
        )  # fmt: skip
    return loss.sum(1) if parts > 1 else loss[:, 0]


def backward(dloss: Tensor, pred: Tensor, target: Tensor, weight: Tensor | None, kind: str) -> Tensor:
    dpred = empty_like(pred)
    if pred.numel() == 0:
        return dpred
    arguments, constants, tiles = plan(pred, target, weight, kind, dloss.dtype)
    grid = (triton.cdiv(len(pred), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(pred):
        backward_kernel[grid](**arguments, dloss_ptr=dloss, dloss_stride=dloss.stride(0), dpred_ptr=dpred, **constants)
    return dpred


def plan(
    pred: Tensor, target: Tensor, weight: Tensor | None, kind: str, compute: torch.dtype
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What both kernels take, as arguments and constants, and the number of tiles that cover a sample."""
    innermost = channels_last(pred)
    pred, target = as_ncs(pred), as_ncs(target)
    if innermost:
        pred, target = pred.transpose(1, 2), target.transpose(1, 2)
    n, c, s = pred.shape
    samples, blocks = tile(triton.cdiv(c * s, 4))
    block = min(4 * blocks, 1024) if compute == torch.float64 else 4 * blocks
    arguments = {
        "pred_ptr": pred, "pred_strides": pred.stride(), "target_ptr": target, "target_strides": target.stride(),
        "weight_ptr": None if weight is None else weight.contiguous(), "N": n, "S": s, "E": c * s,
    }  # fmt: skip
    constants = {
        "KIND": kind, "COMPUTE": TRITON_DTYPE[compute], "PRED_FLAT": pred[0].is_contiguous(),
        "TARGET_FLAT": target[0].is_contiguous(), "SAMPLES": samples, "BLOCK": block,
    }  # fmt: skip
    return arguments, constants, triton.cdiv(c * s, block)
