"""Where attention takes its kernels, as a campaign measured it:

    python -m benchmarks.report.attention_table DEVICE.json [--out FILE]

writes the classes of the record into the table that fastgen_kernels.attention reads, as the campaign does at its end.

A class goes to the kernels where they take no longer than what would run in their place: scaled_dot_product_attention with the
backend that PyTorch picks, taking heads apart and putting them together included. They must not take longer in forward alone,
which is what sampling runs, nor in forward and backward together. Times are of CUDA graphs.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report.report import Line, lines
from fastgen_kernels.attention.table import TABLE, Row, merged, read, write
from proof.record import read_json

_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)x(\d+) (\w+)")  # N, H, S, D and the dtype


def measured(record: dict[str, Any]) -> list[Row]:
    """Of each class that the record has both ways; where it has several cases of one, of that with the most heads."""
    device, found = record["device"], defaultdict(dict)
    for line in sorted(filter(_of_kernels, lines(record)), key=lambda line: _shape(line)[0]):
        _, keys, columns, bits = _shape(line)
        found[bits, columns, keys][line.direction] = line.seconds, line.seconds * line.peers["eager"]
    versions = ", ".join(f"{name} {record['versions'][name]}" for name in ("torch", "triton"))
    source = f"{device['name']}, {versions}, {record['date'][:10]}"
    rows = []
    for (bits, columns, keys), times in found.items():
        if {"forward", "backward"} <= times.keys():
            forward, training = (theirs / ours for ours, theirs in (times["forward"], _sum(*times.values())))
            faster = "kernels" if min(forward, training) >= 1 else "SDPA"
            ratios = round(forward, 2), round(training, 2)
            rows.append(Row(device["capability"], bits, columns, keys, faster, *ratios, source))
    return rows


def _of_kernels(line: Line) -> bool:
    return (line.op, line.clock, line.path) == ("attention_qkv", "graph", "kernel") and "eager" in line.peers


def _shape(line: Line) -> tuple[int, int, int, int]:
    """Heads in all, keys, columns, and bits of a number."""
    *sizes, dtype = _SHAPE.search(line.shape).groups()
    n, h, keys, columns = map(int, sizes)
    return n * h, keys, columns, 8 * getattr(torch, dtype).itemsize


def _sum(*times: tuple[float, float]) -> tuple[float, float]:
    ours, theirs = zip(*times, strict=True)
    return sum(ours), sum(theirs)


def write_measured(record: dict[str, Any], path: Path = TABLE) -> list[str]:
    """Puts what was measured into the table as it is, writes that to path, and says what it did; nothing where no class was
    measured."""
    if not (rows := measured(record)):
        return []
    write(merged(read(), rows), path)
    return [f"wrote {path}: {len(rows)} classes measured, kernels faster in {sum(row.faster == 'kernels' for row in rows)}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 where the record has no class of attention that was measured on a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report.attention_table", description=__doc__.partition("\n")[0])
    parser.add_argument("record", type=Path, help="DEVICE.json of a campaign")
    parser.add_argument("--out", type=Path, default=TABLE, metavar="FILE", help="written in the place of the library's own table")
    options = parser.parse_args(arguments)
    if not options.record.is_file():
        parser.error(f"record: {options.record} is not a file")
    wrote = write_measured(read_json(options.record, None), options.out)
    print(*(wrote or ["no class was measured on a GPU, by CUDA graphs and both ways: nothing was written"]), sep="\n")
    return 0 if wrote else 1


if __name__ == "__main__":
    raise SystemExit(main())
