"""Layer normalization, and the addition that comes before it in a transformer block:

    y = (h - mean) / sqrt(var + eps) * weight + bias,   mean and biased variance over the last dimension

    h = x in layer_norm, h = x + residual in add_layer_norm, which returns h beside y

Source: Ba, Kiros & Hinton, arXiv:1607.06450, equation 4.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_device, check_float, check_number, check_optional_float, check_shape
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import autocasts, compute_dtype
from fastgen_kernels.library import BesideInput, define


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """y = (x - mean) · rstd · weight + bias, of x's shape and dtype, contiguous.

    x: (..., C), any strides.
    weight, bias: (C,), 1 and 0 where absent.
    eps: a finite number >= 0, added to the variance.

    All are float16, bfloat16, float32 or float64. The statistics and the affine part are in fp32, in fp64 for fp64 x. Autocast
    has no effect.

    Raises TypeError for other types and dtypes, ValueError for shapes, devices or an eps that do not fit.
    """
    if (outputs := _layer_norm.repeat(x, None, weight, bias, eps)) is not None:
        return outputs[0]
    _check(x, weight, bias, eps)
    if use_triton(x) and _fits_registers(x.shape[-1]):
        return _layer_norm(x, None, weight, bias, eps)[0]
    return layer_norm_reference(x, weight, bias, eps)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """(layer_norm(x + residual), x + residual): what a block normalizes, and what its skip connection goes on with.

    residual: x's shape, float; it is added in x's dtype, and the sum is contiguous. None stands for 0: the sum is then x itself.

    The gradient of the sum is added in the pass that makes x's gradient through the norm, not in one of its own. Everything else
    is as in layer_norm.

    Raises TypeError and ValueError as layer_norm does, and ValueError for a residual of another shape or device.
    """
    op = _layer_norm_beside_x if residual is None else _layer_norm
    if (outputs := op.repeat(x, residual, weight, bias, eps)) is not None:
        return outputs[:2]
    _check(x, weight, bias, eps)
    check_optional_float(residual=residual)
    check_shape(x.shape, "of x", residual=residual)
    check_device(x.device, "of x", residual=residual)
    if use_triton(x) and _fits_registers(x.shape[-1]):
        return op(x, residual, weight, bias, eps)[:2]
    return add_layer_norm_reference(x, residual, weight, bias, eps)


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> None:
    """Raise for what both ops do not take."""
    check_float(x=x)
    check_optional_float(weight=weight, bias=bias)
    check_number("eps", eps)
    if x.dim() == 0:
        raise ValueError("x: expected (..., C), got a scalar")
    check_shape(x.shape[-1:], "(C,)", weight=weight, bias=bias)
    check_device(x.device, "of x", weight=weight, bias=bias)


def layer_norm_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the last dimension of x (..., C), in x's dtype, contiguous.

    weight, bias: (C,). All floats; the norm is in fp32, in fp64 for fp64 x. Arguments have passed layer_norm's checks.
    """
    if autocasts(x):
        with torch.autocast(x.device.type, enabled=False):
            return _normalize(x, weight, bias, eps)
    return _normalize(x, weight, bias, eps)


def add_layer_norm_reference(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """(layer_norm_reference(h, ...), h), h = x + residual in x's dtype, contiguous; x itself without a residual."""
    total = x if residual is None else (x + residual.to(x.dtype)).contiguous()
    return layer_norm_reference(total, weight, bias, eps), total


def _normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """F.layer_norm, but weight and bias may be of other dtypes than x, and their gradients are summed in fp32."""
    h, compute = x, compute_dtype(x.dtype)
    given = [p for p in (weight, bias) if p is not None]
    mixed = any(p.dtype != x.dtype for p in given)
    # The CPU's kernel alone takes bf16 x with fp32 weight; but it sums the gradients of weight and bias in bf16, which over
    # 4,096 rows makes them wrong by a seventh (torch 2.13).
    if (mixed and x.device.type != "cpu") or (torch.is_grad_enabled() and any(p.requires_grad for p in given)):
        h = x.to(compute)
    if mixed or h is not x:
        weight, bias = (None if p is None else p.to(compute) for p in (weight, bias))
    return F.layer_norm(h, x.shape[-1:], weight, bias, eps).to(x.dtype).contiguous()


def _fits_registers(c: int) -> bool:
    """Whether the registers of one program hold a row in backward, without spills: fewer where it is read element by element."""
    return c <= (4096 if c % 8 else 8192)


def _fake_forward(x: Tensor, residual: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """An op has a fixed number of outputs: without a residual the second is of no elements. The third are the statistics."""
    total = x.new_empty(0 if residual is None else x.shape)
    return x.new_empty(x.shape), total, x.new_empty((2, math.prod(x.shape[:-1])), dtype=compute_dtype(x.dtype))


def _fake_backward(
    dy: Tensor, dtotal: Tensor | None, x: Tensor, weight: Tensor | None, statistics: Tensor, *dtypes: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    shapes = x.shape, x.shape[-1:], x.shape[-1:]
    dx, dweight, dbias = (
        x.new_empty(0) if dtype is None else x.new_empty(shape, dtype=dtype) for shape, dtype in zip(shapes, dtypes, strict=True)
    )
    return dx, dweight, dbias


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, residual, weight, bias, _ = inputs
    _, total, statistics = output
    ctx.save_for_backward(x if residual is None else total, weight, statistics)
    ctx.dtypes = [None if p is None else p.dtype for p in (x, residual, weight, bias)]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dtotal: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    of_x, of_residual, of_weight, of_bias = ctx.dtypes
    needs_x, needs_residual, needs_weight, needs_bias = ctx.needs_input_grad[:4]
    x, *saved = ctx.saved_tensors
    if dtotal is not None and dtotal.shape != x.shape:
        dtotal = None  # of no elements, where there is no sum
    dx, dweight, dbias = dtotal, None, None
    if dy is not None:
        wanted = needs_x or needs_residual, needs_weight, needs_bias
        dtypes = [dtype if want else None for dtype, want in zip((of_x, of_weight, of_bias), wanted, strict=True)]
        made = _layer_norm_backward(dy, dtotal, x, *saved, *dtypes)
        dx, dweight, dbias = (grad if want else None for grad, want in zip(made, wanted, strict=True))
    dresidual = dx.to(of_residual) if needs_residual and dx is not None else None
    return dx if needs_x else None, dresidual, dweight, dbias, None


_layer_norm_backward = define(
    "layer_norm_backward(Tensor dy, Tensor? dtotal, Tensor x, Tensor? weight, Tensor statistics,"
    " ScalarType? of_x, ScalarType? of_weight, ScalarType? of_bias) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.layer_norm_triton:backward",
    _fake_backward,
)
_layer_norm = define(
    "layer_norm(Tensor x, Tensor? residual, Tensor? weight, Tensor? bias, float eps) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.layer_norm_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
    kept=1,
)
_layer_norm_beside_x = BesideInput(_layer_norm, _setup_context, _gradients, kept=1)
