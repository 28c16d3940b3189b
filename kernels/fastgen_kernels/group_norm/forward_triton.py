"""Forward kernels of group_norm: one launch for a slab that is held or streamed, three for one that is split.

A tensor is passed on as a pair, its pointer and its strides; the pointer of one that is absent is None.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, quotient, reciprocal_deviation, remaining, rounded
from fastgen_kernels.autotune import fastest
from fastgen_kernels.group_norm.plan import Plan, plans
from fastgen_kernels.group_norm.tiles_triton import (
    affine,
    load_pre_bias,
    load_statistics,
    over_group,
    piece,
    places,
    settled,
    sigmoid,
    store_statistics,
    wide,
    within,
)
from fastgen_kernels.layout import as_ncs, compute_dtype, empty_like
from fastgen_kernels.recording import launch

HELD, TILE = 32768, 4096  # elements; see `plans`
MERGED = 1024  # partial statistics that are merged at a time


@triton.jit
def load_sum(x, residual, total, pre_bias, n, c, s, i, j, inside, COMPUTE: tl.constexpr, WIDE: tl.constexpr):
    """x + residual + pre_bias of a tile. x + residual is rounded to x's dtype and stored, for it is a result; the norm is of what
    was stored."""
    tile = tl.load(within(x, n, c, s, i, j, WIDE), inside)
    if residual[0] is not None:
        other = tl.load(within(residual, n, c, s, i, j, WIDE), inside)
        tile = rounded(tile.to(COMPUTE) + rounded(other, tile.dtype), tile.dtype)
        tl.store(within(total, n, c, s, i, j, WIDE), tile, inside)
    return tile + pre_bias[None, :]


@triton.jit
def load_again(x, residual, total, pre_bias, n, c, s, i, j, inside, WIDE: tl.constexpr):
    """What load_sum gave for the tile."""
    if residual[0] is None:
        tile = tl.load(within(x, n, c, s, i, j, WIDE), inside)
    else:
        tile = tl.load(within(total, n, c, s, i, j, WIDE), inside)
    return tile + pre_bias[None, :]


@triton.jit
def store_result(y, d, gain, offset, n, c, s, i, j, inside, SILU: tl.constexpr, WIDE: tl.constexpr):
    """act(d gain + offset) of a tile; d: what the subtraction of the mean leaves."""
    result = d * gain[None, :] + offset[None, :]
    if SILU:
        result *= sigmoid(result)
    tl.store(within(y, n, c, s, i, j, WIDE), rounded(result, y[0].dtype.element_ty), inside)


@triton.jit
def channel_statistics(
    x, residual, total, pre_bias, n, c, start, stop, here,
    COMPUTE: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """mean, rest and m2 of positions start to stop of each channel: their mean is the sum of the first two, and m2 that of their
    squared distances from it. Of what is left beside the mean of the first tile each place in a tile has a mean
    and an m2 of its own (Welford, 1962), so that a tile far from the others costs no digits; at the end these are merged."""
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    inside = (i < remaining(start, stop, HEIGHT)) & here[None, :]
    h = load_sum(x, residual, total, pre_bias, n, c, start, i, j, inside, COMPUTE, WIDE)
    mean = quotient(tl.sum(tl.where(inside, h, 0.0), 0), remaining(start, stop, HEIGHT))
    means = tl.where(inside, h - mean[None, :], 0.0)
    squares = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    tiles = tl.cdiv(stop - start, HEIGHT)
    for k in range(1, tiles):
        s = start + k * HEIGHT
        inside = (i < remaining(s, stop, HEIGHT)) & here[None, :]
        h = load_sum(x, residual, total, pre_bias, n, c, s, i, j, inside, COMPUTE, WIDE)
        d = tl.where(inside, h - mean[None, :] - means, 0.0)
        new = quotient(tl.cast(1.0, COMPUTE), k + 1)
        means += d * new
        squares += d * d * (1.0 - new)
    counts = tl.where(i < remaining(start + (tiles - 1) * HEIGHT, stop, HEIGHT), tiles, tiles - 1)
    rest = quotient(tl.sum(means * counts, 0), stop - start)
    d = means - rest[None, :]
    mean, rest = settled(mean, rest)
    return mean, rest, tl.sum(squares + d * d * counts, 0)


@triton.jit
def apply(
    x, residual, total, y, pre_bias, mean, gain, offset, n, c, start, stop, here,
    SILU: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The results at positions start to stop, from the last tile to the first: what was read last is still in the cache."""
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    tiles = tl.cdiv(stop - start, HEIGHT)
    for k in range(0, tiles):
        s = start + (tiles - 1 - k) * HEIGHT
        inside = (i < remaining(s, stop, HEIGHT)) & here[None, :]
        h = load_again(x, residual, total, pre_bias, n, c, s, i, j, inside, WIDE)
        store_result(y, h - mean[None, :], gain, offset, n, c, s, i, j, inside, SILU, WIDE)


@triton.jit
def held_kernel(
    x_ptr, x_strides, residual_ptr, residual_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides,
    pre_bias_ptr, pre_bias_strides, y_ptr, total_ptr, out_strides, statistics_ptr,
    N, C, S, eps: tl.float64,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The mean is subtracted twice, the second time the mean of what the first has left: so a large one is gone to the last
    digit."""
    x, residual, total, y = (x_ptr, x_strides), (residual_ptr, residual_strides), (total_ptr, out_strides), (y_ptr, out_strides)
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)
    slabs = tl.cdiv(C, CHANNELS)
    count = tl.cast(S, COMPUTE) * GROUP
    for slab in range(tl.program_id(0), tl.cast(N, tl.int64) * slabs, tl.num_programs(0)):
        n, c = tl.cast(slab // slabs, tl.int64), tl.cast(slab % slabs, tl.int32) * CHANNELS
        here = (j < CHANNELS) & (c + j < C)
        inside = (i < S) & here[None, :]
        pre_bias = load_pre_bias(pre_bias_ptr, pre_bias_strides, n, c + j, here, COMPUTE)
        h = load_sum(x, residual, total, pre_bias, n, c, 0, i, j[None, :], inside, COMPUTE, WIDE)
        mean = quotient(over_group(tl.sum(tl.where(inside, h, 0.0), 0), GROUP, CHANNELS), count)
        d = tl.where(inside, h - mean[None, :], 0.0)
        rest = quotient(over_group(tl.sum(d, 0), GROUP, CHANNELS), count)
        var = quotient(over_group(tl.sum(d * d, 0), GROUP, CHANNELS), count) - rest * rest
        rstd = reciprocal_deviation(var, eps, COMPUTE)
        store_statistics(statistics_ptr, n, c + j, C, here, mean, rest, rstd, GROUP)

        gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
        gain *= rstd
        store_result(y, d, gain, offset - rest * gain, n, c, 0, i, j[None, :], inside, SILU, WIDE)


@triton.jit
def streamed_kernel(
    x_ptr, x_strides, residual_ptr, residual_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides,
    pre_bias_ptr, pre_bias_strides, y_ptr, total_ptr, out_strides, statistics_ptr,
    N, C, S, eps: tl.float64,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All in one launch for slabs that are gone over twice: first their statistics, then the result."""
    x, residual, total, y = (x_ptr, x_strides), (residual_ptr, residual_strides), (total_ptr, out_strides), (y_ptr, out_strides)
    j = tl.arange(0, WIDTH)
    slabs = tl.cdiv(C, CHANNELS)
    stop = tl.cast(S, tl.int64)
    count = tl.cast(S, COMPUTE)
    for slab in range(tl.program_id(0), tl.cast(N, tl.int64) * slabs, tl.num_programs(0)):
        n, c = tl.cast(slab // slabs, tl.int64), tl.cast(slab % slabs, tl.int32) * CHANNELS
        here = (j < CHANNELS) & (c + j < C)
        pre_bias = load_pre_bias(pre_bias_ptr, pre_bias_strides, n, c + j, here, COMPUTE)
        of_channel, of_rest, m2 = channel_statistics(
            x, residual, total, pre_bias, n, c, 0, stop, here, COMPUTE, WIDE, HEIGHT, WIDTH
        )
        mean = quotient(over_group(of_channel, GROUP, CHANNELS), GROUP)
        d = tl.where(here, (of_channel - mean) + of_rest, 0.0)
        rest = quotient(over_group(d, GROUP, CHANNELS), GROUP)
        d = tl.where(here, d - rest, 0.0)
        mean, rest = settled(mean, rest)
        m2 = over_group(m2 + d * d * count, GROUP, CHANNELS)
        rstd = reciprocal_deviation(quotient(m2, count * GROUP), eps, COMPUTE)
        store_statistics(statistics_ptr, n, c + j, C, here, mean, rest, rstd, GROUP)

        gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
        gain *= rstd
        if residual_ptr is not None:
            tl.debug_barrier()  # what the second pass reads of the total, other threads may have written
        apply(
            x, residual, total, y, pre_bias, mean, gain, offset - rest * gain, n, c, 0, stop, here,
            SILU, WIDE, HEIGHT, WIDTH,
        )  # fmt: skip


@triton.jit
def statistics_kernel(
    x_ptr, x_strides, residual_ptr, residual_strides, pre_bias_ptr, pre_bias_strides, total_ptr, out_strides, partial_ptr,
    N, C, S, SPAN, parts,
    COMPUTE: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of a split slab: the statistics of SPAN positions of each channel, three planes (N, parts, C)."""
    x, residual, total = (x_ptr, x_strides), (residual_ptr, residual_strides), (total_ptr, out_strides)
    j = tl.arange(0, WIDTH)
    n, c, part = piece(tl.program_id(0), C, parts, WIDTH)
    here = c + j < C
    start, stop = part * SPAN, tl.minimum(part * SPAN + SPAN, S)
    pre_bias = load_pre_bias(pre_bias_ptr, pre_bias_strides, n, c + j, here, COMPUTE)
    mean, rest, m2 = channel_statistics(x, residual, total, pre_bias, n, c, start, stop, here, COMPUTE, WIDE, HEIGHT, WIDTH)
    at, plane = partial_ptr + (n * parts + part) * C + c + j, tl.cast(N, tl.int64) * parts * C
    tl.store(at, mean, here)
    tl.store(at + plane, rest, here)
    tl.store(at + 2 * plane, m2, here)


@triton.jit
def merge_kernel(
    partial_ptr, statistics_ptr, N, C, S, SPAN, parts, eps: tl.float64,
    GROUP: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The statistics of a group, of those of its channels' parts (Chan, Golub & LeVeque, 1983)."""
    slab = tl.program_id(0).to(tl.int64)
    n, g = slab // (C // GROUP), slab % (C // GROUP)
    first, plane = partial_ptr + n * parts * C + g * GROUP, tl.cast(N, tl.int64) * parts * C
    k = tl.arange(0, BLOCK)
    size = tl.cast(S, COMPUTE) * GROUP
    mean = tl.load(first)

    total = tl.zeros((BLOCK,), COMPUTE)
    for start in range(0, parts * GROUP, BLOCK):
        part, at, here = (start + k) // GROUP, (start + k) // GROUP * C + (start + k) % GROUP, start + k < parts * GROUP
        count = tl.minimum(S - part * SPAN, SPAN)
        d = (tl.load(first + at, here) - mean) + tl.load(first + plane + at, here)
        total += tl.where(here, count * d, 0.0)
    rest = quotient(tl.sum(total, 0), size)

    left = tl.zeros((BLOCK,), COMPUTE)  # what rounding has lost of the rest
    total = tl.zeros((BLOCK,), COMPUTE)
    for start in range(0, parts * GROUP, BLOCK):
        part, at, here = (start + k) // GROUP, (start + k) // GROUP * C + (start + k) % GROUP, start + k < parts * GROUP
        count = tl.minimum(S - part * SPAN, SPAN)
        d = (tl.load(first + at, here) - mean) + tl.load(first + plane + at, here) - rest
        left += tl.where(here, count * d, 0.0)
        total += tl.where(here, tl.load(first + 2 * plane + at, here) + count * d * d, 0.0)
    mean, rest = settled(mean, rest)
    statistics = statistics_ptr + slab * 3
    tl.store(statistics, mean)
    tl.store(statistics + 1, rest + quotient(tl.sum(left, 0), size))
    tl.store(statistics + 2, reciprocal_deviation(quotient(tl.sum(total, 0), size), eps, COMPUTE))


@triton.jit
def apply_kernel(
    x_ptr, x_strides, residual_ptr, weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides,
    pre_bias_ptr, pre_bias_strides, y_ptr, total_ptr, out_strides, statistics_ptr,
    C, S, SPAN, parts,
    GROUP: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of a split slab: the results at SPAN positions of each channel, the last programs' first."""
    x, residual, total, y = (x_ptr, x_strides), (residual_ptr, None), (total_ptr, out_strides), (y_ptr, out_strides)
    j = tl.arange(0, WIDTH)
    n, c, part = piece(tl.num_programs(0) - 1 - tl.program_id(0), C, parts, WIDTH)
    here = c + j < C
    start, stop = part * SPAN, tl.minimum(part * SPAN + SPAN, S)
    pre_bias = load_pre_bias(pre_bias_ptr, pre_bias_strides, n, c + j, here, COMPUTE)
    mean, rest, rstd = load_statistics(statistics_ptr, n, c + j, C, here, GROUP)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
    gain *= rstd
    apply(
        x, residual, total, y, pre_bias, mean, gain, offset - rest * gain, n, c, start, stop, here,
        SILU, WIDE, HEIGHT, WIDTH,
    )  # fmt: skip


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    pre_bias: Tensor | None, groups: int, eps: float, activation: str | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """y; x + residual, of no elements without a residual; and the groups' statistics (N, groups, 3)."""
    compute = compute_dtype(x.dtype)
    y = empty_like(x)
    total = x.new_empty(0) if residual is None else empty_like(x)
    statistics = x.new_empty((len(x), groups, 3), dtype=compute)
    if x.numel() == 0:
        return y, total, statistics
    norm, out = as_ncs(x), as_ncs(y)
    inputs = {"x": norm, "residual": None if residual is None else as_ncs(residual)}
    n, c, s = norm.shape
    parameters = {
        "weight_ptr": None if weight is None else weight.contiguous(), "bias_ptr": None if bias is None else bias.contiguous(),
        **places(scale=scale, shift=shift),
    }  # fmt: skip
    results = {"total_ptr": None if residual is None else total, "out_strides": out.stride()}
    sizes, rule = {"C": c, "S": s}, {"GROUP": c // groups, "SILU": activation == "silu"}

    def run(p: Plan) -> None:
        """Writes y, the sum and the statistics by the kernels of a plan."""
        constants = {
            "COMPUTE": TRITON_DTYPE[compute], "WIDE": wide(p, out, *inputs.values()), "HEIGHT": p.height, "WIDTH": p.width,
            "num_warps": p.warps,
        }  # fmt: skip
        if p.algorithm != "split":
            kernel = held_kernel if p.algorithm == "held" else streamed_kernel
            launch(kernel, (p.programs,),
                **places(**inputs, pre_bias=pre_bias), **parameters, **results, y_ptr=y, statistics_ptr=statistics,
                N=n, **sizes, eps=eps, CHANNELS=p.channels, **rule, **constants,
            )  # fmt: skip
            return
        partial = statistics.new_empty((3, n, p.parts, c))
        split = {"SPAN": p.span, "parts": p.parts}
        launch(statistics_kernel, (p.programs,),
            **places(**inputs, pre_bias=pre_bias), **results, partial_ptr=partial, N=n, **sizes, **split, **constants
        )
        launch(merge_kernel, (n * groups,),
            partial, statistics, n, **sizes, **split, eps=eps, GROUP=c // groups, COMPUTE=constants["COMPUTE"], BLOCK=MERGED
        )
        launch(apply_kernel, (p.programs,),
            **places(x=norm, pre_bias=pre_bias), residual_ptr=residual, **parameters, **results, y_ptr=y,
            statistics_ptr=statistics, **sizes, **split, **rule, **constants,
        )  # fmt: skip

    with torch.cuda.device_of(x):
        ways = plans(norm, groups, HELD, TILE)
        run(fastest(("group_norm", x.device, x.dtype, residual is None, *rule.values(), *ways), ways, run))
    return y, total, statistics
