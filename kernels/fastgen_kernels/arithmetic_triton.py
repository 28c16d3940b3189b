"""Arithmetic of numbers that the kernels of several ops share, and Triton's names of PyTorch's dtypes."""

import torch
import triton
import triton.language as tl

TRITON_DTYPE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32, torch.float64: tl.float64}


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """x in dtype; bf16 by way of fp32, as in torch, for the interpreter's cast from fp64 is wrong."""
    if dtype == tl.bfloat16:
        return x.to(tl.float32).to(dtype)
    return x.to(dtype)


@triton.jit
def remaining(first, stop, BLOCK: tl.constexpr):
    """How many of BLOCK there are from first on; int32, as comparisons of int64 take registers that kernels then spill."""
    return tl.minimum(stop - first, BLOCK).to(tl.int32)


@triton.jit
def quotient(a, b):
    """a / b in a's dtype, correctly rounded: on a GPU / of fp32 may be wrong by 2 units in the last place, which counts where all
    of a sample, a group or a row is multiplied by it."""
    b = tl.cast(b, a.dtype)
    return a / b if a.dtype.is_fp64() else tl.div_rn(a, b)


@triton.jit
def exp_remainder(x):
    """(exp(x) - 1 - x) / x² for |x| < 1/2, in fp32 (Cephes' expf)."""
    p = 0.00019875630849965856
    p = p * x + 0.0013981997387840295
    p = p * x + 0.008333452167739105
    p = p * x + 0.04166579594126102
    p = p * x + 0.16666665455856158
    return p * x + 0.5000000120139861


@triton.jit
def exponential(x):
    """exp(x), in fp32 as exact as PyTorch's: on a GPU tl.exp rounds x log2(e) and is wrong by |x| units in the last place. x is
    n log(2) + r with a whole number n; the first part of log(2) has so few digits that its product with n is exact."""
    if x.dtype.is_fp64():
        return tl.exp(x)
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 0.00021219444005469058
    return (1.0 + (r + r * r * exp_remainder(r))) * tl.exp2(n)


@triton.jit
def reciprocal_deviation(var, eps, COMPUTE: tl.constexpr):
    """1 / sqrt(var + eps), of a variance that rounding may have made negative; NaN stays NaN, which the GPU's maximum drops."""
    var = tl.where(var < 0.0, 0.0, var) + tl.cast(eps, COMPUTE)
    deviation = tl.sqrt(var) if var.dtype.is_fp64() else tl.sqrt_rn(var)
    return quotient(tl.full(var.shape, 1.0, COMPUTE), deviation)


@triton.jit
def cos_sin(q, y):
    """Of (q + y) pi/2, for integers q and |y| <= 1/2."""
    t = y * y
    s = y * (1.5707963217001215 + t * (-0.6459634594640162 + t * (0.07968002266873261 - t * 0.004601625899316398)))
    c = 1.0 + t * (-1.2337005493549 + t * (0.25366940894579837 + t * (-0.020861513027152206 + t * 0.0009066983153809484)))
    odd = (q & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((q + 1) & 2) != 0, -cos, cos), tl.where((q & 2) != 0, -sin, sin)
