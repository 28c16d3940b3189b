"""`fastgen sample` writes as it draws, goes on where it was stopped, and overwrites nothing unasked."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

import fastgen
from fastgen.cli import main
from fastgen.runs.run import Run
from tests.helpers import kills, tiny_runs


@pytest.fixture(scope="module")
def labelled(tiny_run, tmp_path_factory):
    return tiny_run("labelled", tmp_path_factory.mktemp("runs") / "labelled")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def draw(run, out, *options):
    main([str(a) for a in ("sample", run, "--steps", 1, "--batch-size", 2, "--out", out, *options)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_shards_are_numbered_by_their_first(labelled, tmp_path):
    draw(labelled, "whole", "--n", 6)
    draw(labelled, "shards", "--n", 3)
    draw(labelled, "shards", "--n", 3, "--first", 3)
    assert contents(tmp_path / "shards").keys() == contents(tmp_path / "whole").keys()
    assert sorted(contents(tmp_path / "whole"))[5] == "000005-5.png"


def test_nothing_is_overwritten_unasked(labelled, tmp_path, refused, done):
    draw(labelled, "mixed", "--n", 4)
    (tmp_path / "mine").mkdir()
    Image.new("L", (64, 64)).save("mine/000000.png")
    draw(labelled, "a.npz", "--n", 2)
    before = contents(tmp_path)
    same = ("sample", labelled, "--steps", 1, "--batch-size", 2, "--n", 2, "--out")
    for out, *options in (["mixed", "--seed", 1], ["mixed", "--label", 3], ["mine"], ["a.npz"]):
        assert "--overwrite" in refused(*same, out, *options)
    assert contents(tmp_path) == before
    assert done(*same, "a.npz", "--seed", 1, "--overwrite") == ["a.npz"]
    assert done(*same, "mixed", "--seed", 1, "--overwrite") == ["mixed"]
    assert contents(tmp_path) != before
    command = ("sample", labelled, "--steps", 1, "--n", 1)
    assert [done(*command)[0][-13:], done(*command)[0][-13:]] == ["d/samples.png", "samples-1.png"]


@pytest.mark.parametrize("out", ["folder", "a.npz", "a.csv"])
def test_what_was_drawn_is_not_drawn_again(out, labelled, tmp_path, tiny_run, monkeypatch, capsys):
    run = labelled if out != "a.csv" else table(tmp_path)
    draw(run, f"calm-{out}", "--n", 6)
    asked, take = [], Run.sample_in_batches

    def stopped_after_two(self, n, **options):
        asked.append(n)
        for i, batch in enumerate(take(self, n, **options)):
            if i == 2 and len(asked) == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(Run, "sample_in_batches", stopped_after_two)
    with pytest.raises(SystemExit, match="130"):
        draw(run, out, "--n", 6)
    assert "stopped: 4 of 6 are drawn; the same command goes on" in capsys.readouterr().err
    draw(run, out, "--n", 6)
    assert asked == [6, 2]
    if out == "folder":
        assert contents(tmp_path / out) == contents(tmp_path / "calm-folder")
        draw(run, out, "--n", 8)  # and further
        assert asked[2:] == [2]
    elif out == "a.npz":
        ours, calm = np.load(out), np.load("calm-a.npz")
        assert all(np.array_equal(ours[name], calm[name]) for name in ("images", "labels"))
    else:
        assert (tmp_path / out).read_text() == (tmp_path / "calm-a.csv").read_text()
    assert not list(tmp_path.glob(".*"))


def table(folder):
    import dataclasses

    from fastgen.training.train import train

    np.save(folder / "table.npy", np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32))
    model = dataclasses.replace(tiny_runs.LABELLED.model, multipliers=(1,))
    data = dataclasses.replace(tiny_runs.LABELLED.data, source=str(folder / "table.npy"))
    with tiny_runs.without_pictures():
        train(dataclasses.replace(tiny_runs.LABELLED, data=data, model=model, steps=1), folder / "table")
    return folder / "table"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("out", ["folder", "a.npz"])
@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_killed_while_it_writes_it_goes_on(every, out, labelled, tmp_path):
    kills.done(lambda: draw(labelled, "calm" if out == "folder" else "calm.npz", "--n", 6))
    for call in range(0, 1_000, every):
        folder = tmp_path / str(call)
        folder.mkdir()
        if not kills.killed_at(call, lambda folder=folder: draw(labelled, folder / out, "--n", 6), folder):
            assert call > 8
            return
        kills.done(lambda folder=folder: draw(labelled, folder / out, "--n", 6))
        if out == "folder":
            assert contents(folder / out) == contents(tmp_path / "calm")
        else:
            np.testing.assert_array_equal(np.load(folder / out)["images"], np.load(tmp_path / "calm.npz")["images"])
        assert [path.name for path in folder.iterdir()] == [out]


def test_a_vae_of_nan_is_said(tiny_run, tmp_path):
    run = fastgen.load(tiny_run("vae", tmp_path / "vae"))
    with torch.no_grad():
        next(run.model.decoder.parameters()).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="NaN"):
        run.sample(2)
