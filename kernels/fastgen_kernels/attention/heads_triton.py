"""What the kernels of attention share. A tile is some rows, positions of one head, and all of its D columns, in two parts: the
first D1 and the D2 that follow, powers of 2, so that 80 columns are multiplied as 64 and 16 rather than as 128. D2 may be 0; the
second part is then the first again, which is not read."""

import ctypes
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import rounded


@triton.jit
def columns(x, n, h, s, i, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WIDE: tl.constexpr):
    """Pointers to the two parts of rows s + i, (rows,), of head h of sample n of a tensor (N, H, S, D), given as its pointer and
    strides, and the masks of the columns that there are. Beyond the first row offsets are int32 unless the tile is WIDE."""
    strides = x[1]
    first = x[0] + (n * strides[0] + h * strides[1] * strides[4] + tl.cast(s, tl.int64) * strides[2])
    d1, d2 = tl.arange(0, D1)[None, :], D1 + tl.arange(0, max(1, D2))[None, :]
    i = i[:, None]
    if WIDE:
        i, d1, d2 = i.to(tl.int64), d1.to(tl.int64), d2.to(tl.int64)
    return first + (i * strides[2] + d1 * strides[3]), first + (i * strides[2] + d2 * strides[3]), d1 < D, d2 < D


@triton.jit
def load_rows(x, n, h, s, i, here, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WIDE: tl.constexpr):
    """Both parts of a tile, 0 where it has no row or column."""
    at1, at2, in1, in2 = columns(x, n, h, s, i, D, D1, D2, WIDE)
    here = here[:, None]
    first = tl.load(at1, here if D1 <= D else here & in1, 0.0)
    second = first
    if D2:
        second = tl.load(at2, here if D1 + D2 == D else here & in2, 0.0)
    return first, second


@triton.jit
def store_rows(x, first, second, n, h, s, i, here, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WIDE: tl.constexpr):
    """Stores both parts of a tile, rounded, where it has rows and columns."""
    at1, at2, in1, in2 = columns(x, n, h, s, i, D, D1, D2, WIDE)
    here = here[:, None]
    tl.store(at1, rounded(first, x[0].dtype.element_ty), here if D1 <= D else here & in1)
    if D2:
        tl.store(at2, rounded(second, x[0].dtype.element_ty), here if D1 + D2 == D else here & in2)


@triton.jit
def product(a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """The matrix product, in fp32, in fp64 of fp64. UPCAST: the interpreter multiplies the raw bits of bf16."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def add_product(total, a, b, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b, in total's dtype; see `product`."""
    if UPCAST:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
def over_columns(a, b, D2: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """The products of all rows of a with all rows of b."""
    total = product(a[0], tl.trans(b[0]), UPCAST, PRECISION)
    if D2:
        total = add_product(total, a[1], tl.trans(b[1]), UPCAST, PRECISION)
    return total


@triton.jit
def products(a, b, D2: tl.constexpr, NEGATIVE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """What is multiplied by the scale without its sign, after the largest of a row, or lse, is subtracted: for the weights that
    count that is exact, whatever the scale."""
    total = over_columns(a, b, D2, UPCAST, PRECISION)
    return -total if NEGATIVE else total


@triton.jit
def over_rows(total, weights, x, D2: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """total + weights x, both parts of it."""
    weights = rounded(weights, x[0].dtype)
    first = add_product(total[0], weights, x[0], UPCAST, PRECISION)
    second = first
    if D2:
        second = add_product(total[1], weights, x[1], UPCAST, PRECISION)
    return first, second


@triton.jit
def transposed_over_rows(x, weights, D2: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """weightsᵀ x, both parts of it, as the transpose of xᵀ weights: Hopper's tensor cores multiply 64 rows at a time, and where
    weights have fewer columns x has them."""
    weights = rounded(weights, x[0].dtype)
    first = tl.trans(product(tl.trans(x[0]), weights, UPCAST, PRECISION))
    second = first
    if D2:
        second = tl.trans(product(tl.trans(x[1]), weights, UPCAST, PRECISION))
    return first, second


@triton.jit
def zeros(ROWS: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, COMPUTE: tl.constexpr):
    """Both parts of a tile of zeros."""
    first = tl.zeros((ROWS, D1), COMPUTE)
    return first, tl.zeros((ROWS, D2), COMPUTE) if D2 else first


@triton.jit
def sum_of(parts, COMPUTE: tl.constexpr):
    """The number that `in_parts` took apart, in COMPUTE."""
    return tl.cast(parts[0], COMPUTE) + parts[1]


@triton.jit
def head_of(program, H):
    """The sample and the head of a program, int64."""
    return (program // H).to(tl.int64), (program % H).to(tl.int64)


@triton.jit
def seen_keys(mask_ptr, mask_strides, n, s, i, K):
    """Which of the keys s + i there are and are not padding."""
    seen = s + i < K
    if mask_ptr is not None:
        at = mask_ptr + n * mask_strides[0] + (s + i).to(tl.int64) * mask_strides[1]
        seen = seen & (tl.load(at, seen) == 0)
    return seen


def softmax_scale(scale: float | None, d: int) -> float:
    """The scale, 1/sqrt(D) where none is given."""
    return 1 / math.sqrt(d) if scale is None else scale


def scaling(scale: float) -> dict[str, Any]:
    """Arguments of a kernel. A scale of 0 is made a tiny one, for the infinity of a key that is left out is multiplied by it."""
    log2_scale = max(abs(scale) * math.log2(math.e), 1e-30)
    return {"log2_scale": in_parts(log2_scale), "NEGATIVE": scale < 0}


def in_parts(x: float) -> tuple[float, float]:
    """Two numbers of fp32 whose sum is x: the interpreter takes a float for no more."""
    first = ctypes.c_float(x).value
    return first, x - first


def places(**tensors: Tensor | None) -> dict[str, Any]:
    """Tensors (N, H, S, D) as arguments of a kernel: NAME_ptr and NAME_strides, None for one that is absent.

    The stride of a head, often D, is given as two factors: of an argument Triton sees only whether it is a multiple of 16, which
    40 is not, and accesses would be of 2 bytes."""
    return {f"{name}_ptr": x for name, x in tensors.items()} | {
        f"{name}_strides": None if x is None else _factored(x.stride()) for name, x in tensors.items()
    }


def padding(mask: Tensor | None) -> dict[str, Any]:
    """A mask (N, K) of bool as arguments of a kernel."""
    return {"mask_ptr": None, "mask_strides": None} if mask is None else {
        "mask_ptr": mask.view(torch.uint8), "mask_strides": mask.stride(),
    }  # fmt: skip


def _factored(strides: tuple[int, ...]) -> tuple[Any, ...]:
    n, h, s, d = strides
    unit = 8 if h % 8 == 0 else 1
    return n, h // unit, s, d, tl.constexpr(unit)


def wide(rows: int, *tensors: Tensor | None) -> bool:
    """Whether so many rows of one of the tensors (N, H, S, D) reach over 2^31 elements."""
    return any(x is not None and (rows - 1) * x.stride(2) + (x.shape[3] - 1) * x.stride(3) >= 2**31 for x in tensors)
