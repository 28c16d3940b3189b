"""One step of a sampler, a linear combination: x_next = a · x + b · x0_hat + c · previous + s · noise.

DDIM has c = s = 0, the ancestral samplers have c = 0, DPM-Solver++(2M) has s = 0 and the last step's x0_hat as
`previous`, its SDE variant has all four.
"""

from torch import Tensor

from fastgen_kernels.checks import check_batched, check_float, check_shape
from fastgen_kernels.layout import compute_dtype, like
from fastgen_kernels.philox import philox_normal


def sampler_step(
    x: Tensor, x0_hat: Tensor, coefficients: Tensor, *, previous: Tensor | None = None, key: Tensor | None = None
) -> Tensor:
    """x_next = a·x + b·x0_hat + c·previous + s·noise, of x's shape, dtype and memory format.

    x: (N, ...) float, the noisy sample.
    x0_hat: x's shape, its denoised estimate.
    coefficients: (4,) float on x's device: a, b, c, s; fp32 or better. They are not read on the host.
    previous: x's shape, the last step's x0_hat; without it there is no c term.
    key: int64 (N, 4), from which standard normal noise is drawn; without it there is no s term.

    The arithmetic is in fp32, in fp64 for fp64 x.

    Raises TypeError for other dtypes, ValueError for shapes that differ.
    """
    check_float("sampler_step", x=x, x0_hat=x0_hat, coefficients=coefficients, previous=previous)
    check_batched("sampler_step", x=x)
    check_shape("sampler_step", x.shape, "of x", x0_hat=x0_hat, previous=previous)
    check_shape("sampler_step", (4,), "(a, b, c, s)", coefficients=coefficients)
    return sampler_step_reference(x, x0_hat, coefficients, previous, key)


def sampler_step_reference(
    x: Tensor, x0_hat: Tensor, coefficients: Tensor, previous: Tensor | None, key: Tensor | None
) -> Tensor:
    compute = compute_dtype(x.dtype)
    a, b, c, s = coefficients.to(compute).unbind()
    x_next = a * x.to(compute) + b * x0_hat.to(compute)
    if previous is not None:
        x_next = x_next + c * previous.to(compute)
    if key is not None:
        x_next = x_next + s * philox_normal(x.shape, key, dtype=compute)
    return like(x_next.to(x.dtype), x)
