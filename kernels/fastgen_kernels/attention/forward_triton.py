"""Forward kernels of attention. Softmax is in powers of 2, of products of a query and a key less the largest of the row, times
`scale`: that of attention times log2(e), without its sign. For backward lse is kept, in units of the products: the weights of a
row are 2^((product - lse) scale). It is infinite for a row without keys."""


import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.attention import Order
from fastgen_kernels.attention.heads_triton import (
    head_of,
    load_rows,
    over_rows,
    padding,
    places,
    products,
    scaling,
    seen_keys,
    softmax_scale,
    store_rows,
    sum_of,
    wide,
    zeros,
)
from fastgen_kernels.attention.plan import constants, forward_plan
from fastgen_kernels.layout import as_heads, compute_dtype, empty_like, split_heads
from fastgen_kernels.recording import launch


@triton.jit
def seen_products(
    q, k, seen, D2: tl.constexpr, NEGATIVE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr
):  # fmt: skip
    """The products of queries and keys of a tile, -inf where a key is not to be seen."""
    return tl.where(seen[None, :], products(q, k, D2, NEGATIVE, UPCAST, PRECISION), -float("inf"))


@triton.jit
def store_result(
    out, lse_ptr, o, m, total, scale, n, h, H, S, s, i, D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, WIDE: tl.constexpr
):  # fmt: skip
    """o / total, and lse; both 0 and infinite where there was no key."""
    here = s + i < S
    nothing = total == 0.0
    share = 1.0 / tl.where(nothing, 1.0, total)
    store_rows(out, o[0] * share[:, None], o[1] * share[:, None], n, h, s, i, here, D, D1, D2, WIDE)
    lse = tl.where(nothing, float("inf"), m + tl.log2(total) / scale)
    tl.store(lse_ptr + (n * H + h) * S + s + i, lse, here)


@triton.jit
def short_kernel(
    q_ptr, q_strides, k_ptr, k_strides, v_ptr, v_strides, mask_ptr, mask_strides, out_ptr, out_strides, lse_ptr,
    H, S, K, log2_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NEGATIVE: tl.constexpr, COMPUTE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Keys and values of a head stay on chip, and its queries pass by."""
    n, h = head_of(tl.program_id(0), H)
    scale = sum_of(log2_scale, COMPUTE)
    i, j = tl.arange(0, ROWS), tl.arange(0, KEYS)
    k = load_rows((k_ptr, k_strides), n, h, 0, j, j < K, D, D1, D2, WIDE)
    v = load_rows((v_ptr, v_strides), n, h, 0, j, j < K, D, D1, D2, WIDE)
    seen = seen_keys(mask_ptr, mask_strides, n, 0, j, K)
    for s in range(0, S, ROWS):
        q = load_rows((q_ptr, q_strides), n, h, s, i, s + i < S, D, D1, D2, WIDE)
        scores = seen_products(q, k, seen, D2, NEGATIVE, UPCAST, PRECISION)
        m = tl.max(scores, 1)
        m = tl.where(m == -float("inf"), 0.0, m)
        p = tl.exp2((scores - m[:, None]) * scale)
        o = over_rows(zeros(ROWS, D1, D2, COMPUTE), p, v, D2, UPCAST, PRECISION)
        store_result((out_ptr, out_strides), lse_ptr, o, m, tl.sum(p, 1), scale, n, h, H, S, s, i, D, D1, D2, WIDE)


@triton.jit
def tiled_kernel(
    q_ptr, q_strides, k_ptr, k_strides, v_ptr, v_strides, mask_ptr, mask_strides, out_ptr, out_strides, lse_ptr,
    H, S, K, log2_scale,
    D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    NEGATIVE: tl.constexpr, COMPUTE: tl.constexpr, UPCAST: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A tile of queries stays on chip, and keys and values pass by (Milakov & Gimelshein, arXiv:1805.02867; Dao et al.,
    arXiv:2205.14135)."""
    tiles = tl.cdiv(S, ROWS)
    n, h = head_of(tl.program_id(0) // tiles, H)
    scale = sum_of(log2_scale, COMPUTE)
    i, j = tl.arange(0, ROWS), tl.arange(0, KEYS)
    first = tl.program_id(0) % tiles * ROWS
    q = load_rows((q_ptr, q_strides), n, h, first, i, first + i < S, D, D1, D2, WIDE)
    o = zeros(ROWS, D1, D2, COMPUTE)
    largest = tl.full((ROWS,), -float("inf"), COMPUTE)
    total = tl.zeros((ROWS,), COMPUTE)
    for s in range(0, K, KEYS):
        seen = seen_keys(mask_ptr, mask_strides, n, s, j, K)
        k = load_rows((k_ptr, k_strides), n, h, s, j, s + j < K, D, D1, D2, WIDE)
        scores = seen_products(q, k, seen, D2, NEGATIVE, UPCAST, PRECISION)
        before = largest
        largest = tl.maximum(largest, tl.max(scores, 1))
        m = tl.where(largest == -float("inf"), 0.0, largest)
        p = tl.exp2((scores - m[:, None]) * scale)
        shrink = tl.exp2((before - m) * scale)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows((v_ptr, v_strides), n, h, s, j, s + j < K, D, D1, D2, WIDE)
        o = over_rows((o[0] * shrink[:, None], o[1] * shrink[:, None]), p, v, D2, UPCAST, PRECISION)
    store_result((out_ptr, out_strides), lse_ptr, o, largest, total, scale, n, h, H, S, first, i, D, D1, D2, WIDE)


def attention_forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> tuple[Tensor, Tensor]:
    """out, laid out as q is, and lse (N, H, S)."""
    out = torch.empty_like(q)
    return out, forward(q, k, v, mask, scale, out)


def attention_qkv_forward(qkv: Tensor, num_heads: int, order: Order) -> tuple[Tensor, Tensor]:
    """out (N, C, *S), in qkv's memory format, and lse (N, H, T)."""
    q, k, v = split_heads(qkv, num_heads, order)
    out = empty_like(qkv[:, : qkv.shape[1] // 3])
    return out, forward(q, k, v, None, None, as_heads(out, num_heads))


def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None, out: Tensor) -> Tensor:
    """Writes out (N, H, S, D) and gives lse (N, H, S). q, k, v: (N, H, S or K, D), any strides; mask (N, K) bool."""
    n, h, s, d = q.shape
    keys = k.shape[2]
    lse = q.new_empty((n, h, s), dtype=compute_dtype(q.dtype))
    if out.numel() == 0:
        return lse
    p = forward_plan(q, keys)
    kernel, tiles = (short_kernel, 1) if p.algorithm == "short" else (tiled_kernel, triton.cdiv(s, p.rows))
    with torch.cuda.device_of(q):
        launch(kernel, (n * h * tiles,),
            **places(q=q, k=k, v=v, out=out), **padding(mask), lse_ptr=lse,
            H=h, S=s, K=keys, **scaling(softmax_scale(scale, d)), **constants(q, p), WIDE=wide(max(p.rows, p.keys), q, k, v, out),
        )  # fmt: skip
    return lse
