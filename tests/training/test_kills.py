"""A run that is killed at any moment goes on, or begins again, and ends with the same bytes; a folder is one process's; a full
disk and a reader that dies end training in one line."""

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgen import load
from fastgen.atomic import write_whole
from fastgen.config.files import load_yaml, save_yaml
from fastgen.runs import checkpoint
from fastgen.training.lock import locked
from fastgen.training.metrics_log import read_metrics
from fastgen.training.state import expect_new
from fastgen.training.train import train
from tests.helpers import kills, tiny_runs
from tests.helpers.command import start

TINY = dataclasses.replace(tiny_runs.LABELLED, steps=4, checkpoint_every=2, keep=1, log_every=1)

# Each of the some hundred calls takes seconds: all of them are for `pytest -m exhaustive`.
EVERY = pytest.mark.parametrize(
    "every", [31, pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.exhaustive)]
)
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def end_of(run):
    return json.loads((checkpoint.at_step(run / "checkpoints", 4) / "manifest.json").read_text())


def go_on(config, out):
    """As a user does: the same command, and with --resume where it says so."""
    holds_a_run = bool(checkpoint.steps(out / "checkpoints"))
    if holds_a_run:
        with pytest.raises(ValueError, match="already holds a run; add --resume"):
            train(config, out)
    train(config, out, resume=holds_a_run)


def go_on_resumed(config, out):
    train(dataclasses.replace(load_yaml(out / "config.yaml"), steps=4), out, resume=True)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Two runs that nothing happened to: to step 4, and one that stopped at step 2."""
    folder = tmp_path_factory.mktemp("calm")
    with tiny_runs.without_pictures():
        kills.done(lambda: train(TINY, folder / "four"))
        kills.done(lambda: train(dataclasses.replace(TINY, steps=2, lr_decay="constant"), folder / "two"))
        kills.done(lambda: train(dataclasses.replace(TINY, lr_decay="constant"), folder / "constant"))
    return folder


def check_kills(every, first, again, prepare, expected, tmp_path):
    """first(out), killed at each `every`-th call, and then again(out), leads to what is expected."""
    with tiny_runs.without_pictures():
        for call in range(0, 10_000, every):
            out = tmp_path / str(call)
            prepare(out)
            if not kills.killed_at(call, lambda out=out: first(out), out):
                assert call > 30  # the calls are seen
                return
            kills.done(lambda out=out: again(out))
            assert end_of(out) == expected, call
            assert [line["step"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line][-2:] == [3, 4]
            held = {path.name for path in out.iterdir()}
            assert held <= {"checkpoints", "config.yaml", "history.jsonl", "loss.png", "metrics.jsonl", "samples"}, call
            assert [path.name for path in (out / "checkpoints").iterdir()] == ["00000004"], call


def copy_of(run):
    return lambda out: shutil.copytree(run, out)


@forks
@EVERY
def test_a_killed_start_begins_again_or_goes_on(every, calm, tmp_path):
    check_kills(
        every, lambda out: train(TINY, out), lambda out: go_on(TINY, out), lambda out: None, end_of(calm / "four"), tmp_path
    )


@forks
@EVERY
def test_a_killed_resume_goes_on(every, calm, tmp_path):
    """One that changes a setting: it may be killed while that is noted."""
    resume = lambda out: go_on_resumed(None, out)  # noqa: E731
    check_kills(every, resume, resume, copy_of(calm / "two"), end_of(calm / "constant"), tmp_path)


# Starts that were not finished


@pytest.mark.parametrize(
    ("left", "held"),
    [
        ([], None),
        ([".lock"], None),
        (["samples/"], None),
        ([".lock", ".config.yaml.tmp"], None),
        (["config.yaml", ".torchrun", "metrics.jsonl", "samples/00000002.png", "checkpoints/.00000002.tmp/ema"], None),
        (["samples/holiday.png"], "samples"),
        (["config.yaml", "thesis.tex"], "thesis.tex"),
        ([".git/"], ".git"),
    ],
)
def test_what_a_start_left_is_begun_again_and_all_else_is_left_alone(left, held, tmp_path):
    for name in left:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_text("x")
    if held is None:
        expect_new(tmp_path)
    else:
        with pytest.raises(ValueError, match=f"expected a new or empty folder, .* holds {held}"):
            expect_new(tmp_path)


# One process at a time


def test_a_folder_is_trained_into_by_one_process(tmp_path, unpictured):
    said = rf"expected a run that no other process trains, got .*, which process {os.getpid()} on \S+ trains"
    with locked(tmp_path / "run", new=True):
        for resume in (False, True):
            with pytest.raises(ValueError, match=said), locked(tmp_path / "run", new=not resume):
                pass
    assert list((tmp_path / "run").iterdir()) == []
    with locked(tmp_path / "run", new=False):
        pass


@forks
def test_a_lock_ends_with_its_process_whatever_it_forked(tmp_path):
    read, written = os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(tmp_path / "run", new=True):
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            os.write(written, b"x")
            time.sleep(60)
        os._exit(0)
    os.read(read, 1)
    with pytest.raises(ValueError, match=f"process {holder} on"), locked(tmp_path / "run", new=True):
        pass
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    with locked(tmp_path / "run", new=True):
        pass


# Settings


def test_changed_settings_are_said_and_kept(calm, tmp_path, capsys, unpictured):
    copy_of(calm / "two")(tmp_path / "run")
    first = load_yaml(tmp_path / "run" / "config.yaml")
    for steps, lr in ((3, 1e-3), (4, 2e-3)):
        train(dataclasses.replace(first, steps=steps, lr=lr), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "lr is 0.001 from step 2 on, and was 0.003" in said
    assert "steps is 4 from step 3 on, and was 3" in said
    lines = [(line["step"], line["settings"]["lr"]) for line in read_metrics(tmp_path / "run" / "history.jsonl")]
    assert lines == [(0, 3e-3), (2, 1e-3), (3, 2e-3)]
    with pytest.raises(ValueError, match="steps: expected at least 4, which the run has done, got 3"):
        train(dataclasses.replace(first, steps=3), tmp_path / "run", resume=True)


def test_other_data_are_said(tmp_path, capsys, unpictured):
    for i in range(40):
        tiny_runs.picture(tmp_path / "data" / f"{i}.png", seed=i)
    config = dataclasses.replace(TINY, steps=1, data=dataclasses.replace(TINY.data, source=str(tmp_path / "data")))
    train(config, tmp_path / "run")
    train(dataclasses.replace(config, steps=2), tmp_path / "run", resume=True)
    assert "are others" not in capsys.readouterr().err
    for i in range(40):
        tiny_runs.picture(tmp_path / "data" / f"{i}.png", seed=i + 1)
    train(dataclasses.replace(config, steps=3), tmp_path / "run", resume=True)
    assert "the data from step 2 on are others" in capsys.readouterr().err


# What fails on the way


def test_samples_that_cannot_be_drawn_do_not_stop_training(tmp_path, capsys, monkeypatch):
    def fail(self, step):
        assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == step  # saved before
        raise RuntimeError("no memory for pictures")

    monkeypatch.setattr("fastgen.training.train.Preview.__call__", fail)
    assert train(dataclasses.replace(TINY, sample_every=2), tmp_path / "run").step == 4
    assert "no samples at step 2: RuntimeError: no memory for pictures" in capsys.readouterr().err
    assert load(tmp_path / "run").step == 4


STREAMED = """
import sys
import fastgen.data.indexed, fastgen.training.train
from fastgen.cli import main
fastgen.data.indexed.free_memory = lambda device: 0
def fail(*arguments, take=fastgen.training.train.train_step, calls=[], **settings):
    calls.append(1)
    if len(calls) == 4:
        raise {error}
    return take(*arguments, **settings)
if "{error}" != "None":
    fastgen.training.train.train_step = fail
main(sys.argv[1:])
"""


def streamed(folder, error=None):
    """A training of which readers in processes of their own are part."""
    for i in range(20):
        tiny_runs.picture(folder / "data" / f"{i}.png", seed=i)
    save_yaml(dataclasses.replace(TINY, steps=100_000), folder / "tiny.yaml")
    (folder / "streamed.py").write_text(STREAMED.format(error=error))
    options = ["--config", "tiny.yaml", "--data.source", "data", "--data.workers", 2, "--checkpoint-every", 100_000]
    return start("train", "digits", *options, "--out", "run", cwd=folder, program=["streamed.py"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the readers in /proc")
def test_a_reader_that_is_killed_ends_training_in_a_line(tmp_path):
    process = streamed(tmp_path)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    readers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(readers[-1]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, ""), err
    assert "fastgen: error: data.workers: expected processes that read until the end" in err
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code"), [("OSError(28, 'No space left on device')", 2), ("RuntimeError('a fault of ours')", 1)]
)
def test_an_error_beside_readers_ends_all_of_them(error, code, tmp_path):
    process = streamed(tmp_path, error)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert eval(error).args[-1] in err.splitlines()[-1]


# Files


def test_a_file_follows_no_link_and_has_the_mode_of_the_umask(tmp_path):
    (tmp_path / "mine").write_text("x")
    for name in ("a", ".a.tmp"):
        (tmp_path / name).symlink_to("mine")
    write_whole(tmp_path / "a", lambda file: file.write(b"new"))
    checkpoint.save(tmp_path / "00000001", {"model": {}}, {})
    assert (tmp_path / "mine").read_text() == "x"
    assert (tmp_path / "a").read_bytes() == b"new"
    assert not (tmp_path / "a").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000001", "a", "mine"]
    modes = {path.stat().st_mode & 0o777 for path in [tmp_path / "a", *(tmp_path / "00000001").iterdir()]}
    assert modes == {(tmp_path / "mine").stat().st_mode & 0o777}


def test_a_full_disk_is_said_with_the_file_and_the_need(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    said = r"config.yaml: expected \d+\.\d MB of disk space, got \d+\.\d MB free"
    with pytest.raises(OSError, match=said):
        save_yaml(TINY, tmp_path / "config.yaml")
    with pytest.raises(OSError, match=r"00000001: expected 4\.0 MB of disk space"):
        checkpoint.save(tmp_path / "00000001", {"model": {"a": torch.zeros(1_000_000)}}, {})
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_checkpoint_of_ours_is_left_alone(tmp_path):
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / f"{step:08d}", {"model": {}}, {})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "00000000").symlink_to("elsewhere")
    (tmp_path / ".00000009.tmp").symlink_to("elsewhere")
    for name in ("19", "1²", "0000000001", ".x.tmp", ".00000008.tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / ".y.tmp").touch()
    (tmp_path / "00000007").touch()
    before = {path.name for path in tmp_path.iterdir()}
    checkpoint.drop_old(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == [0, 3]
    assert before - {path.name for path in tmp_path.iterdir()} == {"00000001", "00000002", ".00000008.tmp"}
