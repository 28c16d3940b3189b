"""The memory traffic of every op at every named shape, beside its floor and that of PyTorch eager: no GPU is needed.

    python kernels/proof traffic [--op NAME] [--json FILE]

Kernels run in Triton's interpreter, small shapes whole. Of larger ones PROGRAMS programs of a launch, drawn at random, are
counted and scaled to all of them. Eager is counted on tensors without data, at full size. What is counted is said in
proof.counters.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch

from proof.cases import CASES, Case, Outputs, small
from proof.counters import Traffic, of_kernels, of_operations, sampled
from proof.interpreter import quicken, recorded
from proof.record import write_json

PROGRAMS = 16


@dataclass(frozen=True)
class Row:
    op: str
    shape: str
    direction: str
    floor: int  # bytes
    sampled: bool  # whether not all programs were counted
    ours: Traffic
    eager: Traffic  # of whole tensors: its sectors are no more than its bytes
    in_l2: float | None  # of what is read again the share that should hit, see proof.cache; None where nothing is

    @property
    def ratio(self) -> float:
        return self.ours.bytes / self.floor

    @property
    def sector_ratio(self) -> float:
        return self.ours.sector_bytes / self.floor

    @property
    def gain(self) -> float:
        return self.eager.bytes / self.ours.bytes


def rows(case: Case, programs: int | None = None) -> Iterator[Row]:
    """Forward and, where there is one, backward. No more than so many programs of a launch run; all where it is None."""
    ours, eager = _both_ways(case, case.ours, "cpu", programs), _both_ways(case, case.eager, "meta", None)
    directions = zip(("forward", "backward"), (case.forward, case.backward), case.second_reads(), strict=True)
    for (direction, floor, in_l2), a, b in zip(directions, ours, eager, strict=False):
        yield Row(case.op, case.shape, direction, floor, programs is not None, a, b, in_l2)


def _both_ways(case: Case, function: Callable[..., Outputs], device: str, programs: int | None) -> Iterator[Traffic]:
    inputs = case.inputs(torch.device(device))
    outputs, traffic = counted(lambda: function(*inputs), programs)
    yield traffic
    if case.backward is not None:
        upstream = [torch.randn_like(y) for y in outputs]
        leaves = [x for x in inputs if x.requires_grad]
        yield counted(lambda: torch.autograd.grad(outputs, leaves, upstream), programs)[1]


def counted(call: Callable[[], Outputs], programs: int | None = None) -> tuple[Outputs, Traffic]:
    """What a call returns, and the traffic of the kernels and of PyTorch's operations inside it."""
    with sampled(programs) if programs else nullcontext() as scale, recorded() as log, of_operations() as operations:
        outputs = call()
    return outputs, of_kernels(log, scale) + operations.traffic


def table(rows: list[Row]) -> Iterator[str]:
    yield f"{'':76} {'floor':>9} {'bytes':>9} {'ratio':>6} {'sectors':>7} launches  eager: {'bytes':>9} {'ratio':>6} launches"
    for row in rows:
        name = f"{row.op} {row.direction}, {row.shape}{' (sampled)' if row.sampled else ''}"
        ours = f"{_size(row.floor)} {_size(row.ours.bytes)} {row.ratio:6.3f} {row.sector_ratio:7.3f} {row.ours.launches:8}"
        again = "" if row.in_l2 is None else f"  second reads in L2: {row.in_l2:.0%}"
        yield f"{name:76} {ours}         {_size(row.eager.bytes)} {row.gain:6.2f} {row.eager.launches:8}{again}"
    yield "ratio, sectors: of the bytes, and of the sectors' bytes, over the floor. eager's ratio: its bytes over ours."
    yield "second reads in L2: what should hit in an H200's 50 MB, calculated by kernels/proof/cache.py, not measured."
    yield f"sampled: {PROGRAMS} programs of a launch were counted and scaled to all."


def _size(n: int) -> str:
    return f"{n / 2**20:6.2f} MB" if n >= 2**20 else f"{n / 2**10:6.2f} kB"


def _plain(row: Row) -> dict:
    return dataclasses.asdict(row) | {"ratio": row.ratio, "sector_ratio": row.sector_ratio, "gain": row.gain}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python kernels/proof traffic", description=__doc__.partition("\n")[0])
    parser.add_argument("--op", choices=sorted({case.op for case in CASES}), help="only this one")
    parser.add_argument("--json", type=Path, help="write the counts into this file")
    options = parser.parse_args()
    chosen = [case for case in CASES if options.op in (None, case.op)]
    found = [row for case in chosen for row in rows(case, None if case in small(case.op) else PROGRAMS)]
    print(*table(found), sep="\n")
    if options.json:
        write_json(options.json, {"torch": torch.__version__, "programs": PROGRAMS, "rows": [_plain(row) for row in found]})


if __name__ == "__main__":
    quicken()
    main()
