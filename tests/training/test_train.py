"""Training end to end on 8x8 digits, in the processes that a user starts; and the functions that the loop is made of."""

import dataclasses
import itertools
import json
import math
import re
import signal
import time

import pytest
import torch
from PIL import Image
from torch import nn

from fastgen import UNet, load, noise_streams
from fastgen.cli import main
from fastgen.config.files import save_yaml
from fastgen.config.schema import DataConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.diffusion.objective import DiffusionObjective
from fastgen.diffusion.process import Diffusion
from fastgen.functional import noise_key
from fastgen.optim import AdamWEMA
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.state import restore_state, save_state
from fastgen.training.train import learning_rate, train, train_step
from tests.helpers.command import run, start

TINY = TrainConfig(
    data=DataConfig("digits", flip=True, shift=1),
    model=UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), groups=4, dropout=0.1),
    diffusion=DiffusionConfig(label_dropout=0.1),
    steps=12,
    batch_size=50,
    accumulation=2,
    warmup=3,
    lr=1e-3,
    ema=0.9,
    threads=1,
    log_every=5,
    sample_every=100,
    checkpoint_every=100,
    keep=100,
)  # 50 · 12 samples are a third of an epoch of the 1,617: the longer runs below cross its end


def manifests(run_folder):
    steps = checkpoint.steps(run_folder / "checkpoints")
    return {s: json.loads((checkpoint.at_step(run_folder / "checkpoints", s) / "manifest.json").read_text()) for s in steps}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    save_yaml(dataclasses.replace(TINY, steps=40), folder / "tiny.yaml")
    assert run("train", "digits", "--config", "tiny.yaml", "--out", "run", cwd=folder).returncode == 0
    return folder


def wait_for_step(process, run_folder, step):
    deadline = time.monotonic() + 120
    while step not in checkpoint.steps(run_folder / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    "stops",
    [
        ((13, signal.SIGTERM), (26, signal.SIGKILL)),
        pytest.param(((1, signal.SIGINT), (20, signal.SIGTERM), (33, signal.SIGKILL)), marks=pytest.mark.slow),
    ],
)
def test_stopped_and_resumed_is_bitwise_uninterrupted(stops, uninterrupted, tmp_path):
    """Weights, average, optimizer and generators: every file of the last checkpoint has the same sha256. A signal that may be
    answered saves and says how to go on."""
    folder, options = tmp_path / "runs" / "digits", ["--config", uninterrupted / "tiny.yaml"]
    for step, how in stops:
        process = start("train", "digits", *options, "--checkpoint-every", 1, cwd=tmp_path)
        wait_for_step(process, folder, step)
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
        stopped_at = checkpoint.steps(folder / "checkpoints")[-1]
        assert step <= stopped_at < 40
        if how == signal.SIGKILL:
            assert process.returncode == -how
        else:
            assert process.returncode == 128 + how
            assert "Traceback" not in err
            assert f"stopped and saved at step {stopped_at} of 40" in out
            assert "fastgen train digits --out runs/digits --resume" in out
            assert load(folder).step == stopped_at
        options = ["--resume"]

    resumed = run("train", "digits", "--resume", "--checkpoint-every", 100, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert manifests(folder)[40] == manifests(uninterrupted / "run")[40]
    steps = [line["step"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    assert steps == sorted(set(steps))
    assert steps[-1] == 40


def test_a_run_is_what_the_readme_says(uninterrupted):
    folder = uninterrupted / "run"
    assert {p.name for p in folder.iterdir()} == {"checkpoints", "config.yaml", "loss.png", "metrics.jsonl", "samples"}
    lines = read_metrics(folder / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(5, 41, 5))
    assert all(math.isfinite(line["loss"]) and line["images_per_second"] > 0 for line in lines if "loss" in line)
    assert [line["step"] for line in lines if "held_out_loss" in line] == [40]
    with Image.open(folder / "samples" / "00000040.png") as picture:
        assert picture.size == (612, 492)  # 10 by 8 digits of 8 pixels and borders of 2, six times as large
    with Image.open(folder / "loss.png") as picture:
        assert picture.width > 300


def test_resuming_a_finished_run_changes_nothing(uninterrupted):
    before = manifests(uninterrupted / "run")
    main(["train", "digits", "--out", str(uninterrupted / "run"), "--resume"])
    assert manifests(uninterrupted / "run") == before


def test_a_time_limit_stops_and_saves(unpictured, tmp_path, monkeypatch):
    clock = itertools.count(step=2.0)
    monkeypatch.setattr("fastgen.training.train.time.monotonic", lambda: next(clock))
    outcome = train(dataclasses.replace(TINY, steps=100_000, max_minutes=0.2), tmp_path / "run")
    assert 0 < outcome.step < 10
    assert outcome.signal is None
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [outcome.step]


def test_the_last_checkpoints_are_kept(unpictured, tmp_path):
    train(dataclasses.replace(TINY, steps=6, checkpoint_every=2, keep=2), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == [4, 6]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [TINY.model, VAEConfig(latent_dim=4)], ids=["unet", "vae"])
def test_training_lowers_the_held_out_loss(model, precision, unpictured, tmp_path):
    config = dataclasses.replace(
        TINY,
        data=DataConfig("digits"),
        model=model,
        lr=3e-3,
        steps=40,
        batch_size=20,
        accumulation=1,
        sample_every=4,
        precision=precision,
        diffusion=None if isinstance(model, VAEConfig) else TINY.diffusion,
    )
    train(config, tmp_path / "run")
    losses = [line["held_out_loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out_loss" in line]
    assert losses[-1] < 0.9 * losses[0]


def test_a_vae_shows_reconstructions(tmp_path):
    train(dataclasses.replace(TINY, model=VAEConfig(latent_dim=4, kl_warmup=3), diffusion=None), tmp_path / "run")
    assert 0 < read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["kl"] < math.inf
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == ["00000012-reconstructed.png", "00000012.png"]


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path):
    with pytest.raises(FloatingPointError, match=r"the loss is (nan|inf) by step"):
        train(dataclasses.replace(TINY, lr=1e30, clip=0.0, warmup=0, precision="fp32"), tmp_path / "run")
    assert checkpoint.steps(tmp_path / "run" / "checkpoints") == []


def test_a_folder_in_use_is_left_alone(uninterrupted, tmp_path):
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        train(TINY, uninterrupted / "run")
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"expected a new or empty folder, .* holds thesis.tex"):
        train(TINY, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_resuming_with_another_model_is_refused(uninterrupted):
    other = dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, channels=16))
    with pytest.raises(ValueError, match="resume: expected the run's own arguments"):
        train(other, uninterrupted / "run", resume=True)


def test_images_that_the_model_cannot_take_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"multiples of 16, .* got 8x8; set data.size"):
        train(dataclasses.replace(TINY, model=dataclasses.replace(TINY.model, multipliers=(1, 1, 1, 1, 1))), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The functions that the loop is made of


def small_objective():
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1, num_classes=10)
    nn.init.normal_(net.head.weight, std=0.1)
    return DiffusionObjective(net, Diffusion("rectified_flow"), label_dropout=0.2)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    x, label = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), torch.arange(6)
    key = noise_key(0, noise_streams.NOISE, 3, 6)
    results = []
    for accumulation in (1, 2, 6):
        objective = small_objective()
        optimizer = torch.optim.SGD(objective.parameters(), 1.0)
        loss = train_step(objective, optimizer, x, label, key, accumulation=accumulation, precision="fp32")
        results.append([loss, *(p.detach().clone() for p in objective.parameters())])
        assert all(p.grad is None for p in objective.parameters())
    torch.testing.assert_close(results[1], results[0])
    torch.testing.assert_close(results[2], results[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"accumulation": 3}, "accumulation: expected a divisor of the batch's 4 samples, got 3"),
        ({"accumulation": 0}, "accumulation: expected a divisor"),
        ({"precision": "fp8"}, "precision: expected one of auto, fp32"),
        ({"clip": -1.0}, "clip: expected a finite number >= 0, got -1.0"),
        ({"clip": math.nan}, "clip: expected a finite number >= 0, got nan"),
    ],
)
@pytest.mark.parametrize("label", [None, torch.arange(4)], ids=["unlabelled", "labelled"])
def test_a_step_refuses_what_it_cannot_do(settings, said, label):
    objective, x = small_objective(), torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=re.escape(said)):
        train_step(objective, torch.optim.SGD(objective.parameters(), 1.0), x, label, noise_key(0, samples=4), **settings)


def test_clipping_bounds_the_step():
    objective = small_objective()
    before = [p.detach().clone() for p in objective.parameters()]
    x, key = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), noise_key(0, noise_streams.NOISE, 3, 6)
    train_step(objective, torch.optim.SGD(objective.parameters(), 1.0), x, None, key, clip=1e-3)
    moved = torch.cat([(a - b).flatten() for a, b in zip(objective.parameters(), before, strict=True)]).norm()
    assert 0.9e-3 < moved < 1.1e-3


def test_learning_rate_warms_up_and_decays():
    config = dataclasses.replace(TINY, lr=1.0, warmup=9, steps=1000)
    assert learning_rate(config, 0) == pytest.approx(0.1, rel=1e-4)
    assert learning_rate(config, 500) == pytest.approx(0.5)
    assert learning_rate(config, 999) < 1e-5
    assert learning_rate(dataclasses.replace(config, lr_decay="constant"), 999) == 1.0
    rates = [learning_rate(config, step) for step in range(1000)]
    assert max(rates) <= 1.0
    assert rates[9] == pytest.approx(1.0, abs=1e-3)


def test_a_run_is_that_of_adamw_with_clipping_and_an_average(tmp_path, monkeypatch):
    """By torch alone, step by step: weights and average, whose decay is min(decay, (1 + step) / (10 + step))."""

    class Plain(torch.optim.AdamW):
        def __init__(self, params, lr, betas, *, weight_decay, clip, ema):
            super().__init__(params, lr, betas, weight_decay=weight_decay, fused=True)
            self.clip, self.decay, self.made = clip, ema, 0
            self.averages = [p.detach().clone() for p in self.param_groups[0]["params"]]

        def step(self):
            params = self.param_groups[0]["params"]
            nn.utils.clip_grad_norm_(params, self.clip)
            super().step()
            decay = min(self.decay, (1 + self.made) / (10 + self.made))
            self.made += 1
            for average, p in zip(self.averages, params, strict=True):
                average.copy_(decay * average + (1 - decay) * p.detach())

        def ema_state_dict(self, model):
            names = [name for name, _ in model.named_parameters()]
            return dict(zip(names, self.averages, strict=True))

    kept, config = {}, dataclasses.replace(TINY, precision="fp32", clip=0.1)
    monkeypatch.setattr("fastgen.training.train.Preview.__call__", lambda self, step: {})
    train(config, tmp_path / "run")
    monkeypatch.setattr("fastgen.training.train.AdamWEMA", Plain)
    monkeypatch.setattr(
        "fastgen.training.train.save_state",
        lambda out, step, model, optimizer, *rest: kept.update(model=model.state_dict(), ema=optimizer.ema_state_dict(model)),
    )
    train(config, tmp_path / "plain")
    for name, expected in kept.items():
        saved = checkpoint.load_tensors(checkpoint.at_step(tmp_path / "run" / "checkpoints", config.steps), name)
        torch.testing.assert_close(saved, expected, rtol=1e-4, atol=2e-6)


def test_an_optimizer_that_clips_and_averages():
    """The same step as clipping by train_step before torch's optimizer."""
    x, key = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8), noise_key(0, noise_streams.NOISE, 3, 6)
    objectives = [small_objective() for _ in range(2)]
    ours = AdamWEMA(objectives[0].parameters(), 1e-3, clip=1e-2, ema=0.999)
    train_step(objectives[0], ours, x, None, key, precision="fp32")
    adamw = torch.optim.AdamW(objectives[1].parameters(), 1e-3)
    train_step(objectives[1], adamw, x, None, key, clip=1e-2, precision="fp32")
    torch.testing.assert_close(list(objectives[0].parameters()), list(objectives[1].parameters()))
    for p, q in zip(*(o.parameters() for o in objectives), strict=True):
        torch.testing.assert_close(ours.state[p]["exp_avg"], adamw.state[q]["exp_avg"])
    before, average = small_objective().state_dict(), ours.ema_state_dict(objectives[0])
    for name, p in objectives[0].named_parameters():
        torch.testing.assert_close(average[name], 0.1 * before[name] + 0.9 * p.detach())


def stepped(optimizer, model):
    model(torch.randn(2, 1, 8, 8), torch.rand(2)).float().square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_restored_is_what_was_saved(dtype, tmp_path):
    """Moments, masters, averages and counts, in the memory format of their parameters, as the kernels need them."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        model = UNet(1, channels=8, multipliers=(1,), groups=4).to(memory_format=torch.channels_last)
        made.append((model.to(dtype), AdamWEMA(model.parameters(), ema=0.9)))
    (model, optimizer), (other, restored) = made
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        stepped(optimizer, model)
    save_state(tmp_path, 1, model, optimizer, {}, 1)
    assert restore_state(tmp_path, other, restored, {}) == 1
    assert [int(restored.updates), int(restored.skipped)] == [1, 0]
    ours, theirs = optimizer.state_dict(), restored.state_dict()
    assert len(ours["masters"]) == (0 if dtype == torch.float32 else len(list(model.parameters())))
    for name in ("state", "masters", "averages"):
        torch.testing.assert_close(theirs[name], ours[name], rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)
    for i, p in enumerate(other.parameters()):
        for x in (theirs["state"][i]["exp_avg"], theirs["state"][i]["exp_avg_sq"], theirs["averages"][0][i]):
            assert x.stride() == p.stride()
    assert any(p.dim() == 4 and not p.is_contiguous() for p in other.parameters())


def test_a_checkpoint_without_counts_has_made_its_steps(tmp_path):
    """As those were written whose average torch.optim.AdamW did not keep."""
    model = UNet(1, channels=8, multipliers=(1,), groups=4)
    optimizer = AdamWEMA(model.parameters(), ema=0.9)
    stepped(optimizer, model)
    save_state(tmp_path, 7, model, optimizer, {}, 1)
    folder = checkpoint.at_step(tmp_path / "checkpoints", 7)
    tensors = {name: checkpoint.load_tensors(folder, name) for name in ("model", "ema", "optimizer", "rng")}
    del tensors["optimizer"]["counts"]
    checkpoint.save(checkpoint.at_step(tmp_path / "checkpoints", 8), tensors, {"config": {}})
    assert restore_state(tmp_path, model, optimizer, {}) == 8
    assert [int(optimizer.updates), int(optimizer.skipped)] == [8, 0]
