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
def reciprocal_deviation(var, eps, COMPUTE: tl.constexpr):
    """1 / sqrt(var + eps), of a variance that rounding may have made negative; NaN stays NaN, which the GPU's maximum drops."""
    return 1.0 / tl.sqrt(tl.where(var < 0.0, 0.0, var) + tl.cast(eps, COMPUTE))


@triton.jit
def cos_sin(q, y):
    """Of (q + y) pi/2, for integers q and |y| <= 1/2."""
    t = y * y
    s = y * (1.5707963217001215 + t * (-0.6459634594640162 + t * (0.07968002266873261 - t * 0.004601625899316398)))
    c = 1.0 + t * (-1.2337005493549 + t * (0.25366940894579837 + t * (-0.020861513027152206 + t * 0.0009066983153809484)))
    odd = (q & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((q + 1) & 2) != 0, -cos, cos), tl.where((q & 2) != 0, -sin, sin)
