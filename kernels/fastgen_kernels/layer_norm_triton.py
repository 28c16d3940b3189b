"""Kernels of layer_norm.py. A tensor (..., C) is taken as rows; a program takes tiles of whole rows, each in turn, and keeps them
in registers. Forward is one launch; backward is one too, and a small one that adds up what its programs have summed for weight
and bias. No sum depends on the order in which programs run.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, quotient, reciprocal_deviation, remaining, rounded
from fastgen_kernels.dispatch import processors
from fastgen_kernels.layout import as_rows, compute_dtype
from fastgen_kernels.recording import launch

FORWARD, BACKWARD = 8192, 4096  # elements of a tile that 8 warps hold without spills
PROGRAMS = 2  # that a processor runs at once
SUMMED, COLUMNS = 128, 16  # partial sums of weight and bias that are added at a time, and of how many columns


@triton.jit
def row(x, r, UNIT: tl.constexpr):
    """Pointers to the first elements of rows r of x, given as its pointer and its rows' stride in units of so many elements:
    then it is known which accesses are aligned."""
    return x[0] + r[:, None] * x[1] * UNIT


@triton.jit
def centred(h, mean, inside, C: tl.constexpr):
    """h - mean less its own mean, 0 outside. The mean is a number that rounding took away from that of h: of a large one the
    second step takes the rest."""
    d = tl.where(inside, h - mean[:, None], 0.0)
    return tl.where(inside, d - quotient(tl.sum(d, 1), C)[:, None], 0.0)


@triton.jit
def forward_kernel(
    x_ptr, x_stride, residual_ptr, residual_stride, weight_ptr, bias_ptr, y_ptr, total_ptr, statistics_ptr,
    R, eps: tl.float64,
    C: tl.constexpr, COMPUTE: tl.constexpr, UNIT: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """x + residual is rounded to x's dtype and stored, for it is a result; the norm is of what was stored."""
    i, c = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)[None, :]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + c, c < C).to(COMPUTE)
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + c, c < C).to(COMPUTE)
    for tile in range(tl.program_id(0), tl.cdiv(R, HEIGHT), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * HEIGHT
        r, here = first + i, i < remaining(first, R, HEIGHT)
        inside = here[:, None] & (c < C)
        h = tl.load(row((x_ptr, x_stride), r, UNIT) + c, inside)
        if residual_ptr is not None:
            other = tl.load(row((residual_ptr, residual_stride), r, UNIT) + c, inside)
            h = rounded(h.to(COMPUTE) + rounded(other, h.dtype), h.dtype)
            tl.store(row((total_ptr, C // UNIT), r, UNIT) + c, h, inside)
        h = h.to(COMPUTE)

        mean = quotient(tl.sum(tl.where(inside, h, 0.0), 1), C)
        d = centred(h, mean, inside, C)
        rstd = reciprocal_deviation(quotient(tl.sum(d * d, 1), C), eps, COMPUTE)
        tl.store(statistics_ptr + r, mean, here)
        tl.store(statistics_ptr + R + r, rstd, here)

        y = d * rstd[:, None]
        if weight_ptr is not None:
            y *= weight
        if bias_ptr is not None:
            y += bias
        tl.store(row((y_ptr, C // UNIT), r, UNIT) + c, rounded(y, y_ptr.dtype.element_ty), inside)


@triton.jit
def backward_kernel(
    dy_ptr, dy_stride, dtotal_ptr, dtotal_stride, x_ptr, x_stride, weight_ptr, statistics_ptr, dx_ptr, partial_ptr,
    R,
    C: tl.constexpr, COMPUTE: tl.constexpr, UNIT: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx = rstd (p - mean(p) - xhat mean(p xhat)) + dtotal with p = weight dy, and, in two planes (programs, C), the sums of
    xhat dy and of dy over the rows of a program; the pointer of an unwanted one is None."""
    i, c = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)[None, :]
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + c, c < C, 0.0).to(COMPUTE)
    dweight = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    dbias = tl.zeros((HEIGHT, WIDTH), COMPUTE)
    for tile in range(tl.program_id(0), tl.cdiv(R, HEIGHT), tl.num_programs(0)):
        first = tl.cast(tile, tl.int64) * HEIGHT
        r, here = first + i, i < remaining(first, R, HEIGHT)
        inside = here[:, None] & (c < C)
        mean = tl.load(statistics_ptr + r, here)
        rstd = tl.load(statistics_ptr + R + r, here, 0.0)[:, None]
        h = tl.load(row((x_ptr, x_stride), r, UNIT) + c, inside)
        p = tl.load(row((dy_ptr, dy_stride), r, UNIT) + c, inside, 0.0).to(COMPUTE)
        xhat = centred(h, mean, inside, C) * rstd
        dweight += xhat * p
        dbias += p
        if dx_ptr is not None:
            if weight_ptr is not None:
                p *= weight
            dx = rstd * (p - quotient(tl.sum(p, 1), C)[:, None] - xhat * quotient(tl.sum(p * xhat, 1), C)[:, None])
            if dtotal_ptr is not None:
                dx += tl.load(row((dtotal_ptr, dtotal_stride), r, UNIT) + c, inside)
            tl.store(row((dx_ptr, C // UNIT), r, UNIT) + c, rounded(dx, dx_ptr.dtype.element_ty), inside)
    if partial_ptr is not None:
        at, plane = partial_ptr + tl.program_id(0) * C + c, tl.num_programs(0) * C
        tl.store(at, tl.sum(dweight, 0)[None, :], c < C)
        tl.store(at + plane, tl.sum(dbias, 0)[None, :], c < C)


@triton.jit
def parameters_kernel(
    partial_ptr, dweight_ptr, dbias_ptr, parts, C, COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The gradients of weight and bias, of the sums that the programs of backward_kernel made; the pointer of what is not wanted
    is None."""
    i, c = tl.arange(0, ROWS)[:, None], tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    dweight = tl.zeros((ROWS, COLUMNS), COMPUTE)
    dbias = tl.zeros((ROWS, COLUMNS), COMPUTE)
    for first in range(0, parts, ROWS):
        at, inside = partial_ptr + (first + i) * C + c, (first + i < parts) & (c < C)
        dweight += tl.load(at, inside, 0.0)
        dbias += tl.load(at + parts * C, inside, 0.0)
    if dweight_ptr is not None:
        tl.store(dweight_ptr + c, rounded(tl.sum(dweight, 0)[None, :], dweight_ptr.dtype.element_ty), c < C)
    if dbias_ptr is not None:
        tl.store(dbias_ptr + c, rounded(tl.sum(dbias, 0)[None, :], dbias_ptr.dtype.element_ty), c < C)


def forward(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y; x + residual, of no elements without a residual; and the mean and reciprocal deviation of each row, (2, rows)."""
    y, total = x.new_empty(x.shape), x.new_empty(0 if residual is None else x.shape)
    statistics = x.new_empty((2, math.prod(x.shape[:-1])), dtype=compute_dtype(x.dtype))
    if x.numel() == 0:
        return y, total, statistics
    programs, arguments = plan(FORWARD, x=x, residual=residual)
    with torch.cuda.device_of(x):
        launch(forward_kernel, (programs,),
            **arguments, weight_ptr=None if weight is None else weight.contiguous(),
            bias_ptr=None if bias is None else bias.contiguous(), y_ptr=y, total_ptr=None if residual is None else total,
            statistics_ptr=statistics, eps=eps,
        )  # fmt: skip
    return y, total, statistics


def backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor | None, statistics: Tensor,
    of_x: torch.dtype | None, of_weight: torch.dtype | None, of_bias: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of x, weight and bias in the dtypes given; of no elements where None is. x: what forward normalized."""
    c = x.shape[-1]
    dx = x.new_empty(0 if of_x is None else x.shape)
    dweight, dbias = (x.new_empty(0 if dtype is None else c, dtype=dtype) for dtype in (of_weight, of_bias))
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_()
    programs, arguments = plan(BACKWARD, dy=dy, dtotal=dtotal, x=x)
    summed = of_weight is not None or of_bias is not None
    partial = statistics.new_empty((2, programs, c)) if summed else None
    with torch.cuda.device_of(x):
        launch(backward_kernel, (programs,),
            **arguments, weight_ptr=None if weight is None else weight.contiguous(), statistics_ptr=statistics,
            dx_ptr=None if of_x is None else dx, partial_ptr=partial,
        )  # fmt: skip
        if summed:
            launch(parameters_kernel, (triton.cdiv(c, COLUMNS),),
                partial, None if of_weight is None else dweight, None if of_bias is None else dbias, programs, c,
                COMPUTE=arguments["COMPUTE"], ROWS=SUMMED, COLUMNS=COLUMNS,
            )  # fmt: skip
    return dx, dweight, dbias


def plan(elements: int, **tensors: Tensor | None) -> tuple[int, dict[str, Any]]:
    """How many programs take the rows of the tensors, all of x's shape, in tiles of so many elements, and what both kernels are
    given."""
    x = tensors["x"]
    assert x is not None
    taken = {name: None if v is None else as_rows(v) for name, v in tensors.items()}
    r, c = x.numel() // x.shape[-1], x.shape[-1]
    unit = math.gcd(16, c, *(v.stride(0) for v in taken.values() if v is not None))
    width, wanted = triton.next_power_of_2(c), PROGRAMS * processors(x.device)
    height = max(1, min(elements // width, triton.next_power_of_2(r // wanted + 1) // 2))  # few rows keep all processors busy
    tile = height * width
    arguments = {
        **{f"{name}_ptr": v for name, v in taken.items()},
        **{f"{name}_stride": None if v is None else v.stride(0) // unit for name, v in taken.items()},
        "R": r, "C": c, "COMPUTE": TRITON_DTYPE[compute_dtype(x.dtype)], "UNIT": unit, "HEIGHT": height, "WIDTH": width,
        "num_warps": 8 * max(1, tile // elements) if tile >= 2048 else max(1, tile // 512),
    }  # fmt: skip
    tiles = triton.cdiv(r, height)
    return triton.cdiv(tiles, triton.cdiv(tiles, wanted)), arguments  # of as many tiles each
