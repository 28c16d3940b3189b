"""Which kernels of attention run, and in which tiles.

short  All keys of a head are one tile, which stays on chip; the backward pass is one kernel of five products.
tiled  Tiles of keys pass by one of queries, or the other way round; the backward pass is two kernels.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import triton
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE
from fastgen_kernels.attention.choice import is_hopper, one_tile
from fastgen_kernels.dispatch import interpreted
from fastgen_kernels.layout import compute_dtype
from fastgen_kernels.recording import unrepeatable


@dataclass(frozen=True)
class Plan:
    """The kernels of a launch and their tiles."""
    algorithm: Literal["short", "tiled"]
    rows: int  # queries of a tile
    keys: int  # of a tile
    warps: int
    stages: int = 1
    whole: bool = False  # columns that are not a power of 2 are padded to one, not split


def forward_plan(q: Tensor, keys: int) -> Plan:
    """For queries (N, H, S, D). In 16 bits what compiles without spills where the table of the choice takes kernels; for fp32 and
    fp64 there is no such tiling."""
    d, tile = q.shape[3], max(16, triton.next_power_of_2(keys))
    if q.itemsize > 2:
        return Plan("tiled", 32, 32, 4)
    most = 256 if is_hopper(q.device) else 128
    spills = tile == 256 and d > 64 and keys % 16 > 0  # other sizes than multiples of 16 take registers for addresses
    if d > 128 or tile > most or spills:
        return Plan("tiled", 128, 64, 8, 2)
    return Plan("short", 64, tile, 8 if tile == 256 else 4)


def backward_plan(q: Tensor, keys: int) -> Plan:
    """As forward_plan."""
    d, tile = q.shape[3], max(64, triton.next_power_of_2(keys))
    if not one_tile(d, keys, q.dtype, q.device):
        return Plan("tiled", 32, 32, 4) if q.itemsize > 2 else Plan("tiled", 64, 64, 8)
    if not is_hopper(q.device):
        return Plan("short", 16, tile, tile // 16, whole=True)
    rows = {64: 64 if d <= 96 else 32, 128: 64 if d <= 64 else 32, 256: 64 if d <= 32 else 16}[tile]
    # Split, these spill; and one kernel of padded products moves half the bytes of two kernels of split ones.
    whole = (tile == 128 and 64 < d <= 96) or (tile == 256 and 32 < d <= 48)
    return Plan("short", rows, tile, 4 if tile == 64 and (d <= 32 or 48 < d <= 64) else 8, whole=whole)


def split(d: int) -> tuple[int, int]:
    """D as the sum of two powers of 2, the second 0 where one with padding is no more."""
    whole = max(16, triton.next_power_of_2(d))
    first = whole // 2
    second = max(16, triton.next_power_of_2(d - first))
    return (whole, 0) if first + second >= whole else (first, second)


def constants(q: Tensor, p: Plan) -> dict[str, Any]:
    """Of a launch on heads like q's. Products of fp32 are exact but where the user has allowed PyTorch's own to be in TF32."""
    d = q.shape[3]
    d1, d2 = (max(16, triton.next_power_of_2(d)), 0) if p.whole else split(d)
    if q.dtype == torch.float32:
        unrepeatable()  # the setting may change
    exact = q.dtype != torch.float32 or torch.backends.cuda.matmul.fp32_precision != "tf32"
    return {
        "D": d, "D1": d1, "D2": d2, "ROWS": p.rows, "KEYS": p.keys,
        "COMPUTE": TRITON_DTYPE[compute_dtype(q.dtype)],
        "UPCAST": interpreted() and q.dtype == torch.bfloat16,
        "PRECISION": "ieee" if exact else "tf32",
        "num_warps": p.warps, "num_stages": p.stages,
    }  # fmt: skip
