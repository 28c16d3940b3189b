"""How kernels cover tensors whose elements may be taken in any order: in that of memory, so many side by side to a program.

Where an op draws noise, the order is that of the noise: see blocks_triton.py.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE
from fastgen_kernels.blocks_triton import tile


@triton.jit
def elements(N, E, SAMPLES: tl.constexpr, ELEMENTS: tl.constexpr):
    """A program's samples, and where its elements of them lie in tensors that are dense and alike; see `elementwise_launch`."""
    tiles = tl.cdiv(E, ELEMENTS)
    n = ((tl.program_id(0) // tiles).to(tl.int64) * SAMPLES + tl.arange(0, SAMPLES))[:, None]
    i = (tl.program_id(0) % tiles).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)[None, :]
    return n, n * E + i, (n < N) & (i < E)


@triton.jit
def offset_of(e, S, strides, FLAT: tl.constexpr):
    """Where, within their sample, the elements e lie: one after another where they are FLAT."""
    if FLAT:
        return e
    return e // S * strides[1] + e % S * strides[2]


def element_tile(elements: int) -> tuple[int, int]:
    """Samples and elements of a program, for samples of so many elements: small samples go several to a program."""
    samples, blocks = tile(triton.cdiv(elements, 4))
    return samples, 4 * blocks


def elementwise_launch(x: Tensor, compute: torch.dtype) -> tuple[tuple[int], dict[str, Any]]:
    """The grid over the elements of x (N, ...), at least one, and the sizes and constants that `elements` takes, with COMPUTE."""
    n, e = len(x), x[0].numel()
    samples, block = element_tile(e)
    sizes = {"N": n, "E": e, "COMPUTE": TRITON_DTYPE[compute], "SAMPLES": samples, "ELEMENTS": block}
    return (triton.cdiv(n, samples) * triton.cdiv(e, block),), sizes
