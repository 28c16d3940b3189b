"""Kernels of reconstruction_nll.py, one each way.

An element's place in its sample matters to nothing, so the elements are taken in the order of the logits' memory.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, remaining, rounded
from fastgen_kernels.blocks_triton import splits
from fastgen_kernels.elements_triton import element_tile, offset_of
from fastgen_kernels.layout import as_ncs, channels_last, compute_dtype, empty_like
from fastgen_kernels.recording import launch


@triton.jit
def as_probability(x, COMPUTE: tl.constexpr):
    """x in COMPUTE, uint8 scaled to [0, 1], both ends exactly."""
    if x.dtype == tl.uint8:
        return x.to(COMPUTE) * 0.00392156862745098
    return x.to(COMPUTE)


@triton.jit
def log1p(x):
    """log(1 + x) for x in [0, 1], to its last digits however small x is: near 1 tl.log has lost them."""
    if x.dtype == tl.float64:
        y = 1.0 + x
        return tl.log(y) + (x - (y - 1.0))
    s = x / (2.0 + x)  # log(1 + x) = 2 artanh(s)
    t = s * s
    p = 0.28024458915947964
    p = p * t + 0.27999141065220945
    p = p * t + 0.4002169905938743
    p = p * t + 0.6666641313272654
    return s * (2.0 + t * p)


@triton.jit
def tail(e):
    """sigmoid(-|logit|), of e = exp(-|logit|): the smaller of the two probabilities, with all its digits."""
    return e / (1.0 + e)


@triton.jit
def residual(logit, x, tail):
    """sigmoid(logit) - x."""
    return tl.where(logit < 0.0, tail - x, (1.0 - x) - tail)


@triton.jit
def element_nll(logit, x, INVERSE_STD: tl.constexpr, CONSTANT: tl.constexpr):
    """-log p(x | logit), Bernoulli's where INVERSE_STD is None: a sum of positive terms, without cancellation."""
    e = tl.exp(-tl.abs(logit))
    if INVERSE_STD is None:
        nll = tl.abs(logit) * tl.where(logit < 0.0, x, 1.0 - x) + log1p(e)
    else:
        d = residual(logit, x, tail(e)) * INVERSE_STD
        nll = 0.5 * d * d + CONSTANT
    return nll


@triton.jit
def slope(logit, x, INVERSE_STD: tl.constexpr):
    """The derivative of element_nll by the logit."""
    e = tl.exp(-tl.abs(logit))
    slope = residual(logit, x, tail(e))
    if INVERSE_STD is not None:
        slope *= INVERSE_STD * INVERSE_STD * (tail(e) / (1.0 + e))
    return slope


@triton.jit
def forward_kernel(
    logits_ptr, logits_strides, x_ptr, x_strides, nll_ptr,
    N, S, E, SPAN,
    INVERSE_STD: tl.constexpr, CONSTANT: tl.constexpr, COMPUTE: tl.constexpr,
    LOGITS_FLAT: tl.constexpr, X_FLAT: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The negative log-likelihood of SPAN elements of a sample, summed over each lane and then across the lanes."""
    sample, i = tl.program_id(0).to(tl.int64) * SAMPLES, tl.arange(0, SAMPLES)[:, None]
    n, exists = sample + i, i < remaining(sample, N, SAMPLES)
    j = tl.arange(0, BLOCK)[None, :]
    start = tl.program_id(1).to(tl.int64) * SPAN
    stop = tl.minimum(start + SPAN, E)
    total = tl.zeros((SAMPLES, BLOCK), COMPUTE)
    for first in range(start, stop, BLOCK):
        inside = exists & (j < remaining(first, stop, BLOCK))
        logits_at = n * logits_strides[0] + offset_of(first + j, S, logits_strides, LOGITS_FLAT)
        x_at = n * x_strides[0] + offset_of(first + j, S, x_strides, X_FLAT)
        logit = tl.load(logits_ptr + logits_at, inside).to(COMPUTE)
        x = as_probability(tl.load(x_ptr + x_at, inside), COMPUTE)
        total += tl.where(inside, element_nll(logit, x, INVERSE_STD, CONSTANT), 0.0)
    tl.store(nll_ptr + n * tl.num_programs(1) + tl.program_id(1), tl.sum(total, 1)[:, None], exists)


@triton.jit
def backward_kernel(
    dnll_ptr, dnll_stride, logits_ptr, logits_strides, x_ptr, x_strides, dlogits_ptr,
    N, S, E,
    INVERSE_STD: tl.constexpr, COMPUTE: tl.constexpr,
    LOGITS_FLAT: tl.constexpr, X_FLAT: tl.constexpr, SAMPLES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dlogits = dnll times the slope."""
    tiles = tl.cdiv(E, BLOCK)
    sample, i = (tl.program_id(0) // tiles).to(tl.int64) * SAMPLES, tl.arange(0, SAMPLES)[:, None]
    n, exists = sample + i, i < remaining(sample, N, SAMPLES)
    first, j = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK, tl.arange(0, BLOCK)[None, :]
    dnll = tl.load(dnll_ptr + n * dnll_stride, exists)

    inside = exists & (j < remaining(first, E, BLOCK))
    logits_at = n * logits_strides[0] + offset_of(first + j, S, logits_strides, LOGITS_FLAT)
    x_at = n * x_strides[0] + offset_of(first + j, S, x_strides, X_FLAT)
    logit = tl.load(logits_ptr + logits_at, inside).to(COMPUTE)
    x = as_probability(tl.load(x_ptr + x_at, inside), COMPUTE)
    dlogits = dnll * slope(logit, x, INVERSE_STD)
    tl.store(dlogits_ptr + n * E + first + j, rounded(dlogits, dlogits_ptr.dtype.element_ty), inside)


def forward(logits: Tensor, x: Tensor, likelihood: str, std: float) -> Tensor:
    """The op reconstruction_nll: (N,) nats, in fp32, in fp64 for fp64 logits."""
    n, compute = len(logits), compute_dtype(logits.dtype)
    if logits.numel() == 0:
        return logits.new_zeros(n, dtype=compute)
    arguments, constants, tiles = plan(logits, x, likelihood, std)
    parts = splits(n, tiles)
    nll = logits.new_empty((n, parts), dtype=compute)
    grid = triton.cdiv(n, constants["SAMPLES"]), parts
    with torch.cuda.device_of(logits):
        launch(forward_kernel, grid,
            **arguments, nll_ptr=nll, SPAN=triton.cdiv(tiles, parts) * constants["BLOCK"],
            CONSTANT=math.log(std) + 0.5 * math.log(2 * math.pi), **constants,
            num_warps=8 if constants["BLOCK"] > 1024 else 4,  # with 4, the largest tile of unaligned elements spills
        )  # fmt: skip
    return nll.sum(1) if parts > 1 else nll[:, 0]


def backward(dnll: Tensor, logits: Tensor, x: Tensor, likelihood: str, std: float) -> Tensor:
    """The gradient of the logits, in their dtype and memory format."""
    dlogits = empty_like(logits)
    if logits.numel() == 0:
        return dlogits
    arguments, constants, tiles = plan(logits, x, likelihood, std)
    grid = (triton.cdiv(len(logits), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(logits):
        launch(backward_kernel, grid, **arguments, dnll_ptr=dnll, dnll_stride=dnll.stride(0), dlogits_ptr=dlogits, **constants)
    return dlogits


def plan(logits: Tensor, x: Tensor, likelihood: str, std: float) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What both kernels take, as arguments and constants, and the number of tiles that cover a sample."""
    compute, innermost = compute_dtype(logits.dtype), channels_last(logits)
    logits, x = as_ncs(logits), as_ncs(x)
    if innermost:
        logits, x = logits.mT, x.mT
    n, c, s = logits.shape
    samples, block = element_tile(c * s)
    logits_flat, x_flat = (y[0].is_contiguous() for y in (logits, x))
    if not (logits_flat and x_flat):
        block = min(block, 1024)  # where each element has an address of its own, more spill
    arguments = {
        "logits_ptr": logits, "logits_strides": logits.stride(), "x_ptr": x, "x_strides": x.stride(),
        "N": n, "S": s, "E": c * s,
    }  # fmt: skip
    constants = {
        "INVERSE_STD": 1 / std if likelihood == "gaussian" else None, "COMPUTE": TRITON_DTYPE[compute],
        "LOGITS_FLAT": logits_flat, "X_FLAT": x_flat, "SAMPLES": samples, "BLOCK": block,
    }  # fmt: skip
    return arguments, constants, triton.cdiv(c * s, block)
