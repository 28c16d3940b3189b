"""Tables of several kinds of columns: numbers, categories, dates and missing values as fp32 rows, and back.

Numbers and dates become normal scores, so that skewed and discrete columns are as easy for a model as normal ones, and samples
stay in the range of the data. Categories become vectors of +1 and -1: one-hot, or the bits of their number where there are many
(analog bits, Chen, Zhang & Hinton 2022, arXiv:2208.04202). A column of numbers with missing values has one more feature, which
says whether the value is missing; among categories, missing is one of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from fastgen.errors import expect
from fastgen_kernels.messages import shown

Kind = Literal["number", "category", "date"]
Category = str | int | float | bool | None
ONE_HOT = 32  # categories; more are bits
STEPS = 128  # different numbers that are kept as they are; of more, QUANTILES are kept and read with interpolation
QUANTILES = 257
DECIMALS = 6  # numbers that have no more come back with as many
EXACT = 2**53  # beyond, fp64 does not have every whole number


@dataclass(frozen=True)
class Cells:
    """A column as it is read or written. values (N,): fp64 with NaN where they are missing, of dates the count of their `unit`
    since 1970; of categories objects, None where they are missing. dtype: what pandas calls their type, "" for its choice. text:
    how a text file has them: a date's format, a decimal comma; "ordered" of ordered categories. categories: in their order, where
    that is known."""

    name: str | int
    kind: Kind
    values: np.ndarray
    dtype: str = ""
    text: str = ""
    unit: str = ""
    categories: tuple[Category, ...] | None = None


@dataclass(frozen=True)
class Column:
    """What a run knows of a column of its table; see `Cells`. missing: whether values are. categories: in their order, None last
    where values are missing. levels, numbers: the distribution function of the numbers as a line through points, levels from 0 to
    1, steps where the numbers are few. decimals: of the numbers, at most; None where they are many."""

    name: str | int
    kind: Kind
    dtype: str = ""
    text: str = ""
    unit: str = ""
    missing: bool = False
    categories: tuple[Category, ...] = ()
    levels: tuple[float, ...] = ()
    numbers: tuple[float, ...] = ()
    decimals: int | None = None
    rows: int = 1

    @cached_property
    def codes(self) -> np.ndarray:
        """The vectors of the categories, +1 and -1, fp32 (K, W)."""
        count = len(self.categories)
        if 2 < count <= ONE_HOT:
            return 2 * np.eye(count, dtype=np.float32) - 1
        bits = max(1, (count - 1).bit_length())
        return ((np.arange(count)[:, None] >> np.arange(bits)) % 2 * 2 - 1).astype(np.float32)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of its features: "age", "age is missing", "city = Paris", "word bit 0"."""
        if self.kind != "category":
            return (str(self.name), f"{self.name} is missing") if self.missing else (str(self.name),)
        count, width = self.codes.shape
        if count == width:
            return tuple(f"{self.name} = {'missing' if value is None else value}" for value in self.categories)
        return tuple(f"{self.name} bit {i}" for i in range(width))

    def encode(self, cells: Cells) -> np.ndarray:
        """Its features, fp32 (N, W). Raises ValueError for a category that is not known, and for a missing value where none was
        missing."""
        if self.kind == "category":
            return self.codes[self.codes_of(cells)]
        absent = np.isnan(cells.values)
        if absent.any() and not self.missing:
            raise ValueError(f"column {shown(self.name)}: expected no missing values, got one in row {int(absent.argmax())}")
        scores = np.where(absent, 0, self._scores(np.where(absent, self.numbers[0], cells.values)))
        columns = [scores, 2.0 * absent - 1] if self.missing else [scores]
        return np.stack(columns, axis=1).astype(np.float32)

    def codes_of(self, cells: Cells) -> np.ndarray:
        """The numbers of the categories, int64 (N,). Raises ValueError for one that is not known."""
        numbers = {_key(value): i for i, value in enumerate(self.categories)}
        found = np.array([numbers.get(_key(value), -1) for value in cells.values], dtype=np.int64)
        if (found < 0).any():
            row = int((found < 0).argmax())
            known = ", ".join(map(str, self.categories[:10])) + (" …" if len(self.categories) > 10 else "")
            got = "a missing value" if cells.values[row] is None else shown(cells.values[row])
            raise ValueError(f"column {shown(self.name)}: expected one of {shown(known)[1:-1]}, got {got} in row {row}")
        return found

    def decode(self, features: np.ndarray) -> Cells:
        """The inverse of `encode`, for features that come near such: the nearest category, numbers in the range of the data and
        rounded to its decimals."""
        if self.kind == "category":
            return self.cells((features @ self.codes.T).argmax(1))
        levels = torch.special.ndtr(torch.from_numpy(features[:, 0].astype(np.float64))).numpy()
        values = np.interp(levels, self.levels, self.numbers)
        values = values if self.decimals is None else np.round(values, self.decimals) + 0.0  # no -0
        if self.missing:
            values = np.where(features[:, 1] > 0, np.nan, values)
        return Cells(self.name, self.kind, values, self.dtype, self.text, self.unit)

    def cells(self, codes: np.ndarray) -> Cells:
        """The categories of these numbers, int64 (N,)."""
        values = np.empty(len(codes), dtype=object)
        values[:] = [self.categories[i] for i in codes]
        known = tuple(value for value in self.categories if value is not None)
        return Cells(self.name, self.kind, values, self.dtype, self.text, categories=known)

    def _scores(self, values: np.ndarray) -> np.ndarray:
        """The normal scores: where numbers are equal, of the middle of their levels."""
        levels, numbers = np.array(self.levels), np.array(self.numbers)
        above = np.interp(values, numbers, levels)
        below = -np.interp(-values, -numbers[::-1], -levels[::-1])
        end = 1 / (2 * self.rows)
        return torch.special.ndtri(torch.from_numpy(((above + below) / 2).clip(end, 1 - end))).numpy()


def describe(cells: Cells) -> Column:
    """The column that these cells are of. Raises ValueError for whole numbers that fp64 does not have."""
    if cells.kind == "category":
        present = {_key(value): value for value in cells.values if value is not None}
        known = cells.categories if cells.categories is not None else tuple(sorted(present.values(), key=_order))
        missing = any(value is None for value in cells.values)
        categories = (*known, None) if missing or not known else known
        return Column(cells.name, cells.kind, cells.dtype, cells.text, missing=missing, categories=categories)
    absent = np.isnan(cells.values)
    present = cells.values[~absent]
    whole, most = cells.kind == "date" or "int" in cells.dtype.lower(), float(abs(present).max())
    expect(f"column {shown(cells.name)}", most, not whole or most < EXACT, "whole numbers below 2^53")
    levels, numbers = _distribution(present)
    exact = (d for d in range(DECIMALS + 1) if np.array_equal(np.round(present, d), present))
    decimals = 0 if whole else next(exact, None)
    points = (tuple(levels.tolist()), tuple(numbers.tolist()))
    known = (cells.name, cells.kind, cells.dtype, cells.text, cells.unit, bool(absent.any()), ())
    return Column(*known, *points, decimals, len(present))


def _distribution(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers, counts = np.unique(values, return_counts=True)
    if len(numbers) > STEPS:
        end = float(torch.special.ndtri(torch.tensor(1 - 1 / (2 * len(values)), dtype=torch.float64)))
        levels = torch.special.ndtr(torch.linspace(-end, end, QUANTILES, dtype=torch.float64)).numpy()  # close where tails are
        levels[0], levels[-1] = 0, 1
        return levels, np.quantile(values, levels)
    ends = counts.cumsum() / len(values)
    return np.stack([np.append(0, ends[:-1]), ends], axis=1).ravel(), numbers.repeat(2)


@dataclass(frozen=True)
class Table:
    """What a run knows of its table. columns: those that are features, in their order. label: the column of the classes, None
    without; place: where it stands among all. delimiter: of the text file."""

    columns: tuple[Column, ...]
    label: Column | None = None
    place: int = 0
    delimiter: str = ","

    def __str__(self) -> str:
        """ "4 columns (2 numbers, 1 category, 1 date; missing values in age, city)"."""
        kinds = [column.kind for column in self.columns]
        plural = {"number": "numbers", "category": "categories", "date": "dates"}
        counts = [f"{kinds.count(kind)} {plural[kind] if kinds.count(kind) > 1 else kind}" for kind in plural if kind in kinds]
        absent = [shown(str(column.name))[1:-1] for column in self.columns if column.missing]
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        missing = f"; missing values in {', '.join(absent[:5])}{more}" if absent else ""
        return f"{len(kinds)} column{'s' if len(kinds) > 1 else ''} ({', '.join(counts)}{missing})"

    @property
    def features(self) -> tuple[str, ...]:
        """The names of the features of a row, (F,)."""
        return tuple(name for column in self.columns for name in column.features)

    @property
    def scaled(self) -> np.ndarray:
        """Which features are normal scores, to be standardized, bool (F,); the others are +1 and -1."""
        return np.concatenate([[c.kind != "category" and i == 0 for i in range(len(c.features))] for c in self.columns])

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes; None without a label."""
        return None if self.label is None else [str(value) for value in self.label.categories]

    def encode(self, cells: Sequence[Cells]) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows of features, fp32 (N, F), and labels, int64 (N,) or None, of the columns by their names; others are left out, and
        without the label's column labels are None. Raises ValueError for a column that is missing, and as `Column.encode`
        does."""
        given = {each.name: each for each in cells}
        absent = [column.name for column in self.columns if column.name not in given]
        names = ", ".join(str(each.name) for each in cells)
        expect("columns", names, not absent, f"the columns of the run's table, with {', '.join(map(str, absent[:5]))}")
        rows = np.concatenate([column.encode(given[column.name]) for column in self.columns], axis=1)
        label = None if self.label is None else given.get(self.label.name)
        return rows, None if label is None or self.label is None else self.label.codes_of(label)

    def decode(self, rows: np.ndarray, labels: np.ndarray | None = None) -> list[Cells]:
        """The columns, in their order, of rows of features, fp32 (N, F), and labels, int64 (N,)."""
        ends = np.cumsum([len(column.features) for column in self.columns])[:-1]
        cells = [column.decode(part) for column, part in zip(self.columns, np.split(rows, ends, axis=1), strict=True)]
        if self.label is not None and labels is not None:
            cells.insert(self.place, self.label.cells(labels))
        return cells


def from_document(document: dict[str, Any]) -> Table:
    """The table that `dataclasses.asdict` made, or JSON of it. Raises TypeError or KeyError for anything else."""

    def column(values: dict[str, Any]) -> Column:
        known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return Column(**known)

    label = document["label"]
    columns = tuple(map(column, document["columns"]))
    return Table(columns, None if label is None else column(label), document["place"], document["delimiter"])


def _key(value: Category) -> tuple[str, Category]:
    """True is no 1, and 1.0 is."""
    kind = "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    return kind, value


def _order(value: Category) -> tuple[bool, Any]:
    return isinstance(value, str), value
