"""Tables as people have them, a .csv, a .parquet or a pandas DataFrame, as typed columns."""

import csv
import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastgen.data.arrays import reason
from fastgen.data.table import Category, Cells, Column, Table, describe
from fastgen.errors import did_you_mean, expect, expect_package
from fastgen_kernels.messages import shown

SUFFIXES = (".csv", ".tsv", ".parquet")
MISSING = {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "NaT", "None", "n/a", "nan", "null"}
"""Cells of a text that have no value: those of pandas."""

MOST_CATEGORIES = 1000  # of a text column; more are names or free text
FEW_CATEGORIES = 10  # never too many, however few rows there are
NUMBER = re.compile(r"[+-]?((?!0\d)(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|(?i:inf(inity)?))")  # 007 is a name
BOOLEANS = ({"True", "False"}, {"true", "false"}, {"TRUE", "FALSE"})
DAYS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y")
TIMES = ("%H:%M", "%H:%M:%S", "%H:%M:%S.%f")
ZONES = ("", "Z", "%z")
FORMATS = (*DAYS, *(f"{day}{t}{time}{zone}" for day in DAYS for t in " T" for time in TIMES for zone in ZONES))
UNITS = {"D": 86_400_000_000, "h": 3_600_000_000, "m": 60_000_000, "s": 1_000_000, "ms": 1000, "us": 1}  # in microseconds


@dataclass(frozen=True)
class Columns:
    """How the columns of a table are to be read. label: the column of the classes, "" without. exclude: columns that are left
    out. categories: columns whose values are names, be they numbers or many. missing: "keep", so that samples miss values, too,
    or "refuse". table: the table of a run, whose columns these are."""

    label: str = ""
    exclude: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    missing: Literal["keep", "refuse"] = "keep"
    table: Table | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not as it is by default, by its name."""
        plain = {field.name: field.default for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name, default in plain.items() if getattr(self, name) != default}


class TextColumn(Exception):
    """A column of text that is no category. Its text says what it holds."""


def read_table(source: Any, chosen: Columns) -> tuple[np.ndarray, np.ndarray | None, Table]:
    """Rows of features, fp32 (N, F), labels, int64 (N,) or None, and the table that they are of, which is `chosen.table` where
    that is given. source: the path of a .csv, .tsv or .parquet, or a pandas DataFrame.

    Raises ValueError for what is no table, names that are not there or are there twice, text that is no category, missing values
    where they are refused, and what a run's table does not have; ModuleNotFoundError without pandas or pyarrow."""
    from_text = isinstance(source, Path) and source.suffix != ".parquet"
    names, columns, delimiter, infer = _text(source) if from_text else _frame(source)
    _expect_names(names, chosen)
    known = {} if chosen.table is None else {c.name: c for c in (*chosen.table.columns, chosen.table.label) if c is not None}
    cells, refused = [], []
    for name, values in zip(names, columns, strict=True):
        if str(name) in chosen.exclude or (known and name not in known):
            continue
        try:
            as_category = str(name) in chosen.categories or str(name) == chosen.label
            cells.append(infer(name, values, as_category, known.get(name)))
        except TextColumn as error:
            refused.append((str(name), str(error)))
    if refused:
        listed = "; ".join(f"{shown(name)}: {what}" for name, what in refused[:5])
        remedy = f"exclude (--data.exclude {refused[0][0]}) leaves a column out, categories takes its text as categories"
        raise ValueError(f"columns: expected numbers, dates, and text of few different values, got {listed}; {remedy}")
    table = chosen.table or _described(cells, chosen, delimiter)
    rows, labels = table.encode(cells)
    expect("columns", ", ".join(map(str, names)), rows.size > 0, "at least one that is not the label or left out")
    return rows, labels, table


def is_frame(source: Any) -> bool:
    """Whether this is a pandas DataFrame; pandas is not imported to tell."""
    return any((kind.__module__.split(".")[0], kind.__name__) == ("pandas", "DataFrame") for kind in type(source).__mro__)


def _described(cells: list[Cells], chosen: Columns, delimiter: str) -> Table:
    place = next((i for i, each in enumerate(cells) if str(each.name) == chosen.label), 0)
    features = [each for each in cells if not chosen.label or str(each.name) != chosen.label]
    columns = tuple(map(describe, features))
    if chosen.missing == "refuse":
        for column, each in zip(columns, features, strict=True):
            row = next((i for i, v in enumerate(each.values) if v is None or v != v), -1)
            expect(f"missing: column {shown(column.name)}", row, row < 0, "no missing values, as 'refuse' says, in any row")
    label = None
    if chosen.label:
        label, name = describe(cells[place]), f"label: column {shown(chosen.label)}"
        expect(name, f"{label.kind}s", label.kind == "category", "names, bools or whole numbers")
        row = next((i for i, value in enumerate(cells[place].values) if value is None), -1)
        expect(name, f"none in row {row}", row < 0, "a class in every row; leave the others out")
        most = min(MOST_CATEGORIES, max(FEW_CATEGORIES, len(cells[place].values) // 2))
        expect(name, len(label.categories), len(label.categories) <= most, f"at most {most} classes")
    expect("columns", ", ".join(str(each.name) for each in cells), columns, "at least one that is not the label or left out")
    return Table(columns, label, place, delimiter)


def _expect_names(names: Sequence[str | int], chosen: Columns) -> None:
    given = [str(name) for name in names]
    twice = [name for i, name in enumerate(given) if name in given[:i]]
    if twice:
        raise ValueError(f"columns: expected names that differ, got {shown(twice[0])} twice")
    for argument, wanted in (
        ("label", (chosen.label,) if chosen.label else ()),
        ("exclude", chosen.exclude),
        ("categories", chosen.categories),
    ):
        for name in wanted:
            if name not in given:
                listed, near = shown(", ".join(given))[1:-1], did_you_mean(name, given)
                raise ValueError(f"{argument}: expected a column of the table, {listed}, got {shown(name)}{near}")
    expect("label", chosen.label, chosen.label not in chosen.exclude, "a column that is not left out")


# Text files.


def _text(path: Path) -> tuple[list[str], list[list[str | None]], str, Callable[..., Cells]]:
    """Names, columns of cells, None where they are missing, and the delimiter of a text file; and what makes typed columns of
    them."""
    name = shown(str(path))
    expect("source", str(path), path.is_file(), "a regular file")
    content = path.read_bytes()
    wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # Excel's "Unicode text"
    try:
        text = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ValueError(f"source: expected text in UTF-8, got {name} with {byte}: save it as CSV in UTF-8") from None
    delimiter = "\t" if path.suffix == ".tsv" else _delimiter(text)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
        lines = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise ValueError(f"source: expected a table as CSV, got {name}: {error}") from None
    expect("source", str(path), len(lines) > 1, "a line of names and at least one row")
    expect("source", str(path), "\0" not in text, "text without zero bytes")
    header = [cell.strip() for cell in lines[0][1]]
    for number, row in lines[1:]:
        if len(row) != len(header):
            raise ValueError(f"source: expected {len(header)} cells in every line of {name}, got {len(row)} in line {number}")
    numbers = [cell for cell in header if _number(cell) is not None]
    expect("source", numbers and ", ".join(header), len(numbers) < len(header), f"names in the first line of {name}")
    columns = [[_cell(row[i]) for _, row in lines[1:]] for i in range(len(header))]
    if header[0] == "" and len(header) > 1 and _counts(columns[0]):  # the rows' numbers, which pandas writes
        header, columns = header[1:], columns[1:]
    unnamed = next((i + 1 for i, cell in enumerate(header) if cell == ""), None)
    expect("columns", f"none for column {unnamed}", unnamed is None, f"a name for every column in the first line of {name}")

    def infer(name: str, cells: list[str | None], as_category: bool, column: Column | None) -> Cells:
        return _of_text(name, cells, as_category, column, comma=delimiter != ",")

    return header, columns, delimiter, infer


def _delimiter(text: str) -> str:
    """The one that divides the first lines into the most cells, the same number in each."""
    start = text[:100_000].splitlines(keepends=True)[:20]
    widths = {}
    for delimiter in ",;\t|":
        try:
            rows = [row for row in csv.reader(start, delimiter=delimiter, skipinitialspace=True) if row]
        except csv.Error:
            continue
        same = len({len(row) for row in rows}) == 1
        widths[delimiter] = (same, len(rows[0]) if rows else 0)
    wide = {delimiter: width for delimiter, width in widths.items() if width[1] > 1}
    return max(wide, key=lambda delimiter: wide[delimiter]) if wide else ","


def _cell(text: str) -> str | None:
    text = text.strip()
    return None if text in MISSING else text


def _counts(cells: list[str | None]) -> bool:
    return any(cells == [str(i) for i in range(first, first + len(cells))] for first in (0, 1))


def _number(text: str, comma: bool = False) -> float | None:
    text = text.replace(",", ".") if comma and "." not in text else text
    return float(text) if NUMBER.fullmatch(text) else None


def _of_text(name: str, cells: list[str | None], as_category: bool, column: Column | None, comma: bool) -> Cells:
    present = [cell for cell in cells if cell is not None]
    if column is not None and column.kind == "category":
        words: dict[Category, Category] = {str(value): value for value in column.categories if value is not None}
        return Cells(name, "category", _objects(words.get(cell, cell) for cell in cells))
    if column is not None and column.kind == "date":
        found = _ticks(present, [column.text] if column.text else FORMATS)
        expect(f"column {shown(name)}", present[:1], found is not None, f"dates as {column.text or '2024-01-31'}")
        assert found is not None
        return Cells(name, "date", _spread(_in_units(found[1], column.unit), cells), unit=column.unit)
    if present and not (as_category and column is None):
        numbers = [_number(cell, comma) for cell in present]
        values = np.array([np.nan if number is None else number for number in numbers], dtype=np.float64)
        if column is not None or None not in numbers:
            _expect_numbers(name, values, present)
            whole = not any("." in cell or "," in cell or "e" in cell.lower() for cell in present)
            dtype = "float64" if not whole else "int64" if len(present) == len(cells) else "Int64"
            decimal = "," if comma and any("," in cell for cell in present) else ""
            return Cells(name, "number", _spread(values, cells), dtype, decimal)
        if any(set(present) <= words for words in BOOLEANS):
            return Cells(name, "category", _objects(cells), "bool" if len(present) == len(cells) else "boolean")
        if (found := _ticks(present, FORMATS)) is not None:
            form, micro = found
            unit = next(unit for unit, size in UNITS.items() if (micro % size == 0).all())
            return Cells(name, "date", _spread(_in_units(micro, unit), cells), text=form, unit=unit)
        _expect_few(present, numbers)
    if present and all(NUMBER.fullmatch(cell) and cell.lstrip("+-").isdigit() for cell in present):
        dtype = "int64" if len(present) == len(cells) else "Int64"
        return Cells(name, "category", _objects(None if cell is None else int(cell) for cell in cells), dtype)
    return Cells(name, "category", _objects(cells))


def _expect_numbers(name: str | int, values: np.ndarray, given: Sequence[Any]) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        raise ValueError(f"column {shown(name)}: expected finite numbers, got {shown(given[int(bad.argmax())])}")


def _expect_few(present: Sequence[str], numbers: Sequence[float | None] = ()) -> None:
    """Raises TextColumn where texts hardly repeat."""
    different = len(set(present))
    if different > min(MOST_CATEGORIES, max(FEW_CATEGORIES, len(present) // 2)):
        text = next((text for text, number in zip(present, numbers, strict=False) if number is None), present[0])
        raise TextColumn(f"{different:,} different texts in {len(present):,} rows, such as {shown(text[:40])}")


def _ticks(present: list[str], formats: Iterable[str]) -> tuple[str, np.ndarray] | None:
    """The format of dates, and their microseconds since 1970, int64; None where they are no dates. Raises TextColumn where two
    formats read them as different days."""
    fitting = [(form, ticks) for form in formats if (ticks := _parsed(present, form)) is not None]
    if not fitting:
        return None
    if any(not np.array_equal(ticks, fitting[0][1]) for _, ticks in fitting[1:]):
        raise TextColumn(f"dates such as {shown(present[0])}, whose day and month may be either: write 2024-01-31")
    return fitting[0]


def _parsed(present: list[str], form: str) -> np.ndarray | None:
    try:
        dates = [datetime.strptime(cell, form) for cell in present]
    except ValueError:
        return None
    return _microseconds(dates)


def _microseconds(dates: Iterable[datetime]) -> np.ndarray:
    """Since 1970, int64; of a time zone's dates, in UTC."""
    in_utc = [date if date.tzinfo is None else date.astimezone(UTC).replace(tzinfo=None) for date in dates]
    return np.array(in_utc, dtype="datetime64[us]").astype(np.int64)


def _in_units(micro: np.ndarray, unit: str) -> np.ndarray:
    return micro / UNITS[unit]


def _spread(values: np.ndarray, cells: Iterable[Any]) -> np.ndarray:
    """fp64 (N,): the values of the cells that are not None, NaN for the others."""
    present = np.array([cell is not None for cell in cells])
    out = np.full(len(present), np.nan)
    out[present] = values
    return out


def _objects(values: Iterable[Any]) -> np.ndarray:
    values = list(values)
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


# pandas.


def _frame(source: Any) -> tuple[list[str | int], list[Any], str, Callable[..., Cells]]:
    """Names and columns of a DataFrame or a .parquet, and what makes typed columns of them."""
    if isinstance(source, Path):
        for package in ("pandas", "pyarrow"):
            expect_package(package, f"reading {source.name}", extra="tables")
        import pandas

        expect("source", str(source), source.is_file(), "a regular file")
        try:
            source = pandas.read_parquet(source)
        except Exception as error:  # of Arrow
            raise ValueError(f"source: expected a table as Parquet, got {shown(str(source))}: {reason(error)}") from None
    names = list(source.columns)
    bad = next((name for name in names if not isinstance(name, str | int)), None)
    expect("columns", bad, bad is None, "names that are strings or whole numbers")
    expect("source", f"{source.shape[0]} rows of {source.shape[1]} columns", source.size > 0, "at least one row and one column")
    return names, [source.iloc[:, i] for i in range(len(names))], ",", _of_series


def _of_series(name: str | int, series: Any, as_category: bool, column: Column | None) -> Cells:
    dtype, absent = str(series.dtype), series.isna().to_numpy()
    values = _objects(None if gone else _plain(value) for value, gone in zip(series, absent, strict=True))
    present = [value for value in values if value is not None]
    if column is not None and column.kind == "category":
        words: dict[Category, Category] = {str(value): value for value in column.categories}
        same = set(column.categories)
        return Cells(name, "category", _objects(v if v is None or _known(v, same) else words.get(str(v), v) for v in values))
    kinds = {type(value) for value in present}
    numeric = bool(kinds) and kinds <= {int, float}
    if kinds and kinds <= {datetime}:
        micro = _microseconds(present)
        unit = next(unit for unit, size in UNITS.items() if (micro % size == 0).all()) if column is None else column.unit
        dtype = "date" if dtype == "object" else dtype
        if column is None or column.kind == "date":
            return Cells(name, "date", _spread(_in_units(micro, unit), values), dtype, unit=unit)
    if numeric and dtype != "category" and (not as_category or column is not None):
        numbers = np.array(present, dtype=np.float64)
        _expect_numbers(name, numbers, present)
        return Cells(name, "number", _spread(numbers, values), dtype)
    if column is not None:
        raise ValueError(f"column {shown(name)}: expected {column.kind}s, as the run's table has, got {dtype}")
    known = None
    if dtype == "category":
        known = tuple(_plain(value) for value in series.cat.categories)
        kinds = {type(value) for value in known} or {str}
    fits = kinds <= {str} or kinds <= {bool} or kinds <= {int, float}
    given = f"{dtype} of {', '.join(sorted(kind.__name__ for kind in kinds))}"
    expect(f"column {shown(name)}", given, fits, "numbers, bools, text, dates, or categories of such")
    if kinds == {str} and known is None and not as_category:
        _expect_few(present)
    ordered = "ordered" if dtype == "category" and series.cat.ordered else ""
    return Cells(name, "category", values, dtype, ordered, categories=known)


def _plain(value: Any) -> Any:
    """A value of a column as Python has it."""
    if hasattr(value, "to_pydatetime"):
        value = value.to_pydatetime(warn=False)
    elif type(value).__name__ == "date":
        value = datetime(value.year, value.month, value.day)
    return value.item() if isinstance(value, np.generic) else value


def _known(value: Any, categories: set[Category]) -> bool:
    return isinstance(value, str | int | float) and value in categories
