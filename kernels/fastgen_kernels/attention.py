"""Attention over all positions, not causal:

    out = softmax(scale · q kᵀ + mask) v,   scale = 1/sqrt(D) by default, mask -inf where a key is padding

Source: Vaswani et al., arXiv:1706.03762, equation 1.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import check_choice, check_float, check_shape
from fastgen_kernels.layout import channels_last

Order = Literal["qkv_major", "head_major"]


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, key_padding_mask: Tensor | None = None) -> Tensor:
    """Each query's mean of the values under the softmax of its products with the keys: (N, H, S, D).

    q: (N, H, S, D) float.
    k, v: (N, H, S_k, D), of q's dtype.
    scale: of the products before the softmax; 1/sqrt(D) by default.
    key_padding_mask: (N, S_k) bool, True for the keys to leave out, as in nn.MultiheadAttention. A sample whose keys
        are all left out has zeros for output, and zero gradients.

    The softmax is in fp32, in fp64 for fp64. Under autocast q, k and v are cast as scaled_dot_product_attention casts
    them, and the output has that dtype.

    Raises TypeError for dtypes that are not floats, that differ, or a mask that is not bool, ValueError for shapes that
    do not fit.
    """
    check_float("attention", q=q, k=k, v=v)
    if q.dim() != 4:
        raise ValueError(f"attention: q must be (N, H, S, D), got shape {tuple(q.shape)}")
    n, h, _, d = q.shape
    keys = k.shape[2] if k.dim() == 4 else 0
    check_shape("attention", (n, h, keys, d), "(N, H, S_k, D)", k=k, v=v)
    if not q.dtype == k.dtype == v.dtype and not torch.is_autocast_enabled(q.device.type):
        raise TypeError(f"attention: k and v must be {q.dtype} as q is, got {k.dtype} and {v.dtype}")
    if key_padding_mask is not None:
        if key_padding_mask.dtype != torch.bool:
            raise TypeError(f"attention: key_padding_mask must be bool, got {key_padding_mask.dtype}")
        check_shape("attention", (n, keys), "(N, S_k)", key_padding_mask=key_padding_mask)
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
    check_float("attention_qkv", qkv=qkv)
    check_choice("attention_qkv", "order", order, ("qkv_major", "head_major"))
    if qkv.dim() < 2 or qkv.shape[1] % 3:
        raise ValueError(f"attention_qkv: qkv must be (N, 3C, *S), got shape {tuple(qkv.shape)}")
    c = qkv.shape[1] // 3
    if num_heads < 1 or c % num_heads:
        raise ValueError(f"attention_qkv: num_heads must divide C = {c}, got {num_heads}")
    return attention_qkv_reference(qkv, num_heads, order)


def attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float | None, key_padding_mask: Tensor | None) -> Tensor:
    device = q.device.type
    if torch.is_autocast_enabled(device) and q.dtype != torch.float64:
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    mask = nothing_left = None
    if key_padding_mask is not None:
        # A softmax over nothing is NaN, so a sample without keys attends to all of them and is then zeroed.
        nothing_left = key_padding_mask.all(1)[:, None, None, None]
        mask = ~key_padding_mask[:, None, None, :] | nothing_left

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
    return out if nothing_left is None else out.masked_fill(nothing_left, 0)


def attention_qkv_reference(qkv: Tensor, num_heads: int, order: Order) -> Tensor:
    n, c, positions = qkv.shape[0], qkv.shape[1] // 3, math.prod(qkv.shape[2:])
    if order == "qkv_major":
        heads = qkv.reshape(n, 3, num_heads, c // num_heads, positions)
    else:
        heads = qkv.reshape(n, num_heads, 3, c // num_heads, positions).transpose(1, 2)
    q, k, v = heads.transpose(3, 4).unbind(1)  # (N, H, T, D)
    out = attention_reference(q, k, v, None, None)
    if channels_last(qkv):
        return out.transpose(1, 2).reshape(n, *qkv.shape[2:], c).movedim(-1, 1)
    return out.transpose(2, 3).reshape(n, c, *qkv.shape[2:])
