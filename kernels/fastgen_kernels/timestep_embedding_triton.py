"""The kernel of timestep_embedding.py. Frequencies and angles, of which there are few, are in fp64: an angle of 1000 in fp32 has
lost four digits of its sine."""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import cos_sin
from fastgen_kernels.recording import launch


@triton.jit
def embedding_kernel(
    out_ptr, t_ptr, t_stride, N, D, HALF,
    ODD: tl.constexpr, OCTAVES: tl.constexpr, SPEED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """SPEED: quarter turns of the fastest wave for t = 1. OCTAVES: between it and the slowest."""
    n = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    i = tl.arange(0, COLUMNS)[None, :]
    t = tl.load(t_ptr + n * t_stride, n < N).to(tl.float64)
    quarters = t * SPEED * tl.exp2(-OCTAVES * (i.to(tl.float64) / HALF))
    q = tl.floor(quarters + 0.5)
    cos, sin = cos_sin(q.to(tl.int32), (quarters - q).to(tl.float32))
    row = out_ptr + n * D
    tl.store(row + i, cos, (n < N) & (i < HALF))
    tl.store(row + HALF + i, sin, (n < N) & (i < HALF))
    if ODD:
        tl.store(row + 2 * HALF, 0.0, n < N)


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """The op timestep_embedding: (N, dim) fp32 of t (N,)."""
    out = torch.empty((len(t), dim), dtype=torch.float32, device=t.device)
    if len(t) == 0:
        return out
    columns = triton.next_power_of_2(dim // 2)
    rows = max(1, 512 // columns)
    with torch.cuda.device_of(t):
        launch(embedding_kernel, (triton.cdiv(len(t), rows),),
            out, t, t.stride(0), len(t), dim, dim // 2,
            ODD=dim % 2 == 1, OCTAVES=math.log2(10_000), SPEED=2000 / math.pi, ROWS=rows, COLUMNS=columns,
        )  # fmt: skip
    return out
