"""Kernels of reparameterize_kl.py, one each way. The noise is drawn where it is used, in backward once more, and never stored."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, exp_remainder, exponential, remaining
from fastgen_kernels.blocks_triton import cover, noise, offsets, splits
from fastgen_kernels.layout import as_ncs, compute_dtype, empty_like, like
from fastgen_kernels.noise_triton import load_key
from fastgen_kernels.recording import launch


@triton.jit
def clamped(logvar, LOW: tl.constexpr, HIGH: tl.constexpr):
    """As torch.clamp: NaN stays NaN, which the GPU's minimum and maximum drop."""
    return tl.where(logvar < LOW, LOW, tl.where(logvar > HIGH, HIGH, logvar))


@triton.jit
def exp_minus_1_minus(x, exp_x):
    """exp(x) - 1 - x, without the cancellation near 0; in fp64 as it stands, whose digits suffice."""
    if x.dtype == tl.float64:
        return exp_x - 1.0 - x
    return tl.where(tl.abs(x) < 0.5, x * x * exp_remainder(x), exp_x - 1.0 - x)


@triton.jit
def forward_kernel(
    mu_ptr, mu_strides, logvar_ptr, logvar_strides, eps_ptr, key_ptr, z_ptr, kl_ptr, out_strides,
    N, C, S, E, Q, SPAN,
    LOW: tl.constexpr, HIGH: tl.constexpr, DRAW: tl.constexpr, SUM: tl.constexpr, COMPUTE: tl.constexpr,
    FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """z = mu + exp(logvar/2) eps and the divergence of SPAN blocks, summed over each lane and then across the lanes."""
    sample, i = tl.program_id(0).to(tl.int64) * SAMPLES, tl.arange(0, SAMPLES)[:, None]
    n, exists = sample + i, i < remaining(sample, N, SAMPLES)
    j = tl.arange(0, BLOCKS)[None, :]
    Q = tl.cast(Q, tl.int64)
    start = tl.program_id(1) * tl.cast(SPAN, tl.int64)
    stop = tl.minimum(start + SPAN, Q)
    if DRAW:
        key = load_key(key_ptr, n, exists)
    kl = tl.zeros((SAMPLES, BLOCKS), COMPUTE)
    for first in range(start, stop, BLOCKS):
        if DRAW:
            normal = noise(key, first, j, C, S, QUARTERS)
        for w in tl.static_range(4):
            inside = exists & (j < remaining(first, stop, BLOCKS)) & (j < remaining(first + w * Q, E, BLOCKS))
            out = n * out_strides[0] + offsets(w, first, j, C, S, Q, out_strides, FLAT, QUARTERS)
            mu_at = n * mu_strides[0] + offsets(w, first, j, C, S, Q, mu_strides, FLAT, QUARTERS)
            logvar_at = n * logvar_strides[0] + offsets(w, first, j, C, S, Q, logvar_strides, FLAT, QUARTERS)
            mu = tl.load(mu_ptr + mu_at, inside).to(COMPUTE)
            logvar = clamped(tl.load(logvar_ptr + logvar_at, inside).to(COMPUTE), LOW, HIGH)
            eps = normal[w] if DRAW else tl.load(eps_ptr + out, inside).to(COMPUTE)

            std = exponential(0.5 * logvar)
            word = 0.5 * (mu * mu + exp_minus_1_minus(logvar, exponential(logvar)))
            if SUM:
                kl = tl.where(inside, kl + word, kl)
            else:
                tl.store(kl_ptr + out, word, inside)
            tl.store(z_ptr + out, mu + std * eps, inside)
    if SUM:
        tl.store(kl_ptr + n * tl.num_programs(1) + tl.program_id(1), tl.sum(kl, 1)[:, None], exists)


@triton.jit
def backward_kernel(
    dz_ptr, dkl_ptr, dkl_stride, mu_ptr, mu_strides, logvar_ptr, logvar_strides, eps_ptr, key_ptr,
    dmu_ptr, dlogvar_ptr, out_strides,
    N, C, S, E, Q,
    LOW: tl.constexpr, HIGH: tl.constexpr, DRAW: tl.constexpr, SUM: tl.constexpr, COMPUTE: tl.constexpr,
    HAS_DZ: tl.constexpr, HAS_DKL: tl.constexpr,
    FLAT: tl.constexpr, QUARTERS: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """dmu = dz + dkl mu, dlogvar = (dz eps exp(logvar/2) + dkl (exp(logvar) - 1)) / 2, and 0 where logvar was clamped."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    j = tl.arange(0, BLOCKS)[None, :]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS
    Q = tl.cast(Q, tl.int64)
    if HAS_DZ and DRAW:
        normal = noise(load_key(key_ptr, n, n < N), first, j, C, S, QUARTERS)
    if HAS_DKL and SUM:
        dkl = tl.load(dkl_ptr + n * dkl_stride, n < N)
    for w in tl.static_range(4):
        inside = (n < N) & (j < Q - first) & (first + w * Q + j < E)
        out = n * out_strides[0] + offsets(w, first, j, C, S, Q, out_strides, FLAT, QUARTERS)
        mu_at = n * mu_strides[0] + offsets(w, first, j, C, S, Q, mu_strides, FLAT, QUARTERS)
        logvar_at = n * logvar_strides[0] + offsets(w, first, j, C, S, Q, logvar_strides, FLAT, QUARTERS)
        given = tl.load(logvar_ptr + logvar_at, inside).to(COMPUTE)
        logvar = clamped(given, LOW, HIGH)
        std = exponential(0.5 * logvar)

        dmu = tl.zeros((SAMPLES, BLOCKS), COMPUTE)
        dlogvar = tl.zeros((SAMPLES, BLOCKS), COMPUTE)
        if HAS_DZ:
            dz = tl.load(dz_ptr + out, inside).to(COMPUTE)
            eps = normal[w] if DRAW else tl.load(eps_ptr + out, inside).to(COMPUTE)
            dmu += dz
            dlogvar += 0.5 * dz * eps * std
        if HAS_DKL:
            if not SUM:
                dkl = tl.load(dkl_ptr + out, inside)
            dmu += dkl * tl.load(mu_ptr + mu_at, inside).to(COMPUTE)
            dlogvar += 0.5 * dkl * (exp_minus_1_minus(logvar, exponential(logvar)) + logvar)
        dlogvar = tl.where((given >= LOW) & (given <= HIGH), dlogvar, 0.0)
        tl.store(dmu_ptr + out, dmu, inside)
        tl.store(dlogvar_ptr + out, dlogvar, inside)


def forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, key: Tensor | None, low: float, high: float, per_element: bool
) -> tuple[Tensor, Tensor]:
    """The op reparameterize_kl: z like mu, and kl, (N,) or per_element of mu's shape, in fp32, in fp64 for fp64 mu."""
    n, compute = len(mu), compute_dtype(mu.dtype)
    z = empty_like(mu)
    if mu.numel() == 0:
        return z, empty_like(mu, compute) if per_element else mu.new_zeros(n, dtype=compute)
    arguments, constants, tiles = plan(mu, logvar, eps, key, z, low, high, per_element)
    parts = splits(n, tiles)
    kl = empty_like(mu, compute) if per_element else mu.new_empty((n, parts), dtype=compute)
    grid = triton.cdiv(n, constants["SAMPLES"]), parts
    with torch.cuda.device_of(mu):
        span = triton.cdiv(tiles, parts) * constants["BLOCKS"]
        launch(forward_kernel, grid, **arguments, z_ptr=z, kl_ptr=kl, SPAN=span, **constants)
    return z, kl if per_element else kl.sum(1) if parts > 1 else kl[:, 0]


def backward(
    dz: Tensor | None, dkl: Tensor | None, mu: Tensor, logvar: Tensor, eps: Tensor | None, key: Tensor | None,
    low: float, high: float, per_element: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of mu and logvar, in their dtypes and mu's memory format; dz or dkl is None where it is not given."""
    dmu, dlogvar = empty_like(mu), empty_like(mu, logvar.dtype)
    if mu.numel() == 0:
        return dmu, dlogvar
    arguments, constants, tiles = plan(mu, logvar, eps, key, dmu, low, high, per_element)
    dz = None if dz is None else like(dz, mu)
    if dkl is not None and per_element:
        dkl = like(dkl, mu)
    grid = (triton.cdiv(len(mu), constants["SAMPLES"]) * tiles,)
    with torch.cuda.device_of(mu):
        launch(backward_kernel, grid,
            **arguments, dz_ptr=dz, dkl_ptr=dkl, dkl_stride=0 if dkl is None else dkl.stride(0), dmu_ptr=dmu, dlogvar_ptr=dlogvar,
            HAS_DZ=dz is not None, HAS_DKL=dkl is not None, **constants,
        )  # fmt: skip
    return dmu, dlogvar


def plan(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, key: Tensor | None, out: Tensor, low: float, high: float, per_element: bool
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """What both kernels take, as arguments and constants, and the number of tiles that cover a sample."""
    mu, logvar, out3, compute = as_ncs(mu), as_ncs(logvar), as_ncs(out), compute_dtype(mu.dtype)
    sizes, constants, tiles = cover(out3, mu, logvar, strided=512)  # more spill
    arguments = {
        "mu_ptr": mu, "mu_strides": mu.stride(), "logvar_ptr": logvar, "logvar_strides": logvar.stride(),
        "eps_ptr": None if eps is None else like(eps, out), "key_ptr": None if key is None else key.contiguous(),
        "out_strides": out3.stride(), **sizes,
    }  # fmt: skip
    constants |= {
        "LOW": low, "HIGH": high, "DRAW": eps is None, "SUM": not per_element, "COMPUTE": TRITON_DTYPE[compute],
    }  # fmt: skip
    return arguments, constants, tiles
