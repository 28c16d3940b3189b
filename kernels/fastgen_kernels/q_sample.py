"""The forward process of diffusion: x_t = alpha · x0 + sigma · noise, and the target that a network predicts from x_t.

target "eps":  noise
target "x0":   x0
target "v":    alpha · noise - sigma · x0        (Salimans & Ho, arXiv:2202.00512, appendix D)
target "flow": noise - x0                        (Liu et al., arXiv:2209.03003, equation 1, time reversed)
"""

from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from fastgen_kernels.checks import (
    check_batched,
    check_choice,
    check_device,
    check_dtype,
    check_finite_values,
    check_float,
    check_float_or_uint8,
    check_key,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import channels_last, compute_dtype, empty_like, in_format, like, per_sample
from fastgen_kernels.library import define
from fastgen_kernels.philox import fresh_key, philox_normal

Target = Literal["eps", "x0", "v", "flow"]
TARGETS = ("eps", "x0", "v", "flow")


@overload
def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: Target = "eps",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: None,
    dtype: torch.dtype | None = None,
) -> Tensor: ...


def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: Target | None = "eps",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    """x_t = alpha·x0 + sigma·noise and the target of the prediction, each of x0's shape; x_t alone for target None.

    x0: (N, ...) float, or uint8, read as x/127.5 - 1.
    alpha, sigma: (N,) float, the schedule at each sample's time; fp32 or better, as bf16 loses the noise at small t. Checked to
        be finite on a CPU alone, since a GPU would wait.
    noise: x0's shape, any float; or
    key: int64 (N, 4), from which standard normal noise is drawn; a fresh one when neither is given.
    dtype: of what is returned; by default x0's, fp32 for uint8.

    The arithmetic is in fp32, in fp64 for fp64 x0 or dtype. The results have x0's memory format; targets "x0" and "eps" may be
    the tensor given as x0 or noise, not a copy. Gradients flow to every float argument.

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ, a schedule that is not finite, an
    unknown target, or noise and key together.
    """
    check_diffused(x0, alpha, sigma)
    check_optional_float(noise=noise)
    check_shape(x0.shape, "of x0", noise=noise)
    check_choice("target", target, (*TARGETS, None))
    if noise is not None and key is not None:
        raise ValueError("noise, key: expected one of the two, got both")
    if dtype is None:
        dtype = torch.float32 if x0.dtype == torch.uint8 else x0.dtype
    check_dtype(dtype)
    if key is not None:
        check_key(key, x0.shape[0])
    elif noise is None:
        key = fresh_key(x0.shape[0], x0.device)
    check_device(x0.device, "of x0", alpha=alpha, sigma=sigma, noise=noise, key=key)

    # The kernel has no gradient for the schedule.
    if use_triton(x0, noise, dtype=dtype) and not (alpha.requires_grad or sigma.requires_grad):
        x_t, made = _q_sample(x0, alpha, sigma, noise, key, target, dtype)
        return x_t if target is None else (x_t, made)
    noise = philox_normal(x0.shape, cast(Tensor, key)) if noise is None else noise
    return q_sample_reference(x0, alpha, sigma, noise, target, dtype)


def q_sample_reference(
    x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor, target: Target | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | Tensor:
    """x_t = alpha·x0 + sigma·noise and the target, each of x0's shape and memory format, in `dtype`; x_t alone for target None.

    x0: (N, ...) float, or uint8, read as x/127.5 - 1. alpha, sigma: (N,) float. noise: x0's shape, float.

    The arithmetic is in fp32, in fp64 where x0 or dtype is. The arguments have passed q_sample's checks.
    """
    compute = compute_dtype(x0.dtype, dtype)
    clean, noise = as_signal(x0, compute), noise.to(compute)
    alpha, sigma = per_sample(alpha.to(compute), x0), per_sample(sigma.to(compute), x0)
    x_t = like((alpha * clean + sigma * noise).to(dtype), x0)
    if target is None:
        return x_t
    return x_t, like(make_target(target, clean, noise, alpha, sigma).to(dtype), x0)


def as_signal(x0: Tensor, dtype: torch.dtype) -> Tensor:
    """x0 in dtype, uint8 scaled to [-1, 1]."""
    return x0.to(dtype) / 127.5 - 1 if x0.dtype == torch.uint8 else x0.to(dtype)


def make_target(target: Target, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The target, in the dtype of the arguments, which broadcast."""
    if target == "eps":
        return noise
    if target == "x0":
        return x0
    if target == "v":
        return alpha * noise - sigma * x0
    return noise - x0


def check_diffused(x0: Tensor, alpha: Tensor, sigma: Tensor) -> None:
    """Raise for clean data or a schedule that q_sample and denoising_loss do not take."""
    check_float_or_uint8(x0=x0)
    check_float(alpha=alpha, sigma=sigma)
    check_batched(x0=x0)
    check_shape(x0.shape[:1], "(N,)", alpha=alpha, sigma=sigma)
    check_finite_values(alpha=alpha, sigma=sigma)


def _fake_forward(
    x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor | None, key: Tensor | None, target: str | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """An op has a fixed number of outputs: without a target the second is of no elements."""
    return empty_like(x0, dtype), x0.new_empty(0, dtype=dtype) if target is None else empty_like(x0, dtype)


def _fake_backward(
    dx_t: Tensor | None, dtarget: Tensor | None, alpha: Tensor, sigma: Tensor, target: str | None,
    *dtypes: torch.dtype | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    grad = cast(Tensor, dtarget if dx_t is None else dx_t)
    dx0, dnoise = (grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in dtypes)
    return dx0, dnoise


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x0, alpha, sigma, noise, _, ctx.target, _ = inputs
    ctx.save_for_backward(alpha, sigma)
    ctx.channels_last = channels_last(x0)
    ctx.dtypes = x0.dtype, None if noise is None else noise.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dx_t: Tensor | None, dtarget: Tensor | None) -> tuple[Tensor | None, ...]:
    if ctx.target is None:
        dtarget = None  # of no elements
    if dx_t is None and dtarget is None:
        return (None,) * 7
    dx_t, dtarget = (None if grad is None else in_format(grad, ctx.channels_last) for grad in (dx_t, dtarget))
    needed = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    dtypes = [dtype if need else None for dtype, need in zip(ctx.dtypes, needed, strict=True)]
    grads = _q_sample_backward(dx_t, dtarget, *ctx.saved_tensors, ctx.target, *dtypes)
    dx0, dnoise = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return dx0, None, None, dnoise, None, None, None


_q_sample_backward = define(
    "q_sample_backward(Tensor? dx_t, Tensor? dtarget, Tensor alpha, Tensor sigma, str? target, ScalarType? x0,"
    " ScalarType? noise) -> (Tensor, Tensor)",
    "fastgen_kernels.q_sample_triton:backward",
    _fake_backward,
)
_q_sample = define(
    "q_sample(Tensor x0, Tensor alpha, Tensor sigma, Tensor? noise, Tensor? key, str? target, ScalarType dtype)"
    " -> (Tensor, Tensor)",
    "fastgen_kernels.q_sample_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
