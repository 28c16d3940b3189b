"""diffusion_loss against q_sample's target, computed again from the key of the noise: neither noise nor target is stored.

    loss_i = weight_i · mean over elements of l(pred_i - target(x0_i, noise(key_i), alpha_i, sigma_i))

with the targets of q_sample and the kinds of diffusion_loss.
"""

from typing import Any

from torch import Tensor

from fastgen_kernels.checks import (
    check_choice,
    check_device,
    check_finite_values,
    check_float,
    check_key,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.diffusion_loss import KINDS, Kind, diffusion_loss_reference
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import compute_dtype, empty_like, per_sample
from fastgen_kernels.library import define
from fastgen_kernels.philox import philox_normal
from fastgen_kernels.q_sample import TARGETS, Target, as_signal, check_diffused, make_target


def denoising_loss(
    pred: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    key: Tensor,
    weight: Tensor | None = None,
    *,
    target: Target = "eps",
    kind: Kind = "mse",
) -> Tensor:
    """The mean loss of each sample's prediction, times its weight: (N,) fp32, fp64 for fp64 pred.

    pred: (N, ...) float, what the network made of q_sample(x0, alpha, sigma, key=key).
    x0, alpha, sigma, key, target: as q_sample had them; key int64 (N, 4).
    weight: (N,) float.
    kind: "mse", "l1", "huber" or "charbonnier", as in diffusion_loss.

    The target stays in fp32 (fp64 for fp64 pred): the loss is that of diffusion_loss with the target of
    q_sample(..., dtype=torch.float32), by the reference bit for bit, by the kernels but for the order of the sum; and finer
    than with a target that was rounded to bf16.

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ, on a CPU for a schedule or weight
    that is not finite, and for an unknown target or kind.
    """
    check_float(pred=pred)
    check_optional_float(weight=weight)
    check_diffused(x0, alpha, sigma)
    check_shape(x0.shape, "of x0", pred=pred)
    check_key(key, x0.shape[0])
    check_shape(x0.shape[:1], "(N,)", weight=weight)
    check_device(pred.device, "of pred", x0=x0, alpha=alpha, sigma=sigma, key=key, weight=weight)
    check_choice("target", target, TARGETS)
    check_choice("kind", kind, KINDS)
    check_finite_values(weight=weight)

    # The kernel has no gradient for what the target is made of.
    if use_triton(pred, x0) and not (x0.requires_grad or alpha.requires_grad or sigma.requires_grad):
        if weight is not None and weight.requires_grad:  # its gradient is the mean, (N,), which autograd then keeps
            mean = _denoising_loss(pred, x0, alpha, sigma, key, None, target, kind)
            return mean * weight.to(mean.dtype)
        return _denoising_loss(pred, x0, alpha, sigma, key, weight, target, kind)
    return denoising_loss_reference(pred, x0, alpha, sigma, key, weight, target, kind)


def denoising_loss_reference(
    pred: Tensor,
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    key: Tensor,
    weight: Tensor | None,
    target: Target,
    kind: Kind,
) -> Tensor:
    """diffusion_loss_reference of pred and the target that q_sample makes under the same key: (N,) fp32, fp64 for fp64 pred.

    pred, x0: (N, ...), float, x0 uint8 too. alpha, sigma, weight: (N,) float. key: int64 (N, 4).

    The target is made and stays in fp32, in fp64 where pred or x0 is. The arguments have passed denoising_loss's checks.
    """
    compute = compute_dtype(pred.dtype, x0.dtype)
    noise = philox_normal(x0.shape, key, dtype=compute)
    alpha, sigma = per_sample(alpha.to(compute), x0), per_sample(sigma.to(compute), x0)
    made = make_target(target, as_signal(x0, compute), noise, alpha, sigma)
    return diffusion_loss_reference(pred, made, weight, kind)


def _fake_forward(pred: Tensor, *arguments: Any) -> Tensor:
    return pred.new_empty(pred.shape[0], dtype=compute_dtype(pred.dtype))


def _fake_backward(dloss: Tensor, pred: Tensor, *arguments: Any) -> Tensor:
    return empty_like(pred)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.constants = inputs[6:]


def _gradients(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    return _denoising_loss_backward(dloss, *ctx.saved_tensors, *ctx.constants), *(None,) * 7


_denoising_loss_backward = define(
    "denoising_loss_backward(Tensor dloss, Tensor pred, Tensor x0, Tensor alpha, Tensor sigma, Tensor key, Tensor? weight,"
    " str target, str kind) -> Tensor",
    "fastgen_kernels.denoising_loss_triton:backward",
    _fake_backward,
)
_denoising_loss = define(
    "denoising_loss(Tensor pred, Tensor x0, Tensor alpha, Tensor sigma, Tensor key, Tensor? weight, str target, str kind)"
    " -> Tensor",
    "fastgen_kernels.denoising_loss_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
