"""One step of a sampler, a linear combination: x_next = a · x + b · x0_hat + c · previous + s · noise.

DDIM has c = s = 0, the ancestral samplers have c = 0, DPM-Solver++(2M) has s = 0 and the last step's x0_hat as
`previous`, its SDE variant has all four.
"""

from typing import Any

from torch import Tensor

from fastgen_kernels.checks import (
    check_batched,
    check_device,
    check_finite_values,
    check_float,
    check_key,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import channels_last, compute_dtype, empty_like, in_format, like
from fastgen_kernels.library import define
from fastgen_kernels.philox import philox_normal


def sampler_step(
    x: Tensor,
    x0_hat: Tensor,
    coefficients: Tensor,
    *,
    previous: Tensor | None = None,
    key: Tensor | None = None,
) -> Tensor:
    """x_next = a·x + b·x0_hat + c·previous + s·noise, of x's shape, dtype and memory format.

    x: (N, ...) float, the noisy sample.
    x0_hat: x's shape, its denoised estimate.
    coefficients: (4,) float on x's device: a, b, c, s; fp32 or better. On a CPU alone they are read,
        and checked to be finite: a GPU would wait.
    previous: x's shape, the last step's x0_hat; without it there is no c term.
    key: int64 (N, 4), from which standard normal noise is drawn; without it there is no s term.

    The arithmetic is in fp32, in fp64 for fp64 x.

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ and coefficients that are not
    finite.
    """
    check_float(x=x, x0_hat=x0_hat, coefficients=coefficients)
    check_optional_float(previous=previous)
    check_batched(x=x)
    check_shape(x.shape, "of x", x0_hat=x0_hat, previous=previous)
    check_shape((4,), "(a, b, c, s)", coefficients=coefficients)
    if key is not None:
        check_key(key, x.shape[0])
    check_device(x.device, "of x", x0_hat=x0_hat, coefficients=coefficients, previous=previous, key=key)
    check_finite_values(coefficients=coefficients)

    if use_triton(x) and not coefficients.requires_grad:  # for which the kernel has no gradient
        return _sampler_step(x, x0_hat, coefficients, previous, key)
    return sampler_step_reference(x, x0_hat, coefficients, previous, key)


def sampler_step_reference(
    x: Tensor, x0_hat: Tensor, coefficients: Tensor, previous: Tensor | None, key: Tensor | None
) -> Tensor:
    """a·x + b·x0_hat + c·previous + s·noise, of x's shape, dtype and memory format, without the terms that are absent.

    x, x0_hat, previous: (N, ...) float. coefficients: (4,) float, a, b, c, s. key: int64 (N, 4), of the noise.

    The arithmetic is in fp32, in fp64 for fp64 x. The arguments have passed sampler_step's checks.
    """
    compute = compute_dtype(x.dtype)
    a, b, c, s = coefficients.to(compute).unbind()
    x_next = a * x.to(compute) + b * x0_hat.to(compute)
    if previous is not None:
        x_next = x_next + c * previous.to(compute)
    if key is not None:
        x_next = x_next + s * philox_normal(x.shape, key, dtype=compute)
    return like(x_next.to(x.dtype), x)


def _fake_forward(x: Tensor, *arguments: Any) -> Tensor:
    return empty_like(x)


def _fake_backward(grad: Tensor, coefficients: Tensor, *dtypes: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in dtypes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, x0_hat, coefficients, previous, _ = inputs
    ctx.save_for_backward(coefficients)
    ctx.dtypes = x.dtype, x0_hat.dtype, None if previous is None else previous.dtype
    ctx.channels_last = channels_last(x)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    dtypes = [dtype if need else None for dtype, need in zip(ctx.dtypes, needed, strict=True)]
    grads = _sampler_step_backward(in_format(grad, ctx.channels_last), *ctx.saved_tensors, *dtypes)
    dx, dx0_hat, dprevious = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return dx, dx0_hat, None, dprevious, None


_sampler_step_backward = define(
    "sampler_step_backward(Tensor grad, Tensor coefficients, ScalarType? x, ScalarType? x0_hat,"
    " ScalarType? previous) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.sampler_step_triton:backward",
    _fake_backward,
)
_sampler_step = define(
    "sampler_step(Tensor x, Tensor x0_hat, Tensor coefficients, Tensor? previous, Tensor? key) -> Tensor",
    "fastgen_kernels.sampler_step_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
