"""What the kernels of group_norm share. A tile is positions x channels of one sample, whichever of the two lie side by side in
memory; per channel are vectors of a tile's width."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.group_norm.plan import Plan


@triton.jit
def within(x, n, c, s, i, j, WIDE: tl.constexpr):
    """Pointers to positions s + i, (height, 1), and channels c + j, (1, width), of sample n of a tensor (N, C, S), given as its
    pointer and strides. Beyond the first element offsets are int32 unless the tile is WIDE: int64 takes registers that kernels
    then spill."""
    strides = x[1]
    first = x[0] + (n * strides[0] + tl.cast(c, tl.int64) * strides[1] + tl.cast(s, tl.int64) * strides[2])
    if WIDE:
        i, j = i.to(tl.int64), j.to(tl.int64)
    return first + (i * strides[2] + j * strides[1])


@triton.jit
def piece(program, C, parts, WIDTH: tl.constexpr):
    """The sample, first channel and part of a program on a split slab."""
    tiles = tl.cdiv(C, WIDTH)
    n, rest = (program // (tiles * parts)).to(tl.int64), program % (tiles * parts)
    return n, rest % tiles * WIDTH, (rest // tiles).to(tl.int64)


@triton.jit
def over_group(x, GROUP: tl.constexpr, CHANNELS: tl.constexpr):
    """For each channel of a tile the sum of x over its group; x is 0 where the tile has no channel."""
    if CHANNELS == GROUP:
        return tl.zeros_like(x) + tl.sum(x, 0)
    group = tl.arange(0, x.shape[0]) // GROUP
    return tl.sum(tl.where(group[:, None] == group[None, :], x[None, :], 0.0), 1)


@triton.jit
def affine(
    weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c, here, COMPUTE: tl.constexpr
):  # fmt: skip
    """The gain and offset of channels c of sample n: weight (1 + scale) and bias (1 + scale) + shift."""
    gain = tl.full(c.shape, 1.0, COMPUTE)
    offset = tl.zeros(c.shape, COMPUTE)
    if scale_ptr is not None:
        gain += tl.load(scale_ptr + n * scale_strides[0] + c * scale_strides[1], here).to(COMPUTE)
    if bias_ptr is not None:
        offset = gain * tl.load(bias_ptr + c, here).to(COMPUTE)
    if shift_ptr is not None:
        offset += tl.load(shift_ptr + n * shift_strides[0] + c * shift_strides[1], here).to(COMPUTE)
    if weight_ptr is not None:
        gain *= tl.load(weight_ptr + c, here).to(COMPUTE)
    return gain, offset


@triton.jit
def load_pre_bias(pre_bias_ptr, strides, n, c, here, COMPUTE: tl.constexpr):
    """Of channels c of sample n, 0 without one."""
    pre_bias = tl.zeros(c.shape, COMPUTE)
    if pre_bias_ptr is not None:
        pre_bias += tl.load(pre_bias_ptr + n * strides[0] + c * strides[1], here).to(COMPUTE)
    return pre_bias


@triton.jit
def load_statistics(statistics_ptr, n, c, C, here, GROUP: tl.constexpr):
    """mean, rest and rstd of the groups of channels c. The mean is the sum of the first two: in one number of fp32 it would have
    lost, beside a large mean, what is left when the mean is subtracted."""
    at = statistics_ptr + (n * (C // GROUP) + c // GROUP) * 3
    return tl.load(at, here), tl.load(at + 1, here), tl.load(at + 2, here)


@triton.jit
def load_norm(statistics_ptr, pre_bias_ptr, pre_bias_strides, n, c, C, here, GROUP: tl.constexpr, COMPUTE: tl.constexpr):
    """mean, rest and rstd of channels c with which (x - mean) rstd - rest is GN(x + pre_bias). What rounding loses of the mean
    less the pre_bias is in the rest."""
    mean, rest, rstd = load_statistics(statistics_ptr, n, c, C, here, GROUP)
    if pre_bias_ptr is not None:
        pre_bias = load_pre_bias(pre_bias_ptr, pre_bias_strides, n, c, here, COMPUTE)
        difference = mean - pre_bias
        taken = mean - difference
        rest += (mean - (difference + taken)) - (pre_bias - taken)
        mean = difference
    return mean, rest * rstd, rstd


@triton.jit
def settled(mean, rest):
    """The same sum, its first part the nearest number to it."""
    total = mean + rest
    return total, rest - (total - mean)


@triton.jit
def store_statistics(statistics_ptr, n, c, C, here, mean, rest, rstd, GROUP: tl.constexpr):
    """As load_statistics reads them; the channels of a group all store the same."""
    at = statistics_ptr + (n * (C // GROUP) + c // GROUP) * 3
    tl.store(at, mean, here)
    tl.store(at + 1, rest, here)
    tl.store(at + 2, rstd, here)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + tl.exp(-x))


def places(**tensors: Tensor | None) -> dict[str, Any]:
    """Tensors as arguments of a kernel: NAME_ptr and NAME_strides, None for one that is absent."""
    return {f"{name}_ptr": x for name, x in tensors.items()} | {
        f"{name}_strides": None if x is None else x.stride() for name, x in tensors.items()
    }


def wide(p: Plan, *tensors: Tensor | None) -> bool:
    """Whether a tile of one of the tensors (N, C, S) reaches over 2^31 elements."""
    return any(x is not None and (p.width - 1) * x.stride(1) + (p.height - 1) * x.stride(2) >= 2**31 for x in tensors)
