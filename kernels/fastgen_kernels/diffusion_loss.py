"""The loss of a prediction, a sample at a time: loss_i = weight_i · mean over elements of l(pred_i - target_i).

kind "mse":        l(d) = d^2
kind "l1":         l(d) = |d|
kind "huber":      l(d) = d^2/2 where |d| < 1, |d| - 1/2 elsewhere
kind "charbonnier" l(d) = sqrt(d^2 + 1e-6)      (Charbonnier et al., ICIP 1994, with epsilon = 1e-3)
"""

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import (
    check_batched,
    check_choice,
    check_device,
    check_finite_values,
    check_float,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import compute_dtype, empty_like, like
from fastgen_kernels.library import define

Kind = Literal["mse", "l1", "huber", "charbonnier"]
KINDS = ("mse", "l1", "huber", "charbonnier")
CHARBONNIER_EPS = 1e-6


def diffusion_loss(pred: Tensor, target: Tensor, weight: Tensor | None = None, *, kind: Kind = "mse") -> Tensor:
    """The mean loss of each sample, times its weight: (N,) fp32, fp64 for fp64 pred.

    pred, target: (N, ...) float, of one shape; the target is a constant or carries its own graph.
    weight: (N,) float; checked to be finite on a CPU alone, since a GPU would wait.

    Raises TypeError for what is not a tensor of floats, ValueError for shapes or devices that differ, a weight that is not finite
    or an unknown kind.
    """
    check_float(pred=pred, target=target)
    check_optional_float(weight=weight)
    check_batched(pred=pred)
    check_shape(pred.shape, "of pred", target=target)
    check_shape(pred.shape[:1], "(N,)", weight=weight)
    check_device(pred.device, "of pred", target=target, weight=weight)
    check_choice("kind", kind, KINDS)
    check_finite_values(weight=weight)

    if use_triton(pred):
        if weight is not None and weight.requires_grad:  # its gradient is the mean, (N,), which autograd then keeps
            mean = _diffusion_loss(pred, target, None, kind)
            return mean * weight.to(mean.dtype)
        return _diffusion_loss(pred, target, weight, kind)
    return diffusion_loss_reference(pred, target, weight, kind)


def diffusion_loss_reference(pred: Tensor, target: Tensor, weight: Tensor | None, kind: Kind) -> Tensor:
    """weight_i · mean over the elements of sample i of l(pred - target): (N,) fp32, fp64 for fp64 pred.

    pred, target: (N, ...) float. weight: (N,) float, 1 where absent. The arguments have passed diffusion_loss's checks.
    """
    compute = compute_dtype(pred.dtype)
    pred, target = pred.to(compute), like(target.to(compute), pred)
    # An axis is put in so that (N,) predictions, one element a sample, have something to average over.
    loss = elementwise_loss(pred, target, kind).unsqueeze(1).mean(tuple(range(1, pred.dim() + 1)))
    return loss if weight is None else loss * weight.to(compute)


def elementwise_loss(pred: Tensor, target: Tensor, kind: Kind) -> Tensor:
    """The loss of each element, in the dtype of the arguments."""
    if kind == "mse":
        return F.mse_loss(pred, target, reduction="none")
    if kind == "l1":
        return F.l1_loss(pred, target, reduction="none")
    if kind == "huber":
        return F.huber_loss(pred, target, reduction="none")
    return ((pred - target).square() + CHARBONNIER_EPS).sqrt()


def _fake_forward(pred: Tensor, *arguments: Any) -> Tensor:
    return pred.new_empty(pred.shape[0], dtype=compute_dtype(pred.dtype))


def _fake_backward(dloss: Tensor, pred: Tensor, *arguments: Any) -> Tensor:
    return empty_like(pred)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.kind = inputs[3]


def _gradients(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
    pred, target, weight = ctx.saved_tensors
    # l(-d) = l(d): the two may change places.
    dpred = _diffusion_loss_backward(dloss, pred, target, weight, ctx.kind) if ctx.needs_input_grad[0] else None
    dtarget = _diffusion_loss_backward(dloss, target, pred, weight, ctx.kind) if ctx.needs_input_grad[1] else None
    return dpred, dtarget, None, None


_diffusion_loss_backward = define(
    "diffusion_loss_backward(Tensor dloss, Tensor pred, Tensor target, Tensor? weight, str kind) -> Tensor",
    "fastgen_kernels.diffusion_loss_triton:backward",
    _fake_backward,
)
_diffusion_loss = define(
    "diffusion_loss(Tensor pred, Tensor target, Tensor? weight, str kind) -> Tensor",
    "fastgen_kernels.diffusion_loss_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
