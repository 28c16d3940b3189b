"""Typed columns as people have them: a text file, or a pandas DataFrame."""

import csv
import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np

from fastgen.data.table import Category, Cells
from fastgen.data.table_reader import UNITS
from fastgen.errors import expect_package

if TYPE_CHECKING:
    import pandas

EPOCH = datetime(1970, 1, 1, tzinfo=UTC).replace(tzinfo=None)


def to_text(columns: Sequence[Cells], delimiter: str = ",") -> str:
    """The columns as CSV, with a line of their names; a missing value is an empty cell."""
    text = io.StringIO()
    table = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    table.writerow([column.name for column in columns])
    table.writerows(zip(*(map(_write(column), column.values.tolist()) for column in columns), strict=True))
    return text.getvalue()


def to_frame(columns: Sequence[Cells]) -> "pandas.DataFrame":
    """The columns as a DataFrame, each of its dtype. Raises ModuleNotFoundError without pandas."""
    expect_package("pandas", "a DataFrame", extra="tables")
    import pandas

    return pandas.DataFrame({column.name: _series(pandas, column) for column in columns})


def _write(column: Cells) -> Callable[[Any], str]:
    """What makes a cell's text of a value."""
    if column.kind == "category":
        return lambda value: "" if value is None else str(value)
    if column.kind == "date":
        form = column.text or ("%Y-%m-%d" if column.unit == "D" else "%Y-%m-%d %H:%M:%S.%f")
        form = form.removesuffix("" if column.text or column.unit in ("ms", "us") else ".%f").replace("%z", "+00:00")
        return lambda value: "" if value != value else _date(value, column.unit).strftime(form)
    if "int" in column.dtype.lower():
        return lambda value: "" if value != value else str(int(value))
    if column.text == ",":
        return lambda value: "" if value != value else _shortest(value).replace(".", ",")
    return lambda value: "" if value != value else _shortest(value)


def _shortest(value: float) -> str:
    """As few digits as give the nine that fp32 has."""
    return repr(float(f"{value:.9g}"))


def _date(ticks: float, unit: str) -> datetime:
    return EPOCH + timedelta(microseconds=int(ticks) * UNITS[unit])


def _series(pandas: Any, column: Cells) -> Any:
    values: Any = column.values
    if column.kind == "date":
        micro = [None if v != v else _date(v, column.unit) for v in values.tolist()]
        series = pandas.Series(pandas.to_datetime(pandas.Series(micro, dtype="object")))
        if column.dtype == "date":
            return series.dt.date
        if "," in column.dtype:  # of a time zone
            series = series.dt.tz_localize("UTC")
        return series.astype(column.dtype) if column.dtype else series
    if column.dtype == "category":
        known: Sequence[Category] = column.categories or ()
        return pandas.Series(pandas.Categorical(values, categories=list(known), ordered=column.text == "ordered"))
    if column.dtype in ("bool", "boolean"):  # of a text file they are words
        values = [None if v is None else str(v).lower() == "true" for v in values]
    if not column.dtype:
        return pandas.Series(list(values))
    if isinstance(values, np.ndarray) and values.dtype != object:
        return pandas.Series(values).astype(column.dtype)
    return pandas.Series(list(values), dtype="object").astype(column.dtype)
