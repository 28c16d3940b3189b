"""The table of where attention takes its kernels and where SDPA: faster.csv, beside this file.

A row is a class of calls: of one architecture and width of numbers, with at most so many columns and keys, and more than the
next smaller class. `python -m benchmarks.campaign` writes the classes that it measures, with what it found; what no campaign has
reached is an estimate, and its row says so.
"""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

TABLE = Path(__file__).with_name("faster.csv")
ESTIMATE = "estimate"


@dataclass(frozen=True)
class Row:
    """A class of calls: the largest D and number of keys that it holds, and what is faster there."""
    capability: str  # compute capability, as 9.0
    bits: int  # of an element: 16 is bfloat16 and float16, which have the same tiles
    columns: int  # D
    keys: int
    faster: str  # "kernels" or "SDPA"
    forward: float | None = None  # SDPA's time over that of the kernels, forward
    training: float | None = None  # and of forward and backward together
    source: str = ESTIMATE  # or the device, the versions and the day of the measurement

    @property
    def at(self) -> tuple[str, int, int, int]:
        """The class, by which rows are sorted and replaced."""
        return self.capability, self.bits, self.columns, self.keys


def read(path: Path = TABLE) -> list[Row]:
    """Raises ValueError for a row that cannot be read."""
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, str]) -> Row:
    try:
        bits, columns, keys = (int(line[name]) for name in ("bits", "columns", "keys"))
        forward, training = (float(line[name]) if line[name] else None for name in ("forward", "training"))
        row = Row(line["capability"], bits, columns, keys, line["faster"], forward, training, line["source"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{TABLE.name}: expected {', '.join(x.name for x in fields(Row))}, got {line}") from error
    if row.faster not in ("kernels", "SDPA"):
        raise ValueError(f"{TABLE.name}: faster: expected kernels or SDPA, got {row.faster!r}")
    return row


def write(rows: Iterable[Row], path: Path) -> None:
    """Write rows into a CSV file, from the smallest class to the largest; its folder is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [x.name for x in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in sorted(rows, key=lambda row: row.at))


def merged(rows: Iterable[Row], measured: Iterable[Row]) -> list[Row]:
    """The rows, those that were measured in the place of what was there of their class."""
    return list(({row.at: row for row in rows} | {row.at: row for row in measured}).values())
