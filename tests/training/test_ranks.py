"""Training in two processes, connected by gloo, that torchrun starts."""

import contextlib
import dataclasses
import json
import os
import random
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from fastgen import load
from fastgen.config.files import save_yaml
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.ranks import expect_own_device
from fastgen.training.train import train
from tests.helpers import torchrun
from tests.helpers.ranks_program import DROPOUT, DROPOUT_SHARDED, PLAIN, SHARDED_BF16, forget_end

NAMES = ("model", "ema", "optimizer")


@pytest.fixture(scope="session")
def runs(made_once):
    """A folder with the run "one" of this process, and those of the two that go through tests.helpers.ranks_program."""

    def make(folder):
        train(PLAIN, folder / "one")
        for name in ("one-then-copied", "one-then-sharded"):
            forget_end(folder / "one", folder / name, PLAIN.steps)
        done = torchrun.run("-m", "tests.helpers.ranks_program", folder, cwd=folder)
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(done.stdout)

    return made_once("ranks", make)


def checkpoint_of(run, step=PLAIN.steps):
    return checkpoint.at_step(run / "checkpoints", step)


def manifest(run, step):
    return json.loads((checkpoint_of(run, step) / "manifest.json").read_text())


def losses(run):
    return torch.tensor([line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line])


@pytest.mark.parametrize("name", ["copied", "accumulated", "sharded", "one-then-copied", "one-then-sharded"])
def test_two_ranks_train_as_one(runs, name):
    """1 x 8, 2 x 4 and 2 x 2 x accumulation 2, copied and sharded, and a run of one process that two go on with: losses, weights,
    average and optimizer are the same but for the order of sums. Flips, shifts, times, label dropout and noise are drawn."""
    assert len(losses(runs / name)) == PLAIN.steps
    torch.testing.assert_close(losses(runs / name), losses(runs / "one"), rtol=1e-5, atol=0)
    for kind in NAMES:
        one, two = (checkpoint.load_tensors(checkpoint_of(runs / run), kind) for run in ("one", name))
        assert one.keys() == two.keys()
        torch.testing.assert_close(two, one, rtol=1e-4, atol=2e-6)
    assert load(runs / name).sample(1, steps=2)[0].shape == (1, 1, 8, 8)


def test_one_process_goes_on_with_what_two_began(runs, tmp_path):
    run = forget_end(runs / "sharded", tmp_path / "run", PLAIN.steps)
    train(PLAIN, run, resume=True)
    torch.testing.assert_close(losses(run), losses(runs / "one"), rtol=1e-5, atol=0)
    one, two = (checkpoint.load_tensors(checkpoint_of(r), "model") for r in (runs / "one", run))
    torch.testing.assert_close(two, one, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "config"), [("dropout", DROPOUT), ("dropout-sharded", DROPOUT_SHARDED), ("sharded-bf16", SHARDED_BF16)]
)
def test_resumed_on_as_many_ranks_is_bitwise_uninterrupted(runs, name, config):
    """With each rank's generators, which dropout draws from, and its masters."""
    assert manifest(runs / f"{name}-resumed", config.steps) == manifest(runs / name, config.steps)
    states = checkpoint.load_tensors(checkpoint_of(runs / name, config.steps), "rng")
    assert not torch.equal(states["cpu"], states["cpu:1"])


@pytest.mark.parametrize("name", ["copied-bf16", "sharded-bf16"])
def test_two_ranks_in_bf16_train_as_one_in_fp32_but_for_rounding(runs, name):
    torch.testing.assert_close(losses(runs / name), losses(runs / "one"), rtol=2e-3, atol=0)
    tensors = checkpoint.load_tensors(checkpoint_of(runs / name), "model")
    assert {x.dtype for x in tensors.values()} == {torch.float32}
    assert any((x != x.bfloat16()).any() for x in tensors.values())


def test_the_first_rank_alone_writes(runs):
    said = (runs / "said").read_text()
    assert "rank 0 wrote []" in said  # it is not watched
    assert "rank 1 wrote []" in said
    assert (runs / "sharded" / "samples" / f"{PLAIN.steps:08d}.png").exists()
    assert (runs / "sharded" / "loss.png").exists()


def test_shards_see_the_same_samples_as_one_process(runs):
    held_out = [read_metrics(runs / name / "metrics.jsonl")[-1]["held_out_loss"] for name in ("one", "sharded")]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)


def test_shards_in_fp16(runs):
    assert losses(runs / "sharded-fp16").isfinite().all()
    assert (checkpoint_of(runs / "sharded-fp16", 3) / "scaler.json").exists()


# What can go wrong


def send(process, rank, how):
    """A signal to a rank that a torchrun has started; it waits for one that is just being started again."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(KeyError, FileNotFoundError, ProcessLookupError):
            os.kill(ranks_of(process)[rank], how)
            return
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def ranks_of(process):
    """The process ids of the ranks. Raises FileNotFoundError or ProcessLookupError where one ends meanwhile."""
    found = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = dict(pair.partition("=")[::2] for pair in Path(f"/proc/{child}/environ").read_text().split("\0"))
        if "TORCHELASTIC_RUN_ID" in environment:
            found[int(environment["RANK"])] = int(child)
    return found


def wait_past(process, run, step):
    """Waits for a checkpoint beyond a step, and returns the last one's."""
    deadline = time.monotonic() + 120
    while True:
        steps = checkpoint.steps(run / "checkpoints")
        if steps and steps[-1] > step:
            return steps[-1]
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def begin(config, folder, *options):
    save_yaml(dataclasses.replace(config, checkpoint_every=1), folder / "tiny.yaml")
    return torchrun.start(*options, "-m", "fastgen", "train", "digits", "--config", "tiny.yaml", "--out", "run", cwd=folder)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the ranks in /proc")
def test_a_killed_rank_starts_again_from_the_last_checkpoint(runs, tmp_path):
    process = begin(DROPOUT, tmp_path, "--max-restarts", 1)
    wait_past(process, tmp_path / "run", 8)
    send(process, 1, signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "rank 0 stops: another rank is gone" in err
    assert "Traceback" not in err
    assert len(re.findall("to draw more", out)) == 1
    assert manifest(tmp_path / "run", DROPOUT.steps) == manifest(runs / "dropout", DROPOUT.steps)
    assert [line["step"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line] == list(range(1, 25))


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the ranks in /proc")
@pytest.mark.parametrize("silent", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_silent_rank_is_named(silent, tmp_path):
    """The others do not wait for a rank that was stopped longer than they were told; torchrun ends it, too."""
    process = begin(dataclasses.replace(PLAIN, steps=100_000, rank_timeout=0.05), tmp_path)
    wait_past(process, tmp_path / "run", 3)
    stopped = ranks_of(process)[silent]
    send(process, silent, signal.SIGSTOP)
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < began + 60:
        with contextlib.suppress(KeyError, FileNotFoundError, ProcessLookupError):
            if 1 - silent not in ranks_of(process):
                os.kill(stopped, signal.SIGKILL)  # torchrun would, 30 s later
        time.sleep(0.1)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    # Through the store that rank 0 holds nothing can be learnt of others when it is stopped.
    who = f"rank 1 (process {stopped} on {socket.gethostname()})" if silent else "the store of rank 0 at localhost"
    assert f"fastgen: error: {who} has been silent for 3 s" in err


@pytest.mark.slow
@pytest.mark.parametrize("config", [DROPOUT, DROPOUT_SHARDED], ids=["copied", "sharded"])
def test_a_rank_killed_five_times_at_random(config, tmp_path):
    """It ends with the weights of a run that nothing happened to."""
    config = dataclasses.replace(config, steps=60)
    (tmp_path / "calm").mkdir()
    assert begin(config, tmp_path / "calm").wait(timeout=300) == 0

    generator, step = random.Random(0), 0
    process = begin(config, tmp_path, "--max-restarts", 5)
    for _ in range(5):
        step = wait_past(process, tmp_path / "run", step + generator.randint(0, 6))
        time.sleep(generator.uniform(0, 0.05))
        send(process, generator.randint(0, 1), signal.SIGKILL)
        assert step < config.steps
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert manifest(tmp_path / "run", config.steps) == manifest(tmp_path / "calm" / "run", config.steps)


@pytest.mark.parametrize(
    ("how", "to_one"),
    [
        (signal.SIGTERM, False),
        pytest.param(signal.SIGTERM, True, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, False, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_all_at_the_same_step(how, to_one, tmp_path):
    process = begin(dataclasses.replace(PLAIN, steps=100_000), tmp_path)
    wait_past(process, tmp_path / "run", 3)
    if to_one:
        send(process, 1, how)
    else:
        process.send_signal(how)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "fastgen: error" not in err
    (step,) = re.findall(r"stopped and saved at step (\d+) of 100000", out)
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == int(step)
    assert load(tmp_path / "run").step == int(step)


def test_a_rank_that_fails_ends_all_with_its_error(tmp_path):
    (tmp_path / "failing.py").write_text(
        "import sys, fastgen.training.train\n"
        "from fastgen.cli import main\n"
        "from fastgen.training.ranks import rank\n"
        "def train_step(*arguments, take=fastgen.training.train.train_step, calls=[], **settings):\n"
        "    calls.append(1)\n"
        "    if rank() == 1 and len(calls) == 4:\n"
        "        raise ValueError('the disk is on fire')\n"
        "    return take(*arguments, **settings)\n"
        "fastgen.training.train.train_step = train_step\n"
        "main(sys.argv[1:])\n"
    )
    save_yaml(dataclasses.replace(PLAIN, checkpoint_every=1), tmp_path / "tiny.yaml")
    options = ["--max-restarts", 0, "failing.py", "train", "digits", "--config", "tiny.yaml", "--out", "run"]
    done = torchrun.run(*options, cwd=tmp_path)
    assert done.returncode != 0
    assert "fastgen: error: the disk is on fire" in done.stderr
    root_cause = done.stderr[done.stderr.index("Root Cause") :]
    assert re.search(r"rank +: 1 ", root_cause)
    assert "ValueError: the disk is on fire" in root_cause
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [2, 3]
    assert load(tmp_path / "run").step == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 7}, r"batch_size: expected a multiple of 2, 2 ranks times the accumulation, got 7"),
        ({"batch_size": 10, "accumulation": 2}, r"batch_size: expected a multiple of 4, 2 ranks times the accumulation, got 10"),
    ],
)
def test_settings_that_do_not_fit_two_ranks(settings, message, tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.training.train.world", lambda: 2)
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(PLAIN, **settings), tmp_path / "run")


def test_ranks_share_no_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    expect_own_device("auto", torch.device("cuda"))
    with pytest.raises(ValueError, match="device: expected auto, cpu or cuda: each rank has a GPU of its own, got 'cuda:0'"):
        expect_own_device("cuda:0", torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="device: expected cpu, or 2 GPUs for 2 ranks, got 'auto'"):
        expect_own_device("auto", torch.device("cuda"))
    expect_own_device("cpu", torch.device("cpu"))


def test_a_run_of_another_torchrun_is_not_gone_on_with(runs, tmp_path, monkeypatch):
    """Where processes started again find a run that they did not begin, they refuse it as the first ones did."""
    run = forget_end(runs / "copied", tmp_path / "run", PLAIN.steps)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "another")
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(PLAIN, run)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", (run / ".torchrun").read_text())
    assert train(PLAIN, run).step == PLAIN.steps
