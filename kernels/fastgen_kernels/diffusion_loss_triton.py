"""Kernels of diffusion_loss.py, one each way.

An element's place in its sample matters to nothing, so the elements are taken in the order of pred's memory.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, quotient, rounded
from fastgen_kernels.blocks_triton import splits
from fastgen_kernels.element_losses_triton import element_loss, slope, times_weight
from fastgen_kernels.elements_triton import element_tile, offset_of
from fastgen_kernels.layout import as_ncs, channels_last, compute_dtype, empty_like
from fastgen_kernels.recording import launch


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
        pred_at = n * pred_strides[0] + offset_of(first + j, S, pred_strides, PRED_FLAT)
        target_at = n * target_strides[0] + offset_of(first + j, S, target_strides, TARGET_FLAT)
        pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
        target = tl.load(target_ptr + target_at, inside).to(COMPUTE)
        total += tl.where(inside, element_loss(pred - target, KIND), 0.0)
    loss = times_weight(quotient(tl.sum(total, 1)[:, None], E), weight_ptr, n, N)
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
    delement = quotient(times_weight(tl.load(dloss_ptr + n * dloss_stride, n < N), weight_ptr, n, N), E)

    inside = (n < N) & (e < E)
    pred_at = n * pred_strides[0] + offset_of(e, S, pred_strides, PRED_FLAT)
    target_at = n * target_strides[0] + offset_of(e, S, target_strides, TARGET_FLAT)
    pred = tl.load(pred_ptr + pred_at, inside).to(COMPUTE)
    target = tl.load(target_ptr + target_at, inside).to(COMPUTE)
    dpred = delement * slope(pred - target, KIND)
    tl.store(dpred_ptr + n * E + e, rounded(dpred, dpred_ptr.dtype.element_ty), inside)


def forward(pred: Tensor, target: Tensor, weight: Tensor | None, kind: str) -> Tensor:
    """The op diffusion_loss: (N,), in fp32, in fp64 for fp64 pred; NaN where samples have no elements."""
    n, compute = len(pred), compute_dtype(pred.dtype)
    if pred.numel() == 0:
        return pred.new_full((n,), torch.nan, dtype=compute)  # the mean of nothing
    arguments, constants, tiles = plan(pred, target, weight, kind, compute)
    parts = splits(n, tiles)
    loss = pred.new_empty((n, parts), dtype=compute)
    grid = triton.cdiv(n, constants["SAMPLES"]), parts
    with torch.cuda.device_of(pred):
        launch(forward_kernel, grid,
            **arguments, loss_ptr=loss, SPAN=triton.cdiv(tiles, parts) * constants["BLOCK"], **constants,
            num_warps=8 if constants["SAMPLES"] == 1 else 4,  # with 4, the largest tile of unaligned elements spills
        )  # fmt: skip
    return loss.sum(1) if parts > 1 else loss[:, 0]


def backward(dloss: Tensor, pred: Tensor, target: Tensor, weight: Tensor | None, kind: str) -> Tensor:
    """The gradient of pred, in its dtype and memory format."""
    dpred = empty_like(pred)
    if pred.numel() == 0:
        return dpred
    arguments, constants, tiles = plan(pred, target, weight, kind, dloss.dtype)
    grid = (triton.cdiv(len(pred), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(pred):
        launch(backward_kernel, grid, **arguments, dloss_ptr=dloss, dloss_stride=dloss.stride(0), dpred_ptr=dpred, **constants)
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
    samples, block = element_tile(c * s)
    arguments = {
        "pred_ptr": pred, "pred_strides": pred.stride(), "target_ptr": target, "target_strides": target.stride(),
        "weight_ptr": None if weight is None else weight.contiguous(), "N": n, "S": s, "E": c * s,
    }  # fmt: skip
    constants = {
        "KIND": kind, "COMPUTE": TRITON_DTYPE[compute], "PRED_FLAT": pred[0].is_contiguous(),
        "TARGET_FLAT": target[0].is_contiguous(), "SAMPLES": samples, "BLOCK": block,
    }  # fmt: skip
    return arguments, constants, triton.cdiv(c * s, block)
