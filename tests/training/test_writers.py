"""Where metrics and sample grids go beside metrics.jsonl."""

import dataclasses
import io
import shutil
import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from PIL import Image

from fastgen.cli import main
from fastgen.errors import expect_package
from fastgen.training.metrics_log import read_metrics
from fastgen.training.progress import Progress
from fastgen.training.train import train
from tests.helpers.tiny_runs import VAE

LOGGED = dataclasses.replace(VAE, sample_every=6)  # which writes samples and reconstructions


def interrupted_and_resumed(config, run):
    """Ends as if the first process had died after step 11, with what it had written, and a second one had gone on from step 6."""
    train(config, run)
    shutil.rmtree(run / "checkpoints" / "00000012")
    train(config, run, resume=True)


def numbers(run):
    """All that metrics.jsonl says, as (step, name, value)."""
    lines = read_metrics(run / "metrics.jsonl")
    return sorted((line["step"], name, value) for line in lines for name, value in line.items() if name != "step")


def pictures(run):
    """(step, name, pixels) of the grids."""
    names = {"": "samples", "-reconstructed": "reconstructed"}
    paths = {(step, names[end]): run / "samples" / f"{step:08d}{end}.png" for step in (6, 12) for end in names}
    return {place: pixels(path) for place, path in paths.items()}


def pixels(file):
    return np.asarray(Image.open(file).convert("RGB"))


# TensorBoard


def test_tensorboard_has_every_number_once_and_the_grids(tmp_path):
    pytest.importorskip("tensorboard", reason="needs TensorBoard: pip install tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    interrupted_and_resumed(dataclasses.replace(LOGGED, log_to="tensorboard"), run)
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = sorted((event.step, name, event.value) for name in events.Tags()["scalars"] for event in events.Scalars(name))
    assert [row[:2] for row in found] == [row[:2] for row in numbers(run)]
    np.testing.assert_allclose([row[2] for row in found], [row[2] for row in numbers(run)], rtol=1e-6)  # fp32
    images = [(event.step, name, event) for name in events.Tags()["images"] for event in events.Images(name)]
    assert sorted(image[:2] for image in images) == sorted(pictures(run))
    for step, name, event in images:
        np.testing.assert_array_equal(pixels(io.BytesIO(event.encoded_image_string)), pictures(run)[step, name])


# W&B, by a stand-in of the few names that are used


class FakeRun:
    def __init__(self, settings):
        self.settings, self.logged, self.finished = settings, [], False

    def log(self, values, step):
        assert not self.finished
        self.logged += [(step, name, value) for name, value in values.items()]

    def finish(self):
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None, origin="stand-in")
    module.Error = type("Error", (Exception,), {})
    module.Image = pixels
    module.runs = []
    module.init = lambda **settings: module.runs.append(FakeRun(settings)) or module.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    return module


def test_wandb_has_every_number_and_the_grids(wandb, tmp_path):
    run = tmp_path / "run"
    config = dataclasses.replace(LOGGED, log_to="wandb")
    interrupted_and_resumed(config, run)
    first, second = wandb.runs
    assert first.finished
    assert second.finished
    assert first.settings == second.settings  # one run of W&B, since its id was kept
    assert (first.settings["project"], first.settings["name"], first.settings["dir"]) == ("fastgen", "run", str(run))
    assert first.settings["config"]["batch_size"] == config.batch_size
    assert [row[0] for row in first.logged] == sorted(row[0] for row in first.logged)  # W&B takes no earlier step

    assert {row[0] for row in second.logged} == {10, 12}
    logged = [row for row in first.logged if row[0] <= 6] + second.logged
    assert sorted(row for row in logged if isinstance(row[2], float)) == numbers(run)
    images = {row[:2]: row[2] for row in logged if isinstance(row[2], np.ndarray)}
    assert images.keys() == pictures(run).keys()
    for place, image in pictures(run).items():
        np.testing.assert_array_equal(images[place], image)


def test_wandb_takes_the_project_that_its_variable_names(wandb, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Progress(tmp_path / folder, 0, dataclasses.replace(LOGGED, log_to="wandb")).close()
    assert [run.settings["project"] for run in wandb.runs] == ["digits", "digits"]
    assert wandb.runs[0].settings["id"] != wandb.runs[1].settings["id"]


def test_wandb_that_cannot_start_says_so(wandb, monkeypatch, tmp_path):
    def refused(**settings):
        raise wandb.Error("no login")

    monkeypatch.setattr(wandb, "init", refused)
    with pytest.raises(ValueError, match="log_to: wandb cannot start: no login"):
        Progress(tmp_path, 0, dataclasses.replace(LOGGED, log_to="wandb"))


# Both


def test_other_ranks_write_nothing(wandb, monkeypatch, tmp_path):
    monkeypatch.setattr("fastgen.training.progress.rank", lambda: 1)
    progress = Progress(tmp_path, 0, dataclasses.replace(LOGGED, log_to="wandb"))
    progress.write(step=6)
    progress.close()
    assert wandb.runs == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_without_the_package_training_does_not_begin(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("fastgen.errors.find_spec", lambda package: None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "digits", "--out", str(tmp_path / "run"), "--log-to", name])
    assert stop.value.code == 2
    assert f"log_to {name} needs {name}: pip install {name}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_packages_name_is_no_package(monkeypatch, tmp_path):
    (tmp_path / "of_this_name").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="this needs of_this_name: pip install of_this_name"):
        expect_package("of_this_name", "this")
    (tmp_path / "of_this_name" / "__init__.py").touch()
    expect_package("of_this_name", "this")
