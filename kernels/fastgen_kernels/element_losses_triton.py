"""The loss l of one element, its derivative, and the weight of a sample, for diffusion_loss and denoising_loss.

The formulas are in diffusion_loss.py.
"""

import triton
import triton.language as tl

from fastgen_kernels.diffusion_loss import CHARBONNIER_EPS

EPS = tl.constexpr(CHARBONNIER_EPS)


@triton.jit
def element_loss(d, KIND: tl.constexpr):
    """l(d), NaN where d is."""
    if KIND == "mse":
        loss = d * d
    elif KIND == "l1":
        loss = tl.abs(d)
    elif KIND == "huber":
        loss = tl.where(tl.abs(d) < 1.0, 0.5 * d * d, tl.abs(d) - 0.5)
    else:
        loss = tl.sqrt(d * d + EPS)
    return loss


@triton.jit
def slope(d, KIND: tl.constexpr):
    """The derivative of l at d; of |d| it is 0 at 0, and at NaN, as in PyTorch."""
    if KIND == "mse":
        dd = 2.0 * d
    elif KIND == "l1":
        dd = tl.where(d > 0.0, 1.0, tl.where(d < 0.0, -1.0, 0.0))
    elif KIND == "huber":
        dd = tl.where(d > 1.0, 1.0, tl.where(d < -1.0, -1.0, d))
    else:
        dd = d / tl.sqrt(d * d + EPS)
    return dd


@triton.jit
def times_weight(x, weight_ptr, n, N):
    """x, of one element a sample, times the samples' weights where there are any."""
    if weight_ptr is not None:
        x *= tl.load(weight_ptr + n, n < N)
    return x
