"""Group normalization with what surrounds it in a residual block:

    y = act((GN(h + pre_bias) * weight + bias) * (1 + scale) + shift)

    h = x in group_norm, h = x + residual in add_group_norm, which returns h beside y
    GN(h) = (h - mean) / sqrt(var + eps),   mean and biased variance over a group's C/num_groups channels and all *S

Sources: Wu & He, arXiv:1803.08494 (GN); Dhariwal & Nichol, arXiv:2105.05233, section 3 (scale and shift, "AdaGN").
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import (
    check_choice,
    check_device,
    check_divisor,
    check_float,
    check_number,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import channels_last, compute_dtype, empty_like, like
from fastgen_kernels.library import BesideInput, define

Activation = Literal["silu"]


def group_norm(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pre_bias: Tensor | None = None,
) -> Tensor:
    """y = act((GN(x + pre_bias)·weight + bias)·(1 + scale) + shift), of x's shape, dtype and memory format.

    x: (N, C, *S), S of 0 to 3 dims, any strides.
    num_groups: a divisor of C.
    weight, bias: (C,), 1 and 0 where absent.
    eps: a finite number >= 0, added to the variance.
    activation: None or "silu".
    scale, shift: (N, C), 0 where absent.
    pre_bias: (N, C), added to x before the norm: a residual block's time embedding.

    All are float16, bfloat16, float32 or float64. The statistics and the affine part are in fp32, in fp64 for fp64 x; x and
    pre_bias are added in x's dtype. Autocast has no effect.

    Raises TypeError for other types and dtypes, ValueError for shapes, devices, num_groups, an eps or an activation that do not
    fit.
    """
    arguments = x, None, weight, bias, scale, shift, pre_bias, num_groups, eps, activation
    if (outputs := _group_norm.repeat(*arguments)) is not None:
        return outputs[0]
    _check(x, num_groups, weight, bias, eps, activation, scale, shift, pre_bias)
    if use_triton(x):
        return _group_norm(*arguments)[0]
    return group_norm_reference(x, num_groups, weight, bias, eps, activation, scale, shift, pre_bias)


def add_group_norm(
    x: Tensor,
    residual: Tensor | None,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    pre_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(group_norm(x + residual), x + residual): what a block normalizes, and what its skip connection goes on with.

    residual: x's shape, float; it is added in x's dtype. None stands for 0: the sum is then x itself.

    The gradient of the sum is added in the pass that makes x's gradient through the norm, not in one of its own. Everything else
    is as in group_norm; pre_bias is no part of the sum that is returned.

    Raises TypeError and ValueError as group_norm does, and ValueError for a residual of another shape or device.
    """
    op = _group_norm_beside_x if residual is None else _group_norm
    arguments = x, residual, weight, bias, scale, shift, pre_bias, num_groups, eps, activation
    if (outputs := op.repeat(*arguments)) is not None:
        return outputs[:2]
    _check(x, num_groups, weight, bias, eps, activation, scale, shift, pre_bias)
    check_optional_float(residual=residual)
    check_shape(x.shape, "of x", residual=residual)
    check_device(x.device, "of x", residual=residual)
    if use_triton(x):
        return op(*arguments)[:2]
    return add_group_norm_reference(x, residual, num_groups, weight, bias, eps, activation, scale, shift, pre_bias)


def _check(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None,
    scale: Tensor | None, shift: Tensor | None, pre_bias: Tensor | None,
) -> None:  # fmt: skip
    """Raise for what both ops do not take."""
    check_float(x=x)
    check_optional_float(weight=weight, bias=bias, scale=scale, shift=shift, pre_bias=pre_bias)
    if x.dim() < 2:
        raise ValueError(f"x: expected (N, C, *S), got shape {tuple(x.shape)}")
    n, c = x.shape[:2]
    check_divisor("num_groups", num_groups, "C", c)
    check_number("eps", eps)
    check_shape((c,), "(C,)", weight=weight, bias=bias)
    check_shape((n, c), "(N, C)", scale=scale, shift=shift, pre_bias=pre_bias)
    check_device(x.device, "of x", weight=weight, bias=bias, scale=scale, shift=shift, pre_bias=pre_bias)
    check_choice("activation", activation, (None, "silu"))


def group_norm_reference(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    scale: Tensor | None,
    shift: Tensor | None,
    pre_bias: Tensor | None,
) -> Tensor:
    """act((GN(x + pre_bias)·weight + bias)·(1 + scale) + shift), of x's shape (N, C, *S), dtype and memory format.

    weight, bias: (C,). scale, shift, pre_bias: (N, C). All floats; the norm is in fp32, in fp64 for fp64 x. Arguments have passed
    group_norm's checks.
    """
    n, c, *spatial = x.shape
    compute = compute_dtype(x.dtype)
    modulated = scale is not None or shift is not None
    h = x if pre_bias is None else x + _per_channel(pre_bias.to(x.dtype), x)

    # In 16 bits PyTorch's CPU kernel for channels_last is slow where a group has less than a vector's channels: below 1,024
    # positions each way, and from there on, where forward is another algorithm, backward. Conversions both ways are then 1.4 to 5
    # times as fast. Elsewhere they are the slower way, forward by 1 to 8 times; in fp32 too, but in groups of 2.
    # (64 to 1,280 channels, 64 to 4,096 positions, with and without scale and shift, 1 and 2 threads, torch 2.13.)
    trained = torch.is_grad_enabled() and h.requires_grad
    if channels_last(h) and x.dtype != compute and c // num_groups < 16 and (trained or math.prod(spatial) < 1024):
        h = h.contiguous()

    if not modulated:
        y = _normalize(h, num_groups, weight, bias, eps)
    elif channels_last(h) or n == 0:
        y = _normalize(h, num_groups, weight, bias, eps)
        y = y if scale is None else y * (1 + _per_channel(scale, x))
        y = y if shift is None else y + _per_channel(shift, x)
    else:
        # As one sample of N·C channels in N·num_groups groups, each sample's own affine part is the weight and bias of
        # the native kernel: two passes less each way than multiplying and adding after it.
        gain = torch.ones(n, c, dtype=compute, device=x.device) if scale is None else 1 + scale.to(compute)
        offset = torch.zeros_like(gain) if shift is None else shift.to(compute)
        a = gain if weight is None else gain * weight
        b = offset if bias is None else offset + gain * bias
        y = _normalize(h.reshape(1, n * c, *spatial), n * num_groups, a.reshape(-1), b.reshape(-1), eps).view(x.shape)

    y = like(y, x)
    return (F.silu(y) if activation == "silu" else y).to(x.dtype)


def add_group_norm_reference(x: Tensor, residual: Tensor | None, *parameters: Any) -> tuple[Tensor, Tensor]:
    """(group_norm_reference(h, *parameters), h), h = x + residual in x's dtype and memory format, x itself without a residual."""
    total = x if residual is None else like(x + residual.to(x.dtype), x)
    return group_norm_reference(total, *parameters), total


def _normalize(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """torch.group_norm, but weight and bias may be of other dtypes than x, and bias may come without weight."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # torch's backward fails without (2.13)
    if any(p is not None and p.dtype != x.dtype for p in (weight, bias)):
        compute = compute_dtype(x.dtype)
        weight = None if weight is None else weight.to(compute)
        bias = None if bias is None else bias.to(compute)
        x = x if x.device.type == "cpu" else x.to(compute)  # the CPU's kernel alone takes bf16 x with fp32 weight
    return torch.group_norm(x, num_groups, weight, bias, eps)


def _per_channel(v: Tensor, x: Tensor) -> Tensor:
    """(N, C) made to broadcast over x (N, C, *S)."""
    return v.view(*v.shape, *[1] * (x.dim() - 2))


def _fake_forward(x: Tensor, residual: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """An op has a fixed number of outputs: without a residual the second is of no elements. The third are the statistics."""
    groups = arguments[5]
    total = x.new_empty(0) if residual is None else empty_like(x)
    return empty_like(x), total, x.new_empty((x.shape[0], groups, 3), dtype=compute_dtype(x.dtype))


def _fake_backward(dy: Tensor, dtotal: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    x, *parameters = arguments[:6]
    *_, wanted = arguments
    return tuple(empty_like(g) if want else x.new_empty(0) for g, want in zip((x, *parameters), wanted, strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, *parameters, _, _, ctx.activation = inputs
    _, total, statistics = output
    ctx.save_for_backward(x if residual is None else total, *parameters, statistics)
    ctx.residual = None if residual is None else residual.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    needs_x, needs_residual, *needed = ctx.needs_input_grad[:7]
    x, *saved = ctx.saved_tensors
    if dtotal is not None and dtotal.shape != x.shape:
        dtotal = None  # of no elements, where there is no sum
    dx, rest = dtotal, [None] * 5
    if dy is not None:
        made = _group_norm_backward(dy, dtotal, x, *saved, ctx.activation, [needs_x or needs_residual, *needed])
        dx, *rest = made
        rest = [grad if want else None for grad, want in zip(rest, needed, strict=True)]
    dresidual = dx.to(ctx.residual) if needs_residual and dx is not None else None
    return dx if needs_x else None, dresidual, *rest, None, None, None


_group_norm_backward = define(
    "group_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " Tensor? pre_bias, Tensor statistics, str? activation, bool[] wanted) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "fastgen_kernels.group_norm.backward_triton:backward",
    _fake_backward,
)
_group_norm = define(
    "group_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? pre_bias,"
    " int groups, float eps, str? activation) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.group_norm.forward_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
    kept=1,
)
_group_norm_beside_x = BesideInput(_group_norm, _setup_context, _gradients, kept=1)
