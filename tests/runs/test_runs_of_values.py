"""Runs of values, from training to files: tables and signals of a second each."""

import csv
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.applications import edit, inpaint, interpolate, upscale
from fastgen.config.schema import DataConfig, UNetConfig, VAEConfig
from fastgen.data import open_dataset
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.train import train
from tests.helpers import tiny_runs

TABLE = dataclasses.replace(
    tiny_runs.LABELLED,
    data=DataConfig("wine"),
    model=UNetConfig(channels=8, multipliers=(1,), blocks=1, attention_levels=(), groups=4, dropout=0.1),
)


def waves(n=40):
    """Two channels on other scales, (n, 2, 16)."""
    phase = torch.rand(n, 1, generator=torch.Generator().manual_seed(0)) * 6
    place = torch.arange(16) / 16 * 2 * torch.pi
    return torch.stack([300 + 50 * (place + phase).sin(), 0.01 * (place + phase).cos()], dim=1).numpy()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs wine, by name and with labels, and waves, from a .npy and without."""
    folder = tmp_path_factory.mktemp("runs")
    train(TABLE, folder / "wine")
    np.save(folder / "waves.npy", waves())
    model = dataclasses.replace(TABLE.model, multipliers=(1, 2))
    train(dataclasses.replace(TABLE, data=DataConfig(str(folder / "waves.npy"), "values"), model=model), folder / "waves")
    tiny_runs.picture(folder / "image.png")
    return folder


@pytest.fixture(autouse=True)
def _there(runs, monkeypatch):
    monkeypatch.chdir(runs)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# Run.sample


def test_rows_come_in_their_own_units(runs):
    run = fastgen.load("wine")
    real, _ = next(open_dataset("wine").batches(162))
    assert (run.shape, run.num_classes, run.classes) == ((13,), 3, ["class_0", "class_1", "class_2"])
    assert run.values.features == open_dataset("wine").features
    drawn, labels = run.sample(300, label=[0, 1])
    assert (drawn.shape, drawn.dtype, labels.tolist()) == ((300, 13), torch.float32, [0, 1] * 150)
    # After 12 steps little is learned but these, which the run carries.
    assert (drawn.mean(0) - real.mean(0)).abs().div(real.std(0)).max() < 1
    assert 0.2 < (drawn.std(0) / real.std(0)).min() < (drawn.std(0) / real.std(0)).max() < 3


@pytest.mark.parametrize("shape", [(5, 8, 8), (1, 4, 8, 4)])  # bands of an image, a volume
def test_values_of_two_and_three_dimensions(shape, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(300, 20, (20, *shape)).astype(np.float32))
    config = dataclasses.replace(TABLE, data=DataConfig(str(tmp_path / "x.npy"), "values"), steps=2)
    train(config, tmp_path / "run")
    drawn, labels = fastgen.load(tmp_path / "run").sample(4, steps=2)
    assert (drawn.shape, labels) == ((4, *shape), None)
    assert 200 < drawn.mean() < 400
    assert (tmp_path / "run" / "samples" / "00000002.png").exists()


def test_a_row_depends_on_the_seed_and_its_number_alone():
    run = fastgen.load("wine")
    every, _ = run.sample(11, steps=3, seed=5, sampler="ddpm")
    some, _ = run.sample(4, steps=3, seed=5, sampler="ddpm", first=6, label=[0, 1, 2], batch_size=3)
    assert torch.allclose(every[6:10], some, rtol=1e-2)  # bf16, where it is computed, rounds with the batch
    other, _ = run.sample(11, steps=3, seed=6, sampler="ddpm")
    assert ((every - other).abs() > 0).all()


def test_signals_come_in_their_own_units():
    run = fastgen.load("waves")
    drawn, labels = run.sample(50)
    assert (drawn.shape, labels, run.values.features) == ((50, 2, 16), None, None)
    assert 200 < drawn[:, 0].mean() < 400
    assert drawn[:, 1].abs().mean() < 0.1


def test_sampling_needs_no_data(runs, tmp_path):
    shutil.copytree(runs / "waves", tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    (tmp_path / "run" / "config.yaml").write_text(config.replace("waves.npy", "gone.npy"))
    assert torch.equal(fastgen.load(tmp_path / "run").sample(3)[0], fastgen.load("waves").sample(3)[0])


def test_a_guide_has_the_same_values(runs, tmp_path):
    rows, labels = next(open_dataset("wine").batches(162))
    np.savez(tmp_path / "t.npz", x=rows * 2, y=labels)
    train(dataclasses.replace(TABLE, steps=1, data=DataConfig(str(tmp_path / "t.npz"))), tmp_path / "other")
    run = fastgen.load("wine")
    assert len(run.sample(2, guide=fastgen.load("wine", step=6), guidance=1.5)[0]) == 2
    with pytest.raises(ValueError, match="guide: expected a run with the values and the diffusion of 'wine'"):
        run.sample(2, guide=fastgen.load(tmp_path / "other"), guidance=1.5)


# Training


def test_what_training_leaves(runs):
    for name in ("wine", "waves"):
        with Image.open(runs / name / "samples" / "00000012.png") as picture:
            assert picture.size == (800, 400)
        assert (runs / name / "samples" / "00000012.png").stat().st_size < 150_000
    assert [line["step"] for line in read_metrics(runs / "wine" / "metrics.jsonl") if "held_out_loss" in line] == [12]
    described = checkpoint.load_document(checkpoint.at_step(runs / "wine" / "checkpoints", 12), "config")
    assert described["shape"] == [13]
    assert len(described["values"]["mean"]) == len(described["values"]["std"]) == 13


def test_a_resumed_run_is_bitwise_the_one_that_was_never_stopped(runs, tmp_path):
    shutil.copytree(runs / "wine", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "00000012")
    train(TABLE, tmp_path / "run", resume=True)
    folders = [folder / "checkpoints" / "00000012" for folder in (runs / "wine", tmp_path / "run")]
    whole, resumed = (json.loads((folder / "manifest.json").read_text()) for folder in folders)
    assert whole == resumed


def test_a_run_that_goes_on_keeps_its_statistics(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(5, 2, (30, 4)))
    config = dataclasses.replace(TABLE, data=DataConfig(str(tmp_path / "x.npy")), steps=2)
    train(config, tmp_path / "run")
    before = fastgen.load(tmp_path / "run").values
    np.save(tmp_path / "x.npy", np.random.default_rng(1).normal(50, 9, (60, 4)))
    train(dataclasses.replace(config, steps=4), tmp_path / "run", resume=True)
    after = fastgen.load(tmp_path / "run")
    assert (after.step, after.values) == (4, before)
    np.save(tmp_path / "x.npy", np.zeros((30, 5)))
    with pytest.raises(ValueError, match=r"resume: expected the run's own shape \[4\], got \[5\]"):
        train(dataclasses.replace(config, steps=5), tmp_path / "run", resume=True)


def test_one_feature_and_one_constant_train_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    np.save(tmp_path / "x.npy", np.full((9, 1), 3.25))
    train(dataclasses.replace(TABLE, data=DataConfig(str(tmp_path / "x.npy")), steps=2), tmp_path / "run")
    assert not list((tmp_path / "run" / "samples").iterdir())
    assert (fastgen.load(tmp_path / "run").sample(4)[0] == 3.25).all()


def test_one_feature_has_a_picture(tmp_path):
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 9)[:, None])
    train(dataclasses.replace(TABLE, data=DataConfig(str(tmp_path / "x.npy")), steps=2), tmp_path / "run")
    assert (tmp_path / "run" / "samples" / "00000002.png").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataConfig("wine", flip=True)}, "data.flip: expected False for tables and signals"),
        ({"data": DataConfig("wine", shift=1)}, "data.shift: expected 0 for tables and signals"),
        ({"model": VAEConfig(), "diffusion": None}, "model: expected a UNet for values, got VAE"),
        ({"data": DataConfig("wine", size=8)}, "size: expected None for wine .* which is read as values, got 8"),
        ({"data": DataConfig("digits", "values")}, "kind: expected 'images' or 'auto' for 'digits'"),
    ],
)
def test_what_values_cannot_be_trained_with(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(TABLE, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Files


def test_a_csv_has_the_features_names_and_the_labels(done, runs):
    assert done("sample", "wine", "--n", 5, "--label", 1, "--steps", 3) == ["wine/samples.csv"]
    header, *rows = rows_of(runs / "wine" / "samples.csv")
    assert header == [*open_dataset("wine").features, "label"]
    drawn, _ = fastgen.load("wine").sample(5, label=1, steps=3)
    assert torch.equal(torch.tensor([[float(cell) for cell in row[:-1]] for row in rows]), drawn)  # to the last bit
    assert [row[-1] for row in rows] == ["1"] * 5


def test_a_csv_without_names_or_labels(done, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(5, 2, (30, 2)))
    train(dataclasses.replace(TABLE, data=DataConfig(str(tmp_path / "x.npy")), steps=1), tmp_path / "run")
    done("sample", tmp_path / "run", "--n", 3, "--steps", 1, "--out", tmp_path / "x.csv")
    header, *rows = rows_of(tmp_path / "x.csv")
    assert (header, len(rows)) == (["x0", "x1"], 3)


def test_an_npz_is_read_again_and_an_npy_has_the_numbers_alone(done, tmp_path):
    for name in ("x.npz", "x.npy"):
        done("sample", "wine", "--n", 6, "--steps", 2, "--out", tmp_path / name)
    drawn, labels = fastgen.load("wine").sample(6, steps=2)
    again = open_dataset(tmp_path / "x.npz")
    x, y = again.reader.read(range(6))[:2]
    assert x.equal(drawn)
    assert y.equal(labels)
    assert again.features == open_dataset("wine").features
    assert (np.load(tmp_path / "x.npy") == drawn.numpy()).all()
    assert done("sample", "waves", "--n", 2, "--steps", 1) == ["waves/samples.npz"]
    assert open_dataset("waves/samples.npz", kind="values").shape == (2, 16)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sample wine --out x.png", "out: expected a file ending in one of .csv, .npz, .npy for a table's rows, got 'x.png'"),
        ("sample wine --out folder", "for a table's rows, got 'folder'"),
        ("sample waves --out x.csv", "out: expected a file ending in one of .npz, .npy for signals, got 'x.csv'"),
        ("sample wine --out image.png/x.csv", "out: expected a place that can be written"),
        ("sample wine --preview-every 2", "preview_every: expected none for tables and signals, got 2"),
        ("sample wine --label 3", "label: expected a class from 0 to 2, got 3"),
        (
            "inpaint wine image.png image.png",
            "run: expected a run of images, got a run of values, 'wine'; only `sample` takes one",
        ),
        ("edit wine image.png", "run: expected a run of images, got a run of values"),
        ("interpolate waves image.png image.png", "run: expected a run of images, got a run of values"),
        ("upscale waves image.png", "run: expected a run of images, got a run of values"),
        ("export wine", "run: expected one of a UNet of diffusers"),
        ("train wine --data.flip --out new", "data.flip: expected False for tables and signals, got True"),
        ("train digits --data.source wine --out new", "model.multipliers: expected one level for the rows of a table"),
        ("train mnist-vae --data.source wine --data.shift 0 --out new", "model: expected a UNet for values, got VAE"),
        ("train wine --data.kind images --out new", "kind: expected 'values' or 'auto' for 'wine', which is a table"),
    ],
)
def test_what_is_refused(arguments, said, refused):
    assert said in refused(*arguments.split())


def test_applications_refuse_a_run_of_values():
    run, images = fastgen.load("wine"), torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    for call in (
        lambda: inpaint(run, images, images == 0),
        lambda: edit(run, images, 0.5),
        lambda: interpolate(run, images[0], images[0]),
        lambda: upscale(run, images),
    ):
        with pytest.raises(ValueError, match="run: expected a run of images, got a run of values, 'wine'"):
            call()


def test_info_counts_the_memory_of_a_table(done):
    assert done("info", "--preset", "wine")[0].split() == ["batch", "64", "rows", "of", "13,", "3", "classes"]
