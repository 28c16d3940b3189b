"""Which kernels of group_norm run, and how they cut x into tiles.

A slab is whole groups of one sample; a tile is `height` positions of `width` channels.

held      A slab fits into the registers of one program: x is read once.
streamed  A program goes over its slab twice. The slabs at work lie in the L2 cache, where the second pass finds them.
split     Slabs are too few to fill the GPU, or groups too wide for a tile: many programs share one, and a small launch between
          the passes merges what they found.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import lcm, log2
from typing import Any, Literal

import torch
from torch import Tensor

from fastgen_kernels.dispatch import capability, processors

Algorithm = Literal["held", "streamed", "split"]

WIDEST = 128  # channels of a tile, unless a group that is held has more
LINE = 64  # channels of 2 bytes in a line of the cache
SECTOR = 16  # in the least that is worth loading
PERSISTENT = 32  # programs of a warp that a processor runs at once; where there are more slabs, each program takes several


@dataclass(frozen=True)
class Plan:
    """The kernels of a launch and how they cut x into tiles."""
    algorithm: Algorithm
    channels: int  # of a slab; when split, of what a program takes
    width: int  # of a tile: channels, a power of 2
    height: int  # of a tile: positions, a power of 2
    programs: int
    parts: int  # programs that share a slab
    span: int  # positions of a part
    warps: int


def plans(x: Tensor, groups: int, held: int, tile: int) -> tuple[Plan, ...]:
    """For x (N, C, S), first what should be the fastest. held: elements of a slab that registers hold, without spills; half as
    many where positions are innermost, and from compute capability 10.0 on. tile: elements of a tile of a slab that they do not
    hold, for 8 warps; where positions are innermost a quarter from 10.0 on, for 4 warps."""
    n, c, s = x.shape
    innermost, sooner = x.stride(1) == 1, spills_sooner(x.device)
    held //= (2 if sooner else 1) * (1 if innermost else 2)
    tile, full = (tile // 4, 4) if sooner and not innermost else (tile, 8)
    return _remembered(n, c, s, groups, innermost=innermost, held=held, tile=tile, full=full, processors=processors(x.device))


@lru_cache(maxsize=1024)
def _remembered(*sizes: int, **options: Any) -> tuple[Plan, ...]:
    """The candidates, which a model asks for at each of its norms in each step."""
    return tuple(candidates(*sizes, **options))


def spills_sooner(device: torch.device) -> bool:
    """Whether programs have room for less than on an H200, which tensors without memory are planned for."""
    return device.type != "meta" and capability(device) >= (10, 0)


def candidates(
    n: int, c: int, s: int, groups: int, *, innermost: bool, held: int, tile: int, full: int = 8, processors: int
) -> list[Plan]:
    """The plans that fit; see `plans`. full: the warps of a tile."""
    group, positions = c // groups, power_of_2(s)
    piece = lcm(group, 8)
    unit = piece if innermost and c % 8 == 0 and piece <= WIDEST else group  # whole groups, in accesses of 16 bytes

    def fitting(widest: int, programs: int) -> int:
        """The width that wastes the fewest lanes and comes nearest to `programs`; of equals that nearest to a line of the cache
        or to a tile. 0 for none."""
        least, best = (max(unit, min(SECTOR, power_of_2(c))), LINE) if innermost else (unit, max(1, tile // positions))

        def merit(width: int) -> tuple[float, float]:
            """By which widths are compared: the share of lanes and processors at work, then nearness to `best`."""
            slabs = cdiv(c, width // unit * unit)
            useful = c / (slabs * width) * min(1.0, n * slabs / programs)
            return round(4 * log2(useful)), -abs(log2(width / best))  # to a fifth

        return max((2**k for k in range(widest.bit_length()) if least <= 2**k <= widest), key=merit, default=0)

    found = []
    if width := fitting(min(held // positions, max(WIDEST, power_of_2(group))), processors):
        channels = min(width // unit * unit, c)
        programs = min(n * cdiv(c, channels), PERSISTENT * processors)
        found.append(Plan("held", channels, width, positions, programs, 1, s, warps(positions * width / 512)))
    if width := fitting(WIDEST if innermost else min(WIDEST, power_of_2(group)), 2 * processors):
        channels, height = min(width // unit * unit, c), min(positions, tile // width)
        if n * cdiv(c, channels) >= processors or s <= 4 * height:
            programs = min(n * cdiv(c, channels), PERSISTENT * processors)
            found.append(Plan("streamed", channels, width, height, programs, 1, s, warps(full * height * width / tile)))
    width = min(LINE if innermost else 4, power_of_2(c))
    height = min(positions, tile // width)
    tiles = n * cdiv(c, width)
    shortest = 2 * height  # of a part: sums of fewer would be much beside what they are sums of
    span = cdiv(s, shortest * max(1, 4 * processors // tiles)) * shortest
    parts = cdiv(s, span)
    return [*found, Plan("split", width, width, height, tiles * parts, parts, span, warps(full * height * width / tile))]


def warps(wanted: float) -> int:
    """2 at least, as addresses of unaligned elements take many registers, and 16 at most, which leaves 128 for a lane."""
    return min(16, max(2, int(wanted)))


def power_of_2(x: int) -> int:
    """The least that is at least x."""
    return 1 << max(0, x - 1).bit_length()


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)
