"""How elementwise kernels cover tensors (N, C, *S), so that each program holds whole Philox blocks: word w of block j is element
w Q + j of a sample of E elements, Q = ceil(E/4).

A tensor is addressed as (N, C, S) by its strides (n, c, s). A program has SAMPLES samples and takes BLOCKS blocks of each at a
time. FLAT: all tensors lie in logical order. QUARTERS: the channels are innermost and a multiple of 4; the blocks are then taken
in the order of memory, and word w of each lies in quarter w of the channels.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.layout import channels_last
from fastgen_kernels.noise_triton import normals


@triton.jit
def offsets(w: tl.constexpr, first, j, C, S, Q, strides, FLAT: tl.constexpr, QUARTERS: tl.constexpr):
    """Where, within their sample, the elements of word w of blocks first + j lie."""
    if FLAT:
        return first + w * Q + j
    if QUARTERS:
        lane = (first + j).to(tl.int32)
        c, s = w * (C // 4) + lane % (C // 4), lane // (C // 4)
    else:
        c, s = (first + w * Q + j) // S, (first + w * Q + j) % S
    return c.to(tl.int64) * strides[1] + s.to(tl.int64) * strides[2]


@triton.jit
def noise(key, first, j, C, S, QUARTERS: tl.constexpr):
    """The four normals of each block, for a key as noise_triton.load_key gives it."""
    block = (first + j).to(tl.int32)
    if QUARTERS:
        block = block % (C // 4) * S + block // (C // 4)
    a, b, c, d = tl.philox(key[0], block, key[3], key[1], key[2])
    a, b = normals(a, b)
    c, d = normals(c, d)
    return a, b, c, d


def cover(out: Tensor, *inputs: Tensor, strided: int | None = None) -> tuple[dict[str, int], dict[str, Any], int]:
    """Sizes and constants of a launch over `out` and `inputs`, all (N, C, S), and the number of tiles that cover a sample.
    strided: the most blocks of a program where each element has an address of its own."""
    n, c, s = out.shape
    q = triton.cdiv(c * s, 4)
    flat = all(x[0].is_contiguous() for x in (out, *inputs))
    quarters = not flat and channels_last(out) and c % 4 == 0
    samples, blocks = tile(q)
    if strided is not None and not (flat or quarters):
        blocks = min(blocks, strided)
    sizes = {"N": n, "C": c, "S": s, "E": c * s, "Q": q}
    constants = {"FLAT": flat, "QUARTERS": quarters, "SAMPLES": samples, "BLOCKS": blocks}
    return sizes, constants, triton.cdiv(q, blocks)


def tile(blocks: int) -> tuple[int, int]:
    """Samples and Philox blocks of a program: small samples go several to a program."""
    return (64, 4) if blocks <= 4 else (4, 64) if blocks <= 64 else (1, 1024)


def splits(n: int, tiles: int) -> int:
    """How many programs share the sum of a sample. More than one cost a second launch, which pays where a few large samples would
    leave most of the GPU idle."""
    return 1 if tiles <= 16 else min(triton.cdiv(512, n), triton.cdiv(tiles, 8))
