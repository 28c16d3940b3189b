"""The kernel of philox.py."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.blocks_triton import tile
from fastgen_kernels.noise_triton import load_key, normals
from fastgen_kernels.recording import launch


@triton.jit
def uniform(word):
    """In (0, 1), exact."""
    return ((word >> 9).to(tl.int32).to(tl.float32) + 0.5) * 1.1920928955078125e-07


@triton.jit
def philox_kernel(out_ptr, key_ptr, N, E, Q, NORMAL: tl.constexpr, SAMPLES: tl.constexpr, BLOCKS: tl.constexpr):
    """out[n, w Q + j] is word w of block j under key n, as a normal or a uniform number."""
    tiles = tl.cdiv(Q, BLOCKS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCKS  # of this program's blocks, and of their first words' elements
    j = tl.arange(0, BLOCKS)[None, :]
    seed, stream, step, index = load_key(key_ptr, n, n < N)
    a, b, c, d = tl.philox(seed, (first + j).to(tl.int32), index, stream, step)
    if NORMAL:
        a, b = normals(a, b)
        c, d = normals(c, d)
    else:
        a, b, c, d = uniform(a), uniform(b), uniform(c), uniform(d)
    row, inside = out_ptr + n * E, (n < N) & (j < Q - first)
    tl.store(row + first + j, a, inside)
    first += Q
    tl.store(row + first + j, b, inside & (j < E - first))
    first += Q
    tl.store(row + first + j, c, inside & (j < E - first))
    first += Q
    tl.store(row + first + j, d, inside & (j < E - first))


def philox(shape: Sequence[int], key: Tensor, dtype: torch.dtype, normal: bool) -> Tensor:
    """The op philox: normal or uniform numbers of a shape (N, *rest) under a key (N, 4), in any float dtype, contiguous."""
    out = torch.empty(shape, dtype=dtype, device=key.device)
    if out.numel() == 0:
        return out
    n, e = shape[0], out.numel() // shape[0]
    q = triton.cdiv(e, 4)
    samples, blocks = tile(q)
    with torch.cuda.device_of(key):
        launch(philox_kernel, (triton.cdiv(n, samples) * triton.cdiv(q, blocks),),
            out, key.contiguous(), n, e, q, NORMAL=normal, SAMPLES=samples, BLOCKS=blocks
        )
    return out
