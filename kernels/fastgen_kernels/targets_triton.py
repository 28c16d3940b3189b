"""What q_sample and denoising_loss make of clean data: the signal in [-1, 1], and the target of the prediction."""

import triton
import triton.language as tl


@triton.jit
def as_signal(x0, COMPUTE: tl.constexpr):
    """x0 in COMPUTE, uint8 scaled to [-1, 1], both ends exactly."""
    if x0.dtype == tl.uint8:
        return (x0.to(COMPUTE) - 127.5) * 0.00784313725490196
    return x0.to(COMPUTE)


@triton.jit
def make_target(x0, eps, alpha, sigma, TARGET: tl.constexpr):
    """As in q_sample.py."""
    if TARGET == "eps":
        return eps
    if TARGET == "x0":
        return x0
    if TARGET == "v":
        return alpha * eps - sigma * x0
    return eps - x0
