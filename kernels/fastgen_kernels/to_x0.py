"""Classifier-free guidance and any prediction turned into the clean sample:

    x0_hat = c_skip · x + c_out · (uncond + guidance · (out - uncond))

Sources: Ho & Salimans, arXiv:2207.12598, equation 6 (guidance, where their w is guidance - 1); Karras et al.,
arXiv:2206.00364, equation 7 (c_skip, c_out).
"""

from typing import Any

from torch import Tensor

from fastgen_kernels.checks import check_batched, check_device, check_finite, check_float, check_optional_float, check_shape
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import channels_last, compute_dtype, empty_like, in_format, like, per_sample
from fastgen_kernels.library import define


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

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ and a guidance that is not finite.
    """
    check_float(out=out, x=x, c_skip=c_skip, c_out=c_out)
    check_optional_float(uncond=uncond)
    check_batched(x=x)
    check_shape(x.shape, "of x", out=out, uncond=uncond)
    check_shape(x.shape[:1], "(N,)", c_skip=c_skip, c_out=c_out)
    if isinstance(guidance, Tensor):
        check_float(guidance=guidance)
        check_shape(x.shape[:1], "(N,)", guidance=guidance)
    else:
        check_finite("guidance", guidance)
    scale, scales = (1.0, guidance) if isinstance(guidance, Tensor) else (guidance, None)
    check_device(x.device, "of x", out=out, c_skip=c_skip, c_out=c_out, uncond=uncond, guidance=scales)

    # The kernel has no gradient for coefficients.
    if use_triton(x) and not any(c is not None and c.requires_grad for c in (c_skip, c_out, scales)):
        return _to_x0(out, x, c_skip, c_out, uncond, *((1.0, None) if uncond is None else (scale, scales)))
    return to_x0_reference(out, x, c_skip, c_out, uncond, guidance)


def to_x0_reference(
    out: Tensor, x: Tensor, c_skip: Tensor, c_out: Tensor, uncond: Tensor | None, guidance: float | Tensor
) -> Tensor:
    """c_skip·x + c_out·(uncond + guidance·(out - uncond)), of x's shape, dtype and memory format; without uncond c_skip·x +
    c_out·out.

    out, x, uncond: (N, ...) float. c_skip, c_out: (N,) float. guidance: a float, or (N,).

    The arithmetic is in fp32, in fp64 for fp64 x. The arguments have passed to_x0's checks.
    """
    compute = compute_dtype(x.dtype)
    out = out.to(compute)
    if uncond is not None:
        uncond = uncond.to(compute)
        scale = per_sample(guidance.to(compute), x) if isinstance(guidance, Tensor) else guidance
        out = uncond + scale * (out - uncond)
    x0_hat = per_sample(c_skip.to(compute), x) * x.to(compute) + per_sample(c_out.to(compute), x) * out
    return like(x0_hat.to(x.dtype), x)


def _fake_forward(out: Tensor, x: Tensor, *arguments: Any) -> Tensor:
    return empty_like(x)


def _fake_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(grad.new_empty(0) if dtype is None else empty_like(grad, dtype) for dtype in arguments[-3:])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    out, x, c_skip, c_out, uncond, ctx.scale, scales = inputs
    ctx.save_for_backward(c_skip, c_out, scales)
    ctx.dtypes = out.dtype, x.dtype, None if uncond is None else uncond.dtype
    ctx.channels_last = channels_last(x)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [ctx.needs_input_grad[i] for i in (0, 1, 4)]
    dtypes = [dtype if need else None for dtype, need in zip(ctx.dtypes, needed, strict=True)]
    c_skip, c_out, scales = ctx.saved_tensors
    grads = _to_x0_backward(in_format(grad, ctx.channels_last), c_skip, c_out, ctx.scale, scales, *dtypes)
    dout, dx, duncond = (grad if need else None for grad, need in zip(grads, needed, strict=True))
    return dout, dx, None, None, duncond, None, None


_to_x0_backward = define(
    "to_x0_backward(Tensor grad, Tensor c_skip, Tensor c_out, float scale, Tensor? scales,"
    " ScalarType? out, ScalarType? x, ScalarType? uncond) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.to_x0_triton:backward",
    _fake_backward,
)
_to_x0 = define(
    "to_x0(Tensor out, Tensor x, Tensor c_skip, Tensor c_out, Tensor? uncond, float scale, Tensor? scales)"
    " -> Tensor",
    "fastgen_kernels.to_x0_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
