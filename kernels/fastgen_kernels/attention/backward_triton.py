"""Backward kernels of attention. With the weights P of forward, dP = dout vᵀ and delta = rowsum(P ∘ dP) = rowsum(dout ∘ out),

    dS = P ∘ (dP - delta),   dv = Pᵀ dout,   dk = scale dSᵀ q,   dq = scale dS k

Source: Dao et al., arXiv:2205.14135, appendix B.2. Where weights are transposed, keys by queries, neither they nor dS need be
rearranged between products. Every sum is made by one program, in one order.
"""


import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.attention import Order
from fastgen_kernels.attention.heads_triton import (
    head_of,
    in_parts,
    load_rows,
    over_columns,
    over_rows,
    padding,
    places,
    products,
    scaling,
    seen_keys,
    softmax_scale,
    store_rows,
    sum_of,
    transposed_over_rows,
    wide,
    zeros,
)
from fastgen_kernels.attention.plan import backward_plan, constants
from fastgen_kernels.layout import as_heads, empty_like, split_heads
from fastgen_kernels.recording import launch


@triton.jit
def load_logarithm(lse_ptr, n, h, H, S, s, i):
    """Infinite for rows that there are not: their weights are 0."""
    return tl.load(lse_ptr + (n * H + h) * S + s + i, s + i < S, float("inf"))


@triton.jit
def transposed_weights(
    q, k, seen, lse, scale, D2: tl.constexpr, NEGATIVE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr
):
    """Pᵀ of a tile, keys by queries."""
    p = tl.exp2((products(k, q, D2, NEGATIVE, UPCAST, PRECISION) - lse[None, :]) * scale)
    return tl.where(seen[:, None], p, 0.0)


@triton.jit
def queries_kernel(
    q_ptr, q_strides, k_ptr, k_strides, v_ptr, v_strides, mask_ptr, mask_strides, out_ptr, out_strides, dout_ptr, dout_strides,
    lse_ptr, delta_ptr, dq_ptr, dq_strides,
    H, S, K, scale, log2_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NEGATIVE: tl.constexpr, COMPUTE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """delta and dq of a tile of queries; keys pass by."""
    tiles = tl.cdiv(S, ROWS)
    n, h = head_of(tl.program_id(0) // tiles, H)
    scale, scale2 = sum_of(scale, COMPUTE), sum_of(log2_scale, COMPUTE)
    i, j = tl.arange(0, ROWS), tl.arange(0, KEYS)
    first = tl.program_id(0) % tiles * ROWS
    here = first + i < S
    dout = load_rows((dout_ptr, dout_strides), n, h, first, i, here, D, D1, D2, WIDE)
    out = load_rows((out_ptr, out_strides), n, h, first, i, here, D, D1, D2, WIDE)
    delta = tl.sum(dout[0].to(COMPUTE) * out[0], 1)
    if D2:
        delta += tl.sum(dout[1].to(COMPUTE) * out[1], 1)
    tl.store(delta_ptr + (n * H + h) * S + first + i, delta, here)
    if dq_ptr is not None:
        q = load_rows((q_ptr, q_strides), n, h, first, i, here, D, D1, D2, WIDE)
        lse = load_logarithm(lse_ptr, n, h, H, S, first, i)
        dq = zeros(ROWS, D1, D2, COMPUTE)
        for s in range(0, K, KEYS):
            k = load_rows((k_ptr, k_strides), n, h, s, j, s + j < K, D, D1, D2, WIDE)
            v = load_rows((v_ptr, v_strides), n, h, s, j, s + j < K, D, D1, D2, WIDE)
            p = tl.exp2((products(q, k, D2, NEGATIVE, UPCAST, PRECISION) - lse[:, None]) * scale2)
            p = tl.where(seen_keys(mask_ptr, mask_strides, n, s, j, K)[None, :], p, 0.0)
            ds = p * (over_columns(dout, v, D2, UPCAST, PRECISION) - delta[:, None])
            dq = over_rows(dq, ds, k, D2, UPCAST, PRECISION)
        store_rows((dq_ptr, dq_strides), dq[0] * scale, dq[1] * scale, n, h, first, i, here, D, D1, D2, WIDE)


@triton.jit
def keys_kernel(
    q_ptr, q_strides, k_ptr, k_strides, v_ptr, v_strides, mask_ptr, mask_strides, dout_ptr, dout_strides, lse_ptr, delta_ptr,
    dq_ptr, dq_strides, dk_ptr, dk_strides, dv_ptr, dv_strides,
    H, S, K, scale, log2_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NEGATIVE: tl.constexpr, COMPUTE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dk and dv of a tile of keys, which stay on chip while queries pass by. Where it holds all keys it makes delta itself, and
    dq."""
    tiles = tl.cdiv(K, KEYS)
    n, h = head_of(tl.program_id(0) // tiles, H)
    scale, scale2 = sum_of(scale, COMPUTE), sum_of(log2_scale, COMPUTE)
    i, j = tl.arange(0, ROWS), tl.arange(0, KEYS)
    first = tl.program_id(0) % tiles * KEYS
    k = load_rows((k_ptr, k_strides), n, h, first, j, first + j < K, D, D1, D2, WIDE)
    v = load_rows((v_ptr, v_strides), n, h, first, j, first + j < K, D, D1, D2, WIDE)
    seen = seen_keys(mask_ptr, mask_strides, n, first, j, K)
    dk, dv = zeros(KEYS, D1, D2, COMPUTE), zeros(KEYS, D1, D2, COMPUTE)
    for s in range(0, S, ROWS):
        here = s + i < S
        q = load_rows((q_ptr, q_strides), n, h, s, i, here, D, D1, D2, WIDE)
        dout = load_rows((dout_ptr, dout_strides), n, h, s, i, here, D, D1, D2, WIDE)
        p = transposed_weights(q, k, seen, load_logarithm(lse_ptr, n, h, H, S, s, i), scale2, D2, NEGATIVE, UPCAST, PRECISION)
        dv = over_rows(dv, p, dout, D2, UPCAST, PRECISION)
        dp = over_columns(v, dout, D2, UPCAST, PRECISION)
        delta = tl.sum(p * dp, 0) if delta_ptr is None else tl.load(delta_ptr + (n * H + h) * S + s + i, here, 0.0)
        ds = p * (dp - delta[None, :])
        dk = over_rows(dk, ds, q, D2, UPCAST, PRECISION)
        if dq_ptr is not None:
            if ROWS % 64 == 0:
                dq = over_rows(zeros(ROWS, D1, D2, COMPUTE), tl.trans(ds), k, D2, UPCAST, PRECISION)
            else:
                dq = transposed_over_rows(k, ds, D2, UPCAST, PRECISION)
            store_rows((dq_ptr, dq_strides), dq[0] * scale, dq[1] * scale, n, h, s, i, here, D, D1, D2, WIDE)
    if dk_ptr is not None:
        store_rows((dk_ptr, dk_strides), dk[0] * scale, dk[1] * scale, n, h, first, j, first + j < K, D, D1, D2, WIDE)
    if dv_ptr is not None:
        store_rows((dv_ptr, dv_strides), dv[0], dv[1], n, h, first, j, first + j < K, D, D1, D2, WIDE)


def attention_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor | None, lse: Tensor, scale: float | None,
    wanted: list[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of q, k and v, laid out as they are; of no elements where one is not wanted."""
    grads = [torch.empty_like(x) if want else x.new_empty(0) for x, want in zip((q, k, v), wanted, strict=True)]
    backward(dout, q, k, v, mask, out, lse, scale, *(g if want else None for g, want in zip(grads, wanted, strict=True)))
    return tuple(grads)


def attention_qkv_backward(
    dout: Tensor, qkv: Tensor, out: Tensor | None, lse: Tensor, num_heads: int, order: Order
) -> Tensor:
    """The gradient of qkv, in its memory format."""
    dqkv = empty_like(qkv)
    q, k, v = split_heads(qkv, num_heads, order)
    grads = split_heads(dqkv, num_heads, order)
    dout, out = as_heads(dout, num_heads), None if out is None else as_heads(out, num_heads)
    backward(dout, q, k, v, None, out, lse, None, *grads)
    return dqkv


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor | None, lse: Tensor, scale: float | None,
    dq: Tensor | None, dk: Tensor | None, dv: Tensor | None,
) -> None:  # fmt: skip
    """Writes dq, dk and dv, of which those that are not wanted are None. out: what forward wrote, needed unless all keys are one
    tile."""
    n, h, s, d = q.shape
    keys, scale = k.shape[2], softmax_scale(scale, d)
    if q.numel() == 0 or keys == 0:
        for grad in (dq, dk, dv):
            if grad is not None:
                grad.zero_()
        return
    p = backward_plan(q, keys)
    arguments = {
        **places(q=q, k=k, v=v, dout=dout), **padding(mask), "lse_ptr": lse,
        "H": h, "S": s, "K": keys, "scale": in_parts(scale), **scaling(scale), **constants(q, p),
        "WIDE": wide(max(p.rows, p.keys), q, k, v, out, dout, dq, dk, dv),
    }  # fmt: skip
    with torch.cuda.device_of(q):
        if p.algorithm == "short":
            launch(keys_kernel, (n * h,), **places(dq=dq, dk=dk, dv=dv), delta_ptr=None, **arguments)
            return
        delta = torch.empty_like(lse)
        launch(queries_kernel, (n * h * triton.cdiv(s, p.rows),), **places(out=out, dq=dq), delta_ptr=delta, **arguments)
        if dk is not None or dv is not None:
            tiles = triton.cdiv(keys, p.keys)
            launch(keys_kernel, (n * h * tiles,), **places(dq=None, dk=dk, dv=dv), delta_ptr=delta, **arguments)
