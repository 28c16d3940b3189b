"""Files of values, in their own units."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastgen.atomic import write_whole
from fastgen.data.table_writer import to_frame, to_text
from fastgen.data.units import Values
from fastgen.errors import expect_package
from fastgen.files.images import expect_place

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")


def default_name(values: Values) -> str:
    """The name of the file that samples are written to: a .csv for rows of a table, a .npz for signals."""
    return "samples.csv" if len(values.shape) == 1 else "samples.npz"


def check_out(out: Path, values: Values) -> None:
    """Raises ValueError unless `save_values` can write to `out`, ModuleNotFoundError without what writes a .parquet."""
    if values.table is not None:
        if out.suffix not in TABLE_SUFFIXES:
            raise ValueError(f"out: expected a file ending in one of {', '.join(TABLE_SUFFIXES)}, got {str(out)!r}")
        for package in ("pandas", "pyarrow") if out.suffix == ".parquet" else ():
            expect_package(package, f"writing {out.name}", extra="tables")
        expect_place(out)
        return
    suffixes, what = ((".csv", ".npz", ".npy"), "a table's rows") if len(values.shape) == 1 else ((".npz", ".npy"), "signals")
    if out.suffix not in suffixes:
        raise ValueError(f"out: expected a file ending in one of {', '.join(suffixes)} for {what}, got {str(out)!r}")
    expect_place(out)


def save_values(out: Path, x: Tensor, labels: Tensor | None, values: Values) -> None:
    """Writes x, fp32 (N, *shape) in its own units, and its labels (N,) to `out`: a .npy holds x alone; a .npz the arrays `x`,
    `labels` and `features`, which `open_dataset` reads; a .csv a table, whose columns are the features, named x0, x1 … where they
    have no names, and `label`. Of a run of a .csv, a .parquet or a DataFrame, a .csv, .tsv or .parquet has its columns. Raises
    ValueError and ModuleNotFoundError where `check_out` does."""
    check_out(out, values)
    if values.table is not None:
        columns = values.columns(x, labels)
        if out.suffix == ".parquet":
            frame = to_frame(columns)
            frame.columns = frame.columns.map(str)  # which Parquet's are
            write_whole(out, lambda file: frame.to_parquet(file))
        else:
            delimiter = "\t" if out.suffix == ".tsv" else values.table.delimiter
            write_whole(out, lambda file: file.write(to_text(columns, delimiter).encode()))
        return
    numbers = x.cpu().numpy()
    if out.suffix == ".npy":
        write_whole(out, lambda file: np.save(file, numbers))
    elif out.suffix == ".npz":
        named: dict[str, Any] = {"x": numbers} | ({} if labels is None else {"labels": labels.cpu().numpy()})
        named |= {} if values.features is None else {"features": np.array(values.features)}
        write_whole(out, lambda file: np.savez_compressed(file, **named))
    else:
        text = _table(numbers, None if labels is None else labels.tolist(), values.features)
        write_whole(out, lambda file: file.write(text.encode()))


def _table(numbers: np.ndarray, labels: list[int] | None, features: tuple[str, ...] | None) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = features or [f"x{i}" for i in range(numbers.shape[1])]
    table.writerow(names if labels is None else [*names, "label"])
    for i, row in enumerate(numbers):
        cells = [str(number) for number in row]  # as few digits as give the fp32 number back
        table.writerow(cells if labels is None else [*cells, labels[i]])
    return text.getvalue()
