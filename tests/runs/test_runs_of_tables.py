"""Runs of tables of several kinds of columns, from the file that people have to the file that `sample` writes."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest

import fastgen
from fastgen.config.schema import DataConfig
from fastgen.data import open_dataset
from fastgen.training.train import train
from tests.runs.test_runs_of_values import TABLE

HEADER = ["größe", "city", "owner", "born", "weight"]
CONFIG = dataclasses.replace(TABLE, data=DataConfig("people.csv", label="owner", hold_out=0.1), steps=12)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The run `people` and the table people.csv that it was trained on, by a name in the working directory."""
    folder, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)
    with (folder / "people.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(HEADER)
        for i in range(80):
            weight = "" if i % 7 == 0 else f"{rng.normal(70, 9):.1f}".replace(".", ",")
            born = f"19{i % 90 + 10}-0{i % 9 + 1}-11"
            table.writerow([rng.integers(150, 200), rng.choice(["Paris", "Łódź"]), ["no", "yes"][i % 2], born, weight])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(CONFIG, folder / "people")
    return folder


@pytest.fixture(autouse=True)
def _there(runs, monkeypatch):
    monkeypatch.chdir(runs)


def test_samples_have_the_columns_of_the_data(done):
    (out,) = done("sample", "people", "--n", 40, "--steps", 3)
    with open(out, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file, delimiter=";")
    assert (header, len(rows)) == (HEADER, 40)
    assert {row[2] for row in rows} == {"no", "yes"}
    for size, city, _, born, weight in rows:
        assert 150 <= int(size) < 200
        assert city in ("Paris", "Łódź")
        assert 1910 <= int(born[:4]) < 2000
        assert weight == "" or 30 < float(weight.replace(",", ".")) < 110
    again = open_dataset(out, table=fastgen.load("people").values.table)  # what is written is read
    assert again.classes == ["no", "yes"]


def test_a_frame_has_their_types(done):
    pandas = pytest.importorskip("pandas")
    drawn = fastgen.load("people").sample_frame(6, label=1, steps=3)
    kinds = [drawn[name].dtype.kind for name in HEADER]
    assert (list(drawn), kinds[0], kinds[3:], set(drawn["owner"])) == (HEADER, "i", ["M", "f"], {"yes"})
    done("sample", "people", "--n", 6, "--steps", 3, "--label", 1, "--out", "drawn.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet("drawn.parquet"), drawn)


def test_a_resumed_run_is_bitwise_the_one_that_was_never_stopped(runs, tmp_path):
    shutil.copytree(runs / "people", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000012")
    train(CONFIG, tmp_path / "run", resume=True)
    folders = [folder / "checkpoints" / "00000012" for folder in (runs / "people", tmp_path / "run")]
    whole, resumed = (json.loads((folder / "manifest.json").read_text()) for folder in folders)
    assert whole == resumed


def test_a_run_that_goes_on_keeps_its_table(runs, tmp_path):
    shutil.copytree(runs / "people", tmp_path / "run")
    lines = (runs / "people.csv").read_text(encoding="utf-8-sig").splitlines()
    (tmp_path / "more.csv").write_text("\n".join([*lines, "300;Paris;no;2001-01-01;200,5"]))
    config = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, source=str(tmp_path / "more.csv")), steps=14)
    train(config, tmp_path / "run", resume=True)
    after = fastgen.load(tmp_path / "run")
    assert (after.step, after.values) == (14, fastgen.load("people").values)
    (tmp_path / "more.csv").write_text("\n".join([*lines, "160;Oslo;no;2001-01-01;70,5"]))
    with pytest.raises(ValueError, match="column 'city': expected one of Paris, Łódź, got 'Oslo' in row 80"):
        train(dataclasses.replace(config, steps=15), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sample people --out x.npz", "out: expected a file ending in one of .csv, .tsv, .parquet, got 'x.npz'"),
        ("train table --out new", "data.source: expected images or a table"),
        ("train table --data.source gone.csv --out new", "source: expected one of"),
        ("train table --data.source people.csv --data.label ower --out new", "label: expected a column of the table, größe, ci"),
        ("train table --data.source people.csv --data.missing refuse --out new", "missing: column 'weight': expected no missing"),
        ("train table --data.source people.csv --data.hold-out 0.9 --out new", "data.hold_out: expected a share from 0 to 0.5"),
        ("train table --data.source wine --data.label x --out new", "label: expected none for what is no .csv"),
        ("train mnist-vae --data.source people.csv --data.shift 0 --out new", "model: expected a UNet for values, got VAE"),
        ("info --preset table", "preset: expected one that names its data or the size of its images"),
    ],
)
def test_what_is_refused(arguments, said, refused):
    assert said in refused(*arguments.split())
