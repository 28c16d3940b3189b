"""What `optimize` changed in a model, what it left, and why."""

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter


@dataclass(frozen=True)
class Changed:
    """What was done to a submodule."""

    text: str


@dataclass(frozen=True)
class Left:
    """Why nothing was done to it."""

    text: str


Outcome = Changed | Left


@dataclass(frozen=True)
class Entry:
    """A submodule: its name in the model, "" for the model itself, its class, and what was done to it or why nothing was."""

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Report:
    """What `optimize` did: the submodules that it changed and those that it left, and the number of weights that it brought into
    channels_last. Printed, it is a table."""

    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]
    channels_last: int

    def __str__(self) -> str:
        weights = f"{self.channels_last} weights made channels_last"
        return "\n".join([*_table("changed", self.changed), *_table("left", self.left), weights])


def _table(title: str, entries: tuple[Entry, ...]) -> list[str]:
    """A row for each class and text, with how many submodules there are and the first one's name."""
    alike = attrgetter("kind", "text")
    rows = []
    for (kind, text), group in groupby(sorted(entries, key=alike), alike):
        names = [entry.name or "the model" for entry in group]
        rows.append((str(len(names)), kind, text, names[0] + (", …" if names[1:] else "")))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [f"{title}: {len(entries) or 'nothing'}", *(f"  {line}" for line in lines)]
