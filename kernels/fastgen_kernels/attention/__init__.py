"""Attention over all positions, not causal:

    out = softmax(scale · q kᵀ + mask) v,   scale = 1/sqrt(D) by default, mask -inf where a key is padding

Source: Vaswani et al., arXiv:1706.03762, equation 1.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.attention.choice import kernels_are_faster, one_tile, readable
from fastgen_kernels.checks import check_choice, check_device, check_divisor, check_finite, check_float, check_shape
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import as_heads, autocasts, channels_last, compute_dtype, empty_like, split_heads
from fastgen_kernels.library import define

Order = Literal["qkv_major", "head_major"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, key_padding_mask: Tensor | None = None) -> Tensor:
    """Each query's mean of the values under the softmax of its products with the keys: (N, H, S, D).

    q: (N, H, S, D) float.
    k, v: (N, H, S_k, D), of q's dtype.
    scale: of the products before the softmax, a finite number; 1/sqrt(D) by default.
    key_padding_mask: (N, S_k) bool, True for the keys to leave out, as in nn.MultiheadAttention. A sample whose keys
        are all left out has zeros for output, and zero gradients.

    The softmax is in fp32, in fp64 for fp64. Under autocast q, k and v are cast as scaled_dot_product_attention casts
    them, and the output has that dtype.

    Raises TypeError for dtypes that are not floats, that differ, or a mask that is not bool, ValueError for shapes, devices or a
    scale that do not fit.
    """
    if not _casts(q) and (outputs := _attention.repeat(q, k, v, key_padding_mask, scale)) is not None:
        return outputs[0]
    check_float(q=q, k=k, v=v)
    if q.dim() != 4:
        raise ValueError(f"q: expected (N, H, S, D), got shape {tuple(q.shape)}")
    n, h, _, d = q.shape
    keys = k.shape[2] if k.dim() == 4 else 0
    check_shape((n, h, keys, d), "(N, H, S_k, D)", k=k, v=v)
    if not q.dtype == k.dtype == v.dtype and not autocasts(q):
        raise TypeError(f"k, v: expected {q.dtype} as q is, got {k.dtype} and {v.dtype}")
    check_device(q.device, "of q", k=k, v=v)
    if scale is not None:
        check_finite("scale", scale)
    if key_padding_mask is not None:
        if not isinstance(key_padding_mask, Tensor) or key_padding_mask.dtype != torch.bool:
            raise TypeError(
                f"key_padding_mask: expected bool in a tensor, got {getattr(key_padding_mask, 'dtype', key_padding_mask)}"
            )
        check_shape((n, keys), "(N, S_k)", key_padding_mask=key_padding_mask)
        check_device(q.device, "of q", key_padding_mask=key_padding_mask)
    q, k, v = (_autocast(x) for x in (q, k, v))
    if use_triton(q, k, v, key_padding_mask) and kernels_are_faster(d, keys, q.dtype, q.device) and readable(q, k, v):
        return _attention(q, k, v, key_padding_mask, scale)[0]
    return attention_reference(q, k, v, scale, key_padding_mask)


def attention_qkv(qkv: Tensor, num_heads: int, *, order: Order = "qkv_major") -> Tensor:
    """Self-attention over the positions *S of a stack of queries, keys and values: (N, C, *S), in qkv's memory format.

    qkv: (N, 3C, *S) float, S of 0 to 3 dims: a 1x1 convolution's output, or a linear's (N, T, 3C) as transpose(1, 2).
    num_heads: a divisor of C; scale is 1/sqrt(C/num_heads).
    order: of the 3C channels. "qkv_major": the queries of all heads, then the keys, then the values (diffusers, ADM's
        new order); "head_major": queries, keys and values of the first head, then of the next (ADM's legacy order).

    Dtypes, autocast and the softmax are as in attention.

    Raises TypeError for a dtype that is not a float, ValueError for a shape, num_heads or order that do not fit.
    """
    if not _casts(qkv) and (outputs := _attention_qkv.repeat(qkv, num_heads, order)) is not None:
        return outputs[0]
    check_float(qkv=qkv)
    check_choice("order", order, ("qkv_major", "head_major"))
    if qkv.dim() < 2 or qkv.shape[1] == 0 or qkv.shape[1] % 3:
        raise ValueError(f"qkv: expected (N, 3C, *S), got shape {tuple(qkv.shape)}")
    c = qkv.shape[1] // 3
    check_divisor("num_heads", num_heads, "C", c)
    qkv = _autocast(qkv)
    d, positions = c // num_heads, math.prod(qkv.shape[2:])
    if use_triton(qkv) and kernels_are_faster(d, positions, qkv.dtype, qkv.device) and readable(as_heads(qkv, 3 * num_heads)):
        return _attention_qkv(qkv, num_heads, order)[0]
    return attention_qkv_reference(qkv, num_heads, order)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None, key_padding_mask: Tensor | None) -> Tensor:
    """softmax(scale · q kᵀ + mask) v by scaled_dot_product_attention: (N, H, S, D) of q's dtype.

    q: (N, H, S, D). k, v: (N, H, S_k, D), of q's dtype. scale: 1/sqrt(D) where None. key_padding_mask: (N, S_k) bool, True for
    keys to leave out; the output of a sample without keys is 0.

    The softmax is in fp32, in fp64 for fp64. The arguments have passed attention's checks.
    """
    mask = nothing_left = None
    if key_padding_mask is not None:
        # A softmax over nothing is NaN, so a sample without keys attends to all of them and is then zeroed.
        nothing_left = key_padding_mask.all(1)[:, None, None, None]
        mask = ~key_padding_mask[:, None, None, :] | nothing_left

    device = q.device.type
    # SDPA on the CPU: its backward in bf16 takes up to 6 times as long as in fp32, casts included, until the products
    # outweigh the casts at about 256 keys; in fp16 at any length (torch 2.13). fp32 is the more exact, too.
    dtype = q.dtype
    if device == "cpu" and k.shape[2] > 128:
        # Its flash kernel wants D contiguous, as it is not in a channel-major qkv; what SDPA takes instead is faster for
        # fewer keys and slower for more, by the copies and half as much again at 256.
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if device == "cpu" and (dtype == torch.float16 or (dtype == torch.bfloat16 and k.shape[2] <= 256)):
        with torch.autocast(device, enabled=False):
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, scale=scale).to(dtype)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    if device == "cpu" and k.shape[2] < 16:
        # With fewer keys than a vector register holds, it makes 0 of a query that is NaN (torch 2.13).
        out = out.masked_fill(q.isnan().any(3, keepdim=True), math.nan)
    return out if nothing_left is None else out.masked_fill(nothing_left, 0)


def attention_qkv_reference(qkv: Tensor, num_heads: int, order: Order) -> Tensor:
    """attention_reference of the queries, keys and values in qkv (N, 3C, *S): (N, C, *S), in qkv's dtype and memory format.

    order: of the channels, as attention_qkv describes it. The arguments have passed its checks.
    """
    n, c = qkv.shape[0], qkv.shape[1] // 3
    q, k, v = split_heads(qkv, num_heads, order)
    out = attention_reference(q, k, v, None, None)
    if channels_last(qkv):
        return out.transpose(1, 2).reshape(n, *qkv.shape[2:], c).movedim(-1, 1)
    return out.transpose(2, 3).reshape(n, c, *qkv.shape[2:])


def _autocast(x: Tensor) -> Tensor:
    """x as scaled_dot_product_attention casts it."""
    return x.to(torch.get_autocast_dtype(x.device.type)) if autocasts(x) and x.dtype != torch.float64 else x


def _casts(x: object) -> bool:
    """Whether `_autocast` makes another tensor of x."""
    return isinstance(x, Tensor) and autocasts(x) and x.dtype not in (torch.float64, torch.get_autocast_dtype(x.device.type))


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=compute_dtype(q.dtype))


def _fake_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x) if want else x.new_empty(0) for x, want in zip((q, k, v), arguments[-1], strict=True))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.scale = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, mask, None if one_tile(q.shape[3], k.shape[2], q.dtype, q.device) else out, lse)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None, None, None
    wanted = list(ctx.needs_input_grad[:3])
    grads = _attention_backward(dout, *ctx.saved_tensors, ctx.scale, wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None


def _fake_forward_qkv(qkv: Tensor, num_heads: int, order: Order) -> tuple[Tensor, Tensor]:
    lse = qkv.new_empty((qkv.shape[0], num_heads, math.prod(qkv.shape[2:])), dtype=compute_dtype(qkv.dtype))
    return empty_like(qkv[:, : qkv.shape[1] // 3]), lse


def _fake_backward_qkv(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return empty_like(qkv)


def _setup_context_qkv(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, ctx.order = inputs
    out, lse = output
    single = one_tile(qkv.shape[1] // 3 // ctx.num_heads, math.prod(qkv.shape[2:]), qkv.dtype, qkv.device)
    ctx.save_for_backward(qkv, None if single else out, lse)
    ctx.set_materialize_grads(False)


def _gradients_qkv(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return None, None, None
    return _attention_qkv_backward(dout, *ctx.saved_tensors, ctx.num_heads, ctx.order), None, None


_attention_backward = define(
    "attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor? out, Tensor lse, float? scale,"
    " bool[] wanted) -> (Tensor, Tensor, Tensor)",
    "fastgen_kernels.attention.backward_triton:attention_backward",
    _fake_backward,
)
_attention = define(
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, float? scale) -> (Tensor, Tensor)",
    "fastgen_kernels.attention.forward_triton:attention_forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
    kept=1,
)
_attention_qkv_backward = define(
    "attention_qkv_backward(Tensor dout, Tensor qkv, Tensor? out, Tensor lse, int num_heads, str order) -> Tensor",
    "fastgen_kernels.attention.backward_triton:attention_qkv_backward",
    _fake_backward_qkv,
)
_attention_qkv = define(
    "attention_qkv(Tensor qkv, int num_heads, str order) -> (Tensor, Tensor)",
    "fastgen_kernels.attention.forward_triton:attention_qkv_forward",
    _fake_forward_qkv,
    setup_context=_setup_context_qkv,
    backward=_gradients_qkv,
    kept=1,
)
