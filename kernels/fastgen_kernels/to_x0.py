"""Classifier-free guidance and any prediction turned into the clean sample:

    x0_hat = c_skip · x + c_out · (uncond + guidance · (out - uncond))

Sources: Ho & Salimans, arXiv:2207.12598, equation 6 (guidance, where their w is guidance - 1); Karras et al.,
arXiv:2206.00364, equation 7 (c_skip, c_out).
"""

from torch import Tensor

from fastgen_kernels.checks import check_batched, check_float, check_shape
from fastgen_kernels.layout import compute_dtype, like, per_sample


def to_x0(
    out: Tensor,
    x: Tensor,
    c_skip: Tensor,
    c_out: Tensor,
    *,
    uncond: Tensor | None = None,
    guidance: float | Tensor = 1.0,
) -> Tensor:
    """The denoised sample, of x's shape, dtype and memory format.

    out: (N, ...) float, the network's output under the condition.
    x: out's shape, the noisy sample.
    c_skip, c_out: (N,) float, of the prediction at each sample's time; fp32 or better.
    uncond: out's shape, the network's output without the condition; where absent, guidance has no effect.
    guidance: a float, or (N,): 1 is the conditional output, 0 the unconditional one.

    The arithmetic is in fp32, in fp64 for fp64 x.

    Raises TypeError for dtypes that are not floats, ValueError for shapes that differ.
    """
    check_float("to_x0", out=out, x=x, c_skip=c_skip, c_out=c_out, uncond=uncond)
    check_batched("to_x0", x=x)
    check_shape("to_x0", x.shape, "of x", out=out, uncond=uncond)
    check_shape("to_x0", x.shape[:1], "(N,)", c_skip=c_skip, c_out=c_out)
    if isinstance(guidance, Tensor):
        check_float("to_x0", guidance=guidance)
        check_shape("to_x0", x.shape[:1], "(N,)", guidance=guidance)
    return to_x0_reference(out, x, c_skip, c_out, uncond, guidance)


def to_x0_reference(
    out: Tensor, x: Tensor, c_skip: Tensor, c_out: Tensor, uncond: Tensor | None, guidance: float | Tensor
) -> Tensor:
    compute = compute_dtype(x.dtype)
    out = out.to(compute)
    if uncond is not None:
        uncond = uncond.to(compute)
        scale = per_sample(guidance.to(compute), x) if isinstance(guidance, Tensor) else guidance
        out = uncond + scale * (out - uncond)
    x0_hat = per_sample(c_skip.to(compute), x) * x.to(compute) + per_sample(c_out.to(compute), x) * out
    return like(x0_hat.to(x.dtype), x)
