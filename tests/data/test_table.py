"""Tables as people have them: text files, Parquet and DataFrames as features, and back."""

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest

from fastgen.data import open_dataset, open_held_out
from fastgen.data.table import ONE_HOT, STEPS, Cells, describe, from_document
from fastgen.data.table_reader import Columns, read_table
from fastgen.data.table_writer import to_frame, to_text


def opened(path, content, **options):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_dataset(path, **options)


def written(data):
    """What a file of the data's own rows holds."""
    x, labels = data.reader.read(range(len(data)))[:2]
    return to_text(data.table.decode(x.numpy(), None if labels is None else labels.numpy()), data.table.delimiter)


# Text files. What comes back is what was read, but for spaces, quotes that are not needed, and the names of missing values.

FILES = {
    "quotes": ('name,"a ""b""",c\n"x, y",1,2\n"z\nw",3,4\n', None),
    "semicolons and decimal commas": ("a;b;c\n1,5;x;3\n2,25;y;4\n", None),
    "a byte order mark": ("\ufeffa,b\n1,2\n3,4\n", "a,b\n1,2\n3,4\n"),
    "UTF-16, tabs": ("a\tb\n1\tü\n3\t4\n".encode("utf-16"), "a\tb\n1\tü\n3\t4\n"),
    "Windows' ends of lines, bars": ("a|b\r\n1|x\r\n2|y\r\n", "a|b\n1|x\n2|y\n"),
    "missing": ("a,b,c\n1,,x\nNA,2.5,null\n3,NaN,y\n", "a,b,c\n1,,x\n,2.5,\n3,,y\n"),
    "one column, missing": ('a\nx\n""\ny\n', 'a\nx\n""\ny\n'),
    "an empty column": ("a,b\n1,\n2,\n", None),
    "names": ("größe,名前\n1,東京\n2,大阪\n", None),
    "one row": ("a,b\n1,x\n", None),
    "constants": ("a,b,c\n1.5,x,2024-01-01\n1.5,x,2024-01-01\n", None),
    "the rows' numbers": (",a,b\n0,1,x\n1,2,y\n", "a,b\n1,x\n2,y\n"),
    "blank lines, spaces": ("a, b\n\n1, x y\n2, ?\n", "a,b\n1,x y\n2,?\n"),
    "days": ("d,e,f\n31.12.2023,12/31/2023,2023-12-31\n01.02.2024,02/01/2024,2024-02-01\n", None),
    "times": ("d,e\n2024-01-01 10:00,2024-01-01T10:00:07Z\n2024-02-01 11:30,2024-01-02T00:00:00Z\n", None),
    "zones": ("d\n2024-01-01 10:00+01:00\n2024-07-01 10:00+02:00\n", "d\n2024-01-01 09:00+00:00\n2024-07-01 08:00+00:00\n"),
    "bools": ("d,x,z\nTrue,true,YES\nFalse,false,NO\n", None),
    "leading zeros": ("zip,x\n01234,1\n90210,2\n", None),
    "numbers": ("a,b,c\n-1,1e-3,.5\n+7,2.5e10,-0.25\n", "a,b,c\n-1,0.001,0.5\n7,25000000000.0,-0.25\n"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), FILES.values(), ids=FILES)
def test_a_file_comes_back(content, expected, tmp_path):
    assert written(opened(tmp_path / "t.csv", content)) == (content if expected is None else expected)


def test_the_label_has_its_place_and_its_names(tmp_path):
    content = "x,kind,z\n1,dog,2\n3,cat,4\n5,dog,6\n"
    data = opened(tmp_path / "t.csv", content, label="kind")
    assert (data.classes, data.features, data.shape) == (["cat", "dog"], ("x", "z"), (2,))
    assert data.reader.read(range(3))[1].tolist() == [1, 0, 1]
    assert written(data) == content
    numbered = opened(tmp_path / "t.csv", "x,y\n" + "".join(f"{i},{i % 11}\n" for i in range(40)), label="y")
    assert numbered.classes == [str(i) for i in range(11)]  # 10 comes after 9


def test_what_a_column_is_can_be_said(tmp_path):
    content = "id,zip,note\n" + "".join(f"{i},{10000 + i % 3},note {i}\n" for i in range(40))
    with pytest.raises(ValueError, match=r"columns: .* 'note': 40 different texts in 40 rows, such as 'note 0'; exclude"):
        opened(tmp_path / "t.csv", content)
    data = opened(tmp_path / "t.csv", content, exclude=["note", "id"], categories=["zip"])
    assert data.features == ("zip = 10000", "zip = 10001", "zip = 10002")
    many = opened(tmp_path / "t.csv", content, categories=["note"])
    assert many.shape == (2 + 6,)  # 40 categories are bits
    assert written(many) == content


def test_missing_values_can_be_refused(tmp_path):
    with pytest.raises(ValueError, match=r"missing: column 'b': expected no missing values.* got 1"):
        opened(tmp_path / "t.csv", "a,b\n1,x\n2,\n", missing="refuse")
    assert opened(tmp_path / "t.csv", "a,b\n1,x\n2,y\n", missing="refuse").table.columns[1].missing is False


def test_a_share_is_held_out(tmp_path):
    content = "x,y\n" + "".join(f"{i},{'ab'[i % 10 == 0]}\n" for i in range(200))
    data = opened(tmp_path / "t.csv", content, label="y", hold_out=0.05)
    held_out = open_held_out(tmp_path / "t.csv", data, label="y", hold_out=0.05)
    assert (len(data), len(held_out), held_out.table) == (184, 16, data.table)
    rows = [{line for line in written(each).splitlines()[1:]} for each in (data, held_out)]
    assert not rows[0] & rows[1]
    assert len({line for line in rows[1] if line.endswith("b")}) == 2  # of each class its share
    more = opened(tmp_path / "t.csv", content + "1000,a\n", label="y", hold_out=0.05)
    assert len(set(written(more).splitlines()) ^ set(written(data).splitlines())) <= 3  # others stay where they were
    assert open_held_out(tmp_path / "t.csv", opened(tmp_path / "t.csv", "x\n1\n2\n")) is None


# Columns.


@pytest.mark.parametrize(
    "values",
    [
        np.random.default_rng(0).lognormal(0, 2, 5000),
        np.where(np.random.default_rng(0).random(5000) < 0.9, 0, np.random.default_rng(1).lognormal(0, 2, 5000)),
        np.random.default_rng(0).integers(-3, 3, 5000) * 10.0,
        np.random.default_rng(0).normal(1e9, 1, 5000),
        np.array([-1e-30, 1e30, 2.0]),
    ],
    ids=["skewed", "mostly zero", "few", "far from zero", "far apart"],
)
def test_numbers_come_back_from_normal_scores(values):
    column = describe(Cells("x", "number", values, "float64"))
    rows = column.encode(Cells("x", "number", values))
    back = column.decode(rows).values
    assert abs(rows).max() < 4
    assert values.min() <= back.min() <= back.max() <= values.max()
    if len(np.unique(values)) <= STEPS:
        assert (back == values).all()
    order = values.argsort()
    assert (np.diff(back[order]) >= 0).all()
    levels = np.linspace(0.01, 0.99, 99)
    assert np.allclose(np.quantile(back, levels), np.quantile(values, levels), rtol=1e-3)
    normal = np.random.default_rng(0).normal(size=(5000, 1)).astype(np.float32)  # what a model would draw at best
    drawn, real = (np.quantile(x, [0.3, 0.95], method="inverted_cdf") for x in (column.decode(normal).values, values))
    assert np.allclose(drawn, real, rtol=0.2)


@pytest.mark.parametrize("count", [1, 2, 3, ONE_HOT, ONE_HOT + 1, 700])
def test_the_nearest_category_comes_back(count):
    values = np.array([f"c{i}" for i in range(count)] * 2, dtype=object)
    column = describe(Cells("x", "category", values))
    rows = column.encode(Cells("x", "category", values))
    assert rows.shape[1] <= ONE_HOT
    assert len(column.features) == rows.shape[1]
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, rows.shape)
    assert (column.decode(rows + noise).values == values).all()


# pandas.


def frame():
    pandas = pytest.importorskip("pandas")
    rng, n = np.random.default_rng(0), 60
    return pandas.DataFrame(
        {
            "age": rng.integers(18, 90, n),
            "small": rng.integers(0, 255, n).astype("uint8"),
            "city": rng.choice(["Paris", "Zürich, CH", "東京"], n),
            "flag": rng.random(n) < 0.3,
            "maybe": pandas.Series(rng.random(n) < 0.3).where(rng.random(n) < 0.8).astype("boolean"),
            "count": pandas.Series(rng.integers(0, 5, n)).where(rng.random(n) < 0.8).astype("Int64"),
            "float32": rng.integers(0, 9, n).astype("float32") / 4,
            "missing": np.where(rng.random(n) < 0.2, np.nan, rng.integers(0, 9, n) / 4),
            "level": pandas.Categorical(rng.choice(["lo", "hi"], n), categories=["lo", "mid", "hi"], ordered=True),
            "day": pandas.to_datetime("2024-01-01") + pandas.to_timedelta(rng.integers(0, 90, n), unit="D"),
            "time": pandas.Series(pandas.date_range("2024-01-01 10:00", periods=n, freq="7s", tz="Europe/Berlin")),
            "date": [np.datetime64("2020-01-01", "D").item()] * n,
            "constant": 7,
            "nothing": np.nan,
            "word": pandas.Series(rng.choice(["a", "b"], n)).where(rng.random(n) < 0.7),
            3: rng.integers(0, 9, n) * 0.5,
        }
    )


@pytest.mark.parametrize("label", ["", "city", "flag", "age", "level"])
def test_a_frame_comes_back(label):
    pandas = pytest.importorskip("pandas")
    given = frame()
    if label == "age":
        given["age"] %= 5
    rows, labels, table = read_table(given, Columns(label=label))
    assert from_document(json.loads(json.dumps(asdict(table)))) == table
    pandas.testing.assert_frame_equal(to_frame(table.decode(rows, labels)), given)


def test_the_same_from_parquet_and_with_a_runs_table(tmp_path):
    pytest.importorskip("pyarrow")
    given = frame().rename(columns={3: "three"})
    given.to_parquet(tmp_path / "t.parquet")
    data, own = open_dataset(tmp_path / "t.parquet", label="city"), open_dataset(given, label="city")
    assert data.table == own.table
    given.head(9).to_csv(tmp_path / "some.csv", index=False)
    some = open_dataset(tmp_path / "some.csv", table=data.table)
    assert np.allclose(some.reader.read(range(9))[0], data.reader.read(range(9))[0])
    given["city"] = "Oslo"
    for column, message in ((given, "column 'city': expected one of Paris"), (given.drop(columns="age"), "columns: expected")):
        with pytest.raises(ValueError, match=message):
            open_dataset(column, table=data.table)


@pytest.mark.parametrize("package", ["pandas", "pyarrow"])
def test_what_parquet_needs_is_named(package, tmp_path, monkeypatch):
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setattr("fastgen.errors.find_spec", lambda name: None if name == package else sys.modules["sys"].__spec__)
    with pytest.raises(ModuleNotFoundError, match=rf't.parquet needs {package}: pip install "fastgen-torch\[tables\]"'):
        open_dataset(tmp_path / "t.parquet")
