"""Backward kernels of group_norm. With p = act'(a xhat + b) dy, where a and b are the gain and offset of a channel, and M the
elements of a group,

    dx = rstd (a p - sum(a p) / M - xhat sum(a xhat p) / M)

A group's sums are made of its channels', of p, xhat p and xhat over the positions; so are, by one small launch, the gradients of
all that is given for a channel. No sum depends on the order in which programs run.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, quotient, remaining, rounded
from fastgen_kernels.autotune import fastest
from fastgen_kernels.group_norm.plan import Plan, plans, power_of_2, spills_sooner
from fastgen_kernels.group_norm.tiles_triton import (
    affine,
    load_norm,
    load_statistics,
    over_group,
    piece,
    places,
    sigmoid,
    wide,
    within,
)
from fastgen_kernels.layout import as_ncs, compute_dtype, empty_like
from fastgen_kernels.recording import launch

HELD, TILE = 16384, 4096  # elements; see `plans`
MERGED = 128  # channels of a group whose parts are summed at a time
ROWS, COLUMNS = 32, 32  # samples and channels whose gradients are made at a time


@triton.jit
def load_normalized(
    x, dy, mean, rest, rstd, gain, offset, n, c, s, i, j, inside, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr
):
    """xhat and p of a tile; p is 0 outside. mean, rest, rstd: of load_norm."""
    h = tl.load(within(x, n, c, s, i, j, WIDE), inside, 0.0)
    xhat = (h - mean[None, :]) * rstd[None, :] - rest[None, :]
    p = tl.load(within(dy, n, c, s, i, j, WIDE), inside, 0.0).to(COMPUTE)
    if SILU:
        y = xhat * gain[None, :] + offset[None, :]
        slope = sigmoid(y)
        p *= slope * (1.0 + y * (1.0 - slope))
    return xhat, p


@triton.jit
def store_gradient(dx, dtotal, xhat, p, of_p, of_1, of_xhat, n, c, s, i, j, inside, WIDE: tl.constexpr):
    """dx = of_p p - of_1 - of_xhat xhat of a tile, and with it the gradient of the sum that was a result."""
    gradient = p * of_p[None, :] - of_1[None, :] - xhat * of_xhat[None, :]
    if dtotal[0] is not None:
        gradient += tl.load(within(dtotal, n, c, s, i, j, WIDE), inside)
    tl.store(within(dx, n, c, s, i, j, WIDE), rounded(gradient, dx[0].dtype.element_ty), inside)


@triton.jit
def channel_sums(
    x, dy, mean, rest, rstd, gain, offset, n, c, start, stop, here,
    PRE_BIAS: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums of p, xhat p and, for the gradient of a pre_bias, xhat over positions start to stop of each channel."""
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    sum_p = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    sum_xhat_p = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    sum_xhat = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    for s in range(start, stop, HEIGHT):
        inside = (i < remaining(s, stop, HEIGHT)) & here[None, :]
        xhat, p = load_normalized(
            x, dy, mean, rest, rstd, gain, offset, n, c, s, i, j, inside, SILU, COMPUTE, WIDE
        )  # fmt: skip
        sum_p += p
        sum_xhat_p += xhat * p
        if PRE_BIAS:
            sum_xhat += tl.where(inside, xhat, 0.0)
    return tl.sum(sum_p, 0), tl.sum(sum_xhat_p, 0), tl.sum(sum_xhat, 0)


@triton.jit
def apply(
    x, dy, dx, dtotal, mean, rest, rstd, gain, offset, of_1, of_xhat, n, c, start, stop, here,
    SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx at positions start to stop, from the last tile to the first: what was read last is still in the cache."""
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)[None, :]
    of_p = gain * rstd
    tiles = tl.cdiv(stop - start, HEIGHT)
    for k in range(0, tiles):
        s = start + (tiles - 1 - k) * HEIGHT
        inside = (i < remaining(s, stop, HEIGHT)) & here[None, :]
        xhat, p = load_normalized(
            x, dy, mean, rest, rstd, gain, offset, n, c, s, i, j, inside, SILU, COMPUTE, WIDE
        )  # fmt: skip
        store_gradient(dx, dtotal, xhat, p, of_p, of_1, of_xhat, n, c, s, i, j, inside, WIDE)


@triton.jit
def store_sums(sums_ptr, plane, at, here, sum_p, sum_xhat_p, sum_xhat, PRE_BIAS: tl.constexpr):
    """Into two planes, or three, at the places `at` of each; without sums_ptr nowhere."""
    if sums_ptr is not None:
        tl.store(sums_ptr + at, sum_p, here)
        tl.store(sums_ptr + plane + at, sum_xhat_p, here)
        if PRE_BIAS:
            tl.store(sums_ptr + 2 * plane + at, sum_xhat, here)


@triton.jit
def group_means(moments_ptr, sum_p, sum_xhat_p, gain, n, c, C, S, here, GROUP: tl.constexpr, CHANNELS: tl.constexpr):
    """sum(a p) / M and sum(a xhat p) / M of the groups of channels c, stored for the gradients of what is given for a channel."""
    count = tl.cast(S, gain.dtype) * GROUP
    mean_p = quotient(over_group(tl.where(here, gain * sum_p, 0.0), GROUP, CHANNELS), count)
    mean_xhat_p = quotient(over_group(tl.where(here, gain * sum_xhat_p, 0.0), GROUP, CHANNELS), count)
    if moments_ptr is not None:
        at = moments_ptr + (n * (C // GROUP) + c // GROUP) * 2
        tl.store(at, mean_p, here)
        tl.store(at + 1, mean_xhat_p, here)
    return mean_p, mean_xhat_p


@triton.jit
def held_kernel(
    x_ptr, x_strides, dy_ptr, dy_strides, dtotal_ptr, dtotal_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides,
    shift_ptr, shift_strides, pre_bias_ptr, pre_bias_strides, statistics_ptr, dx_ptr, dx_strides, sums_ptr, moments_ptr,
    N, C, S,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All in one launch for slabs that registers hold: x and dy are read once. sums_ptr and moments_ptr are None where no
    parameter's gradient is wanted."""
    PRE_BIAS: tl.constexpr = pre_bias_ptr is not None
    x, dy, dtotal, dx = (x_ptr, x_strides), (dy_ptr, dy_strides), (dtotal_ptr, dtotal_strides), (dx_ptr, dx_strides)
    i = tl.arange(0, HEIGHT)[:, None]
    j = tl.arange(0, WIDTH)
    slabs = tl.cdiv(C, CHANNELS)
    for slab in range(tl.program_id(0), tl.cast(N, tl.int64) * slabs, tl.num_programs(0)):
        n, c = tl.cast(slab // slabs, tl.int64), tl.cast(slab % slabs, tl.int32) * CHANNELS
        here = (j < CHANNELS) & (c + j < C)
        inside = (i < S) & here[None, :]
        mean, rest, rstd = load_norm(statistics_ptr, pre_bias_ptr, pre_bias_strides, n, c + j, C, here, GROUP, COMPUTE)
        gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
        xhat, p = load_normalized(
            x, dy, mean, rest, rstd, gain, offset, n, c, 0, i, j[None, :], inside, SILU, COMPUTE, WIDE
        )  # fmt: skip
        sum_p, sum_xhat_p = tl.sum(p, 0), tl.sum(xhat * p, 0)
        sum_xhat = tl.sum(tl.where(inside, xhat, 0.0), 0) if PRE_BIAS else sum_p
        store_sums(sums_ptr, tl.cast(N, tl.int64) * C, n * C + c + j, here, sum_p, sum_xhat_p, sum_xhat, PRE_BIAS)
        mean_p, mean_xhat_p = group_means(moments_ptr, sum_p, sum_xhat_p, gain, n, c + j, C, S, here, GROUP, CHANNELS)
        if dx_ptr is not None:
            of_p, of_1, of_xhat = gain * rstd, mean_p * rstd, mean_xhat_p * rstd
            store_gradient(dx, dtotal, xhat, p, of_p, of_1, of_xhat, n, c, 0, i, j[None, :], inside, WIDE)


@triton.jit
def streamed_kernel(
    x_ptr, x_strides, dy_ptr, dy_strides, dtotal_ptr, dtotal_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides,
    shift_ptr, shift_strides, pre_bias_ptr, pre_bias_strides, statistics_ptr, dx_ptr, dx_strides, sums_ptr, moments_ptr,
    N, C, S,
    GROUP: tl.constexpr, CHANNELS: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """All in one launch for slabs that are gone over twice: first their sums, then dx."""
    PRE_BIAS: tl.constexpr = pre_bias_ptr is not None
    x, dy, dtotal, dx = (x_ptr, x_strides), (dy_ptr, dy_strides), (dtotal_ptr, dtotal_strides), (dx_ptr, dx_strides)
    j = tl.arange(0, WIDTH)
    slabs = tl.cdiv(C, CHANNELS)
    stop = tl.cast(S, tl.int64)
    for slab in range(tl.program_id(0), tl.cast(N, tl.int64) * slabs, tl.num_programs(0)):
        n, c = tl.cast(slab // slabs, tl.int64), tl.cast(slab % slabs, tl.int32) * CHANNELS
        here = (j < CHANNELS) & (c + j < C)
        mean, rest, rstd = load_norm(statistics_ptr, pre_bias_ptr, pre_bias_strides, n, c + j, C, here, GROUP, COMPUTE)
        gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
        sum_p, sum_xhat_p, sum_xhat = channel_sums(
            x, dy, mean, rest, rstd, gain, offset, n, c, 0, stop, here, PRE_BIAS,
            SILU, COMPUTE, WIDE, HEIGHT, WIDTH,
        )  # fmt: skip
        store_sums(sums_ptr, tl.cast(N, tl.int64) * C, n * C + c + j, here, sum_p, sum_xhat_p, sum_xhat, PRE_BIAS)
        mean_p, mean_xhat_p = group_means(moments_ptr, sum_p, sum_xhat_p, gain, n, c + j, C, S, here, GROUP, CHANNELS)
        if dx_ptr is not None:
            apply(
                x, dy, dx, dtotal, mean, rest, rstd, gain, offset, mean_p * rstd, mean_xhat_p * rstd, n, c, 0, stop, here,
                SILU, COMPUTE, WIDE, HEIGHT, WIDTH,
            )  # fmt: skip


@triton.jit
def sums_kernel(
    x_ptr, x_strides, dy_ptr, dy_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides,
    pre_bias_ptr, pre_bias_strides, statistics_ptr, partial_ptr,
    N, C, S, SPAN, parts,
    GROUP: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of a split slab: the sums over SPAN positions of each channel, planes (N, parts, C)."""
    PRE_BIAS: tl.constexpr = pre_bias_ptr is not None
    x, dy = (x_ptr, x_strides), (dy_ptr, dy_strides)
    j = tl.arange(0, WIDTH)
    n, c, part = piece(tl.program_id(0), C, parts, WIDTH)
    here = c + j < C
    start, stop = part * SPAN, tl.minimum(part * SPAN + SPAN, S)
    mean, rest, rstd = load_norm(statistics_ptr, pre_bias_ptr, pre_bias_strides, n, c + j, C, here, GROUP, COMPUTE)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
    sum_p, sum_xhat_p, sum_xhat = channel_sums(
        x, dy, mean, rest, rstd, gain, offset, n, c, start, stop, here, PRE_BIAS,
        SILU, COMPUTE, WIDE, HEIGHT, WIDTH,
    )  # fmt: skip
    plane = tl.cast(N, tl.int64) * parts * C
    store_sums(partial_ptr, plane, (n * parts + part) * C + c + j, here, sum_p, sum_xhat_p, sum_xhat, PRE_BIAS)


@triton.jit
def merge_kernel(
    partial_ptr, weight_ptr, scale_ptr, scale_strides, sums_ptr, moments_ptr, N, C, S, parts,
    PRE_BIAS: tl.constexpr, GROUP: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The sums of a group's channels, and the two means of the group that dx takes, of p and of xhat p."""
    slab = tl.program_id(0).to(tl.int64)
    n, g = slab // (C // GROUP), slab % (C // GROUP)
    of_parts, plane = tl.cast(N, tl.int64) * parts * C, tl.cast(N, tl.int64) * C
    mean_p = tl.zeros((BLOCK,), COMPUTE)
    mean_xhat_p = tl.zeros((BLOCK,), COMPUTE)
    for first in range(0, GROUP, BLOCK):
        k = first + tl.arange(0, BLOCK)
        c, here = g * GROUP + k, k < GROUP
        sum_p = tl.zeros((BLOCK,), COMPUTE)
        sum_xhat_p = tl.zeros((BLOCK,), COMPUTE)
        sum_xhat = tl.zeros((BLOCK,), COMPUTE)
        for part in range(0, parts):
            at = partial_ptr + (n * parts + part) * C + c
            sum_p += tl.load(at, here)
            sum_xhat_p += tl.load(at + of_parts, here)
            if PRE_BIAS:
                sum_xhat += tl.load(at + 2 * of_parts, here)
        store_sums(sums_ptr, plane, n * C + c, here, sum_p, sum_xhat_p, sum_xhat, PRE_BIAS)
        gain, _ = affine(weight_ptr, None, scale_ptr, scale_strides, None, None, n, c, here, COMPUTE)
        mean_p += tl.where(here, gain * sum_p, 0.0)
        mean_xhat_p += tl.where(here, gain * sum_xhat_p, 0.0)
    count = tl.cast(S, COMPUTE) * GROUP
    tl.store(moments_ptr + slab * 2, quotient(tl.sum(mean_p, 0), count))
    tl.store(moments_ptr + slab * 2 + 1, quotient(tl.sum(mean_xhat_p, 0), count))


@triton.jit
def apply_kernel(
    x_ptr, x_strides, dy_ptr, dy_strides, dtotal_ptr, dtotal_strides, weight_ptr, bias_ptr, scale_ptr, scale_strides,
    shift_ptr, shift_strides, pre_bias_ptr, pre_bias_strides, statistics_ptr, moments_ptr, dx_ptr, dx_strides,
    C, S, SPAN, parts,
    GROUP: tl.constexpr, SILU: tl.constexpr, COMPUTE: tl.constexpr, WIDE: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Of a split slab: dx at SPAN positions of each channel, the last programs' first."""
    x, dy, dtotal, dx = (x_ptr, x_strides), (dy_ptr, dy_strides), (dtotal_ptr, dtotal_strides), (dx_ptr, dx_strides)
    j = tl.arange(0, WIDTH)
    n, c, part = piece(tl.num_programs(0) - 1 - tl.program_id(0), C, parts, WIDTH)
    here = c + j < C
    start, stop = part * SPAN, tl.minimum(part * SPAN + SPAN, S)
    mean, rest, rstd = load_norm(statistics_ptr, pre_bias_ptr, pre_bias_strides, n, c + j, C, here, GROUP, COMPUTE)
    gain, offset = affine(weight_ptr, bias_ptr, scale_ptr, scale_strides, shift_ptr, shift_strides, n, c + j, here, COMPUTE)
    moments = moments_ptr + (n * (C // GROUP) + (c + j) // GROUP) * 2
    of_1, of_xhat = tl.load(moments, here) * rstd, tl.load(moments + 1, here) * rstd
    apply(
        x, dy, dx, dtotal, mean, rest, rstd, gain, offset, of_1, of_xhat, n, c, start, stop, here,
        SILU, COMPUTE, WIDE, HEIGHT, WIDTH,
    )  # fmt: skip


@triton.jit
def parameters_kernel(
    sums_ptr, moments_ptr, statistics_ptr, weight_ptr, bias_ptr, scale_ptr, scale_strides,
    dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dpre_bias_ptr,
    N, C, S,
    GROUP: tl.constexpr, COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The gradients of what is given for a channel, of its sums; the pointer of one that is not wanted is None."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    plane = tl.cast(N, tl.int64) * C
    dweight = tl.zeros((ROWS, COLUMNS), COMPUTE)
    dbias = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for first in range(0, N, ROWS):
        n = (first + tl.arange(0, ROWS)[:, None]).to(tl.int64)
        here = (n < N) & (c < C)
        at = n * C + c
        sum_p, sum_xhat_p = tl.load(sums_ptr + at, here, 0.0), tl.load(sums_ptr + plane + at, here, 0.0)
        modulation, _ = affine(None, None, scale_ptr, scale_strides, None, None, n, c, here, COMPUTE)
        modulation = tl.where(here, modulation, 0.0)  # finite where it is multiplied by sums of 0
        dweight += modulation * sum_xhat_p
        dbias += modulation * sum_p
        if dshift_ptr is not None:
            tl.store(dshift_ptr + at, rounded(sum_p, dshift_ptr.dtype.element_ty), here)
        if dscale_ptr is not None:
            weight, bias = affine(weight_ptr, bias_ptr, None, None, None, None, n, c, here, COMPUTE)
            tl.store(dscale_ptr + at, rounded(weight * sum_xhat_p + bias * sum_p, dscale_ptr.dtype.element_ty), here)
        if dpre_bias_ptr is not None:
            gain, _ = affine(weight_ptr, None, scale_ptr, scale_strides, None, None, n, c, here, COMPUTE)
            _, _, rstd = load_statistics(statistics_ptr, n, c, C, here, GROUP)
            moments = moments_ptr + (n * (C // GROUP) + c // GROUP) * 2
            mean_p, mean_xhat_p = tl.load(moments, here), tl.load(moments + 1, here)
            sum_xhat = tl.load(sums_ptr + 2 * plane + at, here)
            dpre_bias = (gain * sum_p - mean_p * S - mean_xhat_p * sum_xhat) * rstd
            tl.store(dpre_bias_ptr + at, rounded(dpre_bias, dpre_bias_ptr.dtype.element_ty), here)
    here = c < C
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, rounded(tl.sum(dweight, 0)[None, :], dweight_ptr.dtype.element_ty), here)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, rounded(tl.sum(dbias, 0)[None, :], dbias_ptr.dtype.element_ty), here)


def backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None,
    shift: Tensor | None, pre_bias: Tensor | None, statistics: Tensor, activation: str | None, wanted: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of x, weight, bias, scale, shift and pre_bias, of no elements where it is not wanted. x: what forward
    normalized, without the pre_bias."""
    given = x, weight, bias, scale, shift, pre_bias
    grads = tuple(empty_like(g) if g is not None and want else x.new_empty(0) for g, want in zip(given, wanted, strict=True))
    if x.numel() == 0:
        return tuple(g.zero_() for g in grads)
    groups, compute = statistics.shape[1], compute_dtype(x.dtype)
    dx = grads[0] if wanted[0] else None
    norm, upstream = as_ncs(x), {"dy": as_ncs(dy), "dtotal": None if dtotal is None else as_ncs(dtotal)}
    written = None if dx is None else as_ncs(dx)
    n, c, s = norm.shape
    weight, bias = (None if v is None else v.contiguous() for v in (weight, bias))
    parameters = {"weight_ptr": weight, "bias_ptr": bias, **places(scale=scale, shift=shift, pre_bias=pre_bias)}
    sizes, rule = {"C": c, "S": s}, {"GROUP": c // groups, "COMPUTE": TRITON_DTYPE[compute]}
    planes = 2 if pre_bias is None else 3
    sums = statistics.new_empty((planes, n, c)) if any(wanted[1:]) else None
    moments = statistics.new_empty((n, groups, 2))

    def run(p: Plan) -> None:
        """Writes dx, sums and moments by the kernels of a plan."""
        constants = {
            "SILU": activation == "silu", "WIDE": wide(p, norm, written, *upstream.values()), "HEIGHT": p.height,
            "WIDTH": p.width, "num_warps": p.warps,
        }  # fmt: skip
        if p.algorithm != "split":
            kernel = held_kernel if p.algorithm == "held" else streamed_kernel
            launch(kernel, (p.programs,),
                **places(x=norm, **upstream, dx=written), **parameters, statistics_ptr=statistics, sums_ptr=sums,
                moments_ptr=moments if wanted[5] else None, N=n, **sizes, CHANNELS=p.channels, **rule, **constants,
            )  # fmt: skip
            return
        partial, split = statistics.new_empty((planes, n, p.parts, c)), {"SPAN": p.span, "parts": p.parts}
        launch(sums_kernel, (p.programs,),
            **places(x=norm, dy=upstream["dy"]), **parameters, statistics_ptr=statistics, partial_ptr=partial,
            N=n, **sizes, **split, **rule, **constants,
        )  # fmt: skip
        launch(merge_kernel, (n * groups,),
            partial, weight, **places(scale=scale), sums_ptr=sums, moments_ptr=moments, N=n, **sizes, parts=p.parts,
            PRE_BIAS=pre_bias is not None, **rule, BLOCK=min(MERGED, power_of_2(c // groups)),
        )  # fmt: skip
        if dx is not None:
            launch(apply_kernel, (p.programs,),
                **places(x=norm, **upstream, dx=written), **parameters, statistics_ptr=statistics, moments_ptr=moments,
                **sizes, **split, **rule, **constants,
            )  # fmt: skip

    with torch.cuda.device_of(x):
        crowded = pre_bias is not None or dtotal is not None or (scale is not None and spills_sooner(x.device))
        ways = plans(norm, groups, HELD // 2 if crowded else HELD, TILE)
        kind = "group_norm_backward", x.device, x.dtype, dtotal is None, pre_bias is None, dx is None, activation, groups
        run(fastest((*kind, *ways), ways, run))
        if sums is not None:
            names = ("dweight_ptr", "dbias_ptr", "dscale_ptr", "dshift_ptr", "dpre_bias_ptr")
            wanted_ones = {name: g if want else None for name, g, want in zip(names, grads[1:], wanted[1:], strict=True)}
            launch(parameters_kernel, (triton.cdiv(c, COLUMNS),),
                sums, moments, statistics, weight, bias, **places(scale=scale), **wanted_ones, N=n, **sizes, **rule,
                ROWS=ROWS, COLUMNS=COLUMNS,
            )  # fmt: skip
    return grads
