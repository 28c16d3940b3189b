"""What bounds an op, measured in the same run: a copy of the same bytes, a launch, the integers of the noise.

copy:    a kernel that does nothing but read and write as many bytes, in as near the same mix of reads and writes.
launch:  an empty kernel.
RNG:     the Philox integers of as many normals, nothing read and nothing written.
"""

from collections.abc import Callable
from fractions import Fraction
from functools import partial

import torch
import triton
import triton.language as tl

from benchmarks.harness.clocks import Call, cold
from benchmarks.harness.timing import interleaved, rows

_CONFIGURATIONS = [(block, warps) for block in (1024, 4096) for warps in (4, 8)]


@triton.jit
def copy_kernel(in_ptr, out_ptr, n, READS: tl.constexpr, WRITES: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of READS arrays of n numbers goes to WRITES arrays."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    size = n.to(tl.int64)
    total = tl.arange(0, BLOCK).to(tl.float32)  # no zeros: they can be faster to write than data
    for r in tl.static_range(READS):
        total += tl.load(in_ptr + r * size + i, i < n, 0.0)
    for w in tl.static_range(WRITES):
        tl.store(out_ptr + w * size + i, total, i < n)
    if WRITES == 0:  # the condition is never true of numbers in [0, 1): nothing is written, but the loads stay
        tl.store(out_ptr + i, total, (i < n) & (total < 0))


@triton.jit
def empty_kernel():
    pass


@triton.jit
def philox_words_kernel(out_ptr, seed_ptr, n, BLOCK: tl.constexpr):
    """n blocks of four words, of which only an improbable one is written, so that they are computed but cost no memory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a, b, c, d = tl.philox(tl.load(seed_ptr), i, 0, 0, 0)
    tl.store(out_ptr + i, a, (i < n) & ((a ^ b ^ c ^ d) == 0))


def mix(read: int, written: int) -> tuple[int, int]:
    """How many arrays are read and how many written, all of one size: at most 8 in all."""
    share = Fraction(read, read + written).limit_denominator(8)
    return share.numerator, share.denominator - share.numerator


def copy(read: int, written: int, device: torch.device, block: int, warps: int) -> Call:
    """A call that moves as many bytes in all, in the nearest mix, on memory of its own."""
    reads, writes = mix(read, written)
    n = 16 * triton.cdiv(read + written, 16 * 4 * (reads + writes))
    source, target = torch.rand(reads * n, device=device), torch.empty(max(1, writes) * n, device=device)

    def call() -> None:
        copy_kernel[(triton.cdiv(n, block),)](source, target, n, READS=reads, WRITES=writes, BLOCK=block, num_warps=warps)

    return call


def launch() -> None:
    """An empty kernel: what a launch takes."""
    empty_kernel[(1,)]()


def philox_words(normals: int, device: torch.device, block: int, warps: int) -> Call:
    """A call that makes the integers of so many normals, without the normals."""
    blocks = triton.cdiv(normals, 4)
    seed, target = torch.ones(1, dtype=torch.int64, device=device), torch.empty(blocks, dtype=torch.int32, device=device)

    def call() -> None:
        philox_words_kernel[(triton.cdiv(blocks, block),)](target, seed, blocks, BLOCK=block, num_warps=warps)

    return call


def roofs(read: int, written: int, normals: int, device: torch.device, sets: int) -> dict[str, list[Call]]:
    """The calls of each roof, as many as there are sets of tensors; copy and RNG in the configuration that is fastest here."""
    copies = _fastest(partial(copy, read, written, device))
    found = {"copy roof": [copies() for _ in range(sets)], "launch roof": [launch] * sets}
    if normals:
        found["RNG roof"] = [_fastest(partial(philox_words, normals, device))()] * sets
    return found


def _fastest(make: Callable[[int, int], Call]) -> Callable[[], Call]:
    candidates = {configuration: make(*configuration) for configuration in _CONFIGURATIONS}
    stopwatches = {str(configuration): cold([call]) for configuration, call in candidates.items()}
    medians = {row.name: row.median for row in rows(interleaved(stopwatches, rounds=5), {})}
    best = min(candidates, key=lambda configuration: medians[str(configuration)])
    return partial(make, *best)
