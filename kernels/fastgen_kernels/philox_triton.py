"""Kernels of philox.py. `key`, `words` and `normals` are used by every kernel that draws its own noise."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def load_key(key_ptr, sample, mask):
    """seed, stream, step and global index of the samples, int64."""
    row = key_ptr + sample * 4
    seed = tl.load(row, mask)
    stream = tl.load(row + 1, mask).to(tl.uint32)
    step = tl.load(row + 2, mask).to(tl.uint32)
    index = tl.load(row + 3, mask).to(tl.uint32)
    return seed, stream, step, index


@triton.jit
def normals(a, b):
    """Box-Muller on two words: r cos(theta), r sin(theta), to a few units in the last place of r.

    tl.log, tl.cos and tl.sin are not used: the first loses its digits near 1, the others keep a slow path in local memory.
    """
    # u = (a + 1/2) 2^-32 = 2^e (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)); ln u = e ln 2 + ln(1 + x).
    u = (a.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (bits >> 23).to(tl.float32)
    x = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = 0.0704726507796883
    p = p * x - 0.11529696523027538
    p = p * x + 0.11680500110760882
    p = p * x - 0.12418410597795093
    p = p * x + 0.14248825848587401
    p = p * x - 0.16668111702512783
    p = p * x + 0.2000072937360767
    p = p * x - 0.24999993580871177
    p = p * x + 0.3333333111568673
    ln = e * 0.6931471805599453 + (x - x * x * (0.5 - x * p))
    r = tl.sqrt(-2.0 * ln)

    # theta = (q + y) pi/2 with q the nearest integer.
    turn = b.to(tl.int32, bitcast=True).to(tl.float32) * 9.313225746154785e-10
    q = tl.floor(turn + 0.5)
    cos, sin = cos_sin(q.to(tl.int32), turn - q)
    return r * cos, r * sin


@triton.jit
def cos_sin(q, y):
    """Of (q + y) pi/2, for integers q and |y| <= 1/2."""
    t = y * y
    s = y * (1.5707963217001215 + t * (-0.6459634594640162 + t * (0.07968002266873261 - t * 0.004601625899316398)))
    c = 1.0 + t * (-1.2337005493549 + t * (0.25366940894579837 + t * (-0.020861513027152206 + t * 0.0009066983153809484)))
    odd = (q & 1) != 0
    cos, sin = tl.where(odd, s, c), tl.where(odd, c, s)
    return tl.where(((q + 1) & 2) != 0, -cos, cos), tl.where((q & 2) != 0, -sin, sin)


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


def tile(blocks: int) -> tuple[int, int]:
    """Samples and Philox blocks of a program: small samples go several to a program."""
    return (64, 4) if blocks <= 4 else (4, 64) if blocks <= 64 else (1, 1024)


def philox(shape: Sequence[int], key: Tensor, dtype: torch.dtype, normal: bool) -> Tensor:
    out = torch.empty(shape, dtype=dtype, device=key.device)
    if out.numel() == 0:
        return out
    n, e = shape[0], out.numel() // shape[0]
    q = triton.cdiv(e, 4)
    samples, blocks = tile(q)
    with torch.cuda.device_of(key):
        philox_kernel[(triton.cdiv(n, samples) * triton.cdiv(q, blocks),)](
            out, key.contiguous(), n, e, q, NORMAL=normal, SAMPLES=samples, BLOCKS=blocks
        )
    return out
