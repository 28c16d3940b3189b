"""attention in plain torch: what the kernels are held to, and what runs on a CPU and where PyTorch's own is faster."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.layout import channels_last

Order = Literal["qkv_major", "head_major"]


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


def split_heads(qkv: Tensor, num_heads: int, order: Order) -> tuple[Tensor, ...]:
    """q, k and v (N, H, T, D) of (N, 3C, *S), views where *S can be seen as one dimension."""
    heads = _as_nct(qkv).unflatten(1, (3, num_heads, -1) if order == "qkv_major" else (num_heads, 3, -1))
    heads = heads if order == "qkv_major" else heads.transpose(1, 2)
    return heads.transpose(3, 4).unbind(1)


def as_heads(x: Tensor, num_heads: int) -> Tensor:
    """x (N, C, *S) as (N, H, T, D): a view where *S can be seen as one dimension of T positions."""
    return _as_nct(x).unflatten(1, (num_heads, -1)).transpose(2, 3)


def _as_nct(x: Tensor) -> Tensor:
    """x (N, C, *S) as (N, C, T), of no elements too."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
