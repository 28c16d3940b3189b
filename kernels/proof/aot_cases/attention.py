"""Launches of attention: of what the kernels are taken for."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels.attention.backward_triton import attention_qkv_backward, backward
from fastgen_kernels.attention.choice import listed_as_faster, one_tile
from fastgen_kernels.attention.forward_triton import attention_forward, attention_qkv_forward
from fastgen_kernels.attention.plan import split
from proof.aot_cases.launch import BF16, FP16, Launch, text, widths


def attention() -> Iterator[Launch]:
    """Self-attention in both memory formats and cross-attention, by number of keys and columns, where kernels are taken."""
    yield from (launch for launch in _everywhere() if launch.capabilities)


def _everywhere() -> Iterator[Launch]:
    for d, keys, dtype in product((16, 32, 40, 64, 80, 96, 128), (64, 128, 256, 1024), (BF16, FP16)):
        main, lane = dtype == BF16 and d in (32, 64), 4 if 16 in split(d) else 8  # of 64 x 16 a lane of 8 warps has 4
        yield from stacked("channels_last", d, keys, dtype, lane=lane, main=main)
        if dtype == BF16:
            yield from stacked("contiguous", d, keys, dtype, lane=lane, main=main)
    for d, keys in product((16, 32, 40, 64, 80, 96, 128), (49, 100, 225, 900)):
        yield from stacked("channels_last", d, keys, BF16, lane=4 if 16 in split(d) else 8)
    for d, keys, masked in product((40, 64, 80, 128), (64, 77, 225), (False, True)):
        yield from cross(d, keys, masked)


def taken(d: int, keys: int, dtype: torch.dtype) -> tuple[int, ...]:
    """The architectures where kernels are taken."""
    return tuple(cc for cc in (80, 90, 100, 120) if listed_as_faster(d, keys, dtype, divmod(cc, 10)))


def stacked(layout: str, d: int, positions: int, dtype: torch.dtype, *, lane: int = 0, main: bool = False) -> Iterator[Launch]:
    """Self-attention of 8 heads."""
    shape = (8, 3 * 8 * d, positions)

    def make(shape: tuple[int, ...]) -> Tensor:
        n, c, t = shape
        return torch.empty(n, t, c, dtype=dtype).transpose(1, 2) if layout == "channels_last" else torch.empty(shape, dtype=dtype)

    def forward() -> None:
        attention_qkv_forward(make(shape), 8, "qkv_major")

    def back() -> None:
        dout, lse = make((8, 8 * d, positions)), torch.empty(8, 8, positions)
        out = None if one_tile(d, positions, dtype, dout.device) else torch.empty_like(dout)
        attention_qkv_backward(dout, make(shape), out, lse, 8, "qkv_major")

    name = f"{layout} D {d}, {positions} positions, {text(dtype)}"
    on = taken(d, positions, dtype)
    yield Launch("attention", f"forward {name}", forward, widths(["out_ptr"], lane, dtype), main, on)
    yield Launch("attention", f"backward {name}", back, widths(["k_ptr", "v_ptr"], lane, dtype), main, on)


def cross(d: int, keys: int, masked: bool) -> Iterator[Launch]:
    """Queries of a convolution, keys and values the halves of a linear layer's output."""

    def make() -> tuple[Tensor, ...]:
        q = torch.empty(8, 8, d, 1024, dtype=BF16).transpose(2, 3)
        k, v = torch.empty(8, keys, 2, 8, d, dtype=BF16).permute(2, 0, 3, 1, 4)
        return q, k, v, torch.empty(8, keys, dtype=torch.bool) if masked else None

    def back() -> None:
        q, k, v, mask = make()
        backward(q, q, k, v, mask, q, torch.empty(8, 8, 1024), 0.125, *(torch.empty_like(x) for x in (q, k, v)))

    on = taken(d, keys, BF16)
    name = f"cross D {d}, {keys} keys{', masked' * masked}"
    yield Launch("attention", f"forward {name}", lambda: attention_forward(*make(), 0.125), capabilities=on)
    yield Launch("attention", f"backward {name}", back, capabilities=on)
