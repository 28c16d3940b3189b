"""Training in fp16 with scaled gradients, as on GPUs without bf16. The CPU computes fp16, slowly."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from fastgen import device, load
from fastgen.config.files import load_yaml
from fastgen.device import autocast, resolve_precision
from fastgen.functional import noise_key
from fastgen.optim import AdamWEMA
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.train import train, train_step
from tests.helpers import tiny_runs

FP16 = dataclasses.replace(tiny_runs.LABELLED, precision="fp16", steps=8, checkpoint_every=4)


class Objective(nn.Module):
    """A loss whose gradient is the weight times `slope`, by which it overflows fp16 under a large scale."""

    def __init__(self, slope=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.slope = slope

    def forward(self, x, label=None, *, key=None):
        return (self.slope * self.weight * x).sum(1)


def step(objective, optimizer, scaler, clip=0.0):
    return train_step(objective, optimizer, torch.ones(2, 4), None, noise_key(0, samples=2), clip=clip, scaler=scaler)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_overflows_is_skipped_and_halves_the_scale(fused, clip):
    objective, scaler = Objective(), GradScaler("cpu", init_scale=2.0**15)
    optimizer = torch.optim.AdamW(objective.parameters(), 0.1, fused=fused)
    step(objective, optimizer, scaler, clip)
    before = [t.clone() for t in (objective.weight.detach(), *optimizer.state[objective.weight].values())]
    assert not torch.equal(before[0], torch.ones(4))

    objective.slope = 1e36  # finite, and inf when it is scaled
    loss = step(objective, optimizer, scaler, clip)
    assert loss.isfinite()
    after = [objective.weight.detach(), *optimizer.state[objective.weight].values()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert scaler.get_scale() == 2.0**14
    assert objective.weight.grad is None

    objective.slope = 1.0
    step(objective, optimizer, scaler, clip)
    assert not torch.equal(objective.weight, before[0])
    assert scaler.get_scale() == 2.0**14


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_adamw_ema_is_told_scale_and_overflow(clip, monkeypatch):
    """The scaler neither unscales the gradients nor is its scale read."""
    plain = Objective()
    adamw = torch.optim.AdamW(plain.parameters(), 0.1)
    for _ in range(2):
        step(plain, adamw, None, clip)

    monkeypatch.setattr(GradScaler, "unscale_", lambda *a: pytest.fail("unscaled"))
    objective, scaler = Objective(), GradScaler("cpu", init_scale=2.0**15)
    optimizer = AdamWEMA(objective.parameters(), 0.1, clip=clip, ema=0.5)
    for slope in (1.0, 1e36, 1.0):
        objective.slope = slope
        step(objective, optimizer, scaler)
    assert scaler.get_scale() == 2.0**14
    assert [int(optimizer.updates), int(optimizer.skipped)] == [2, 1]
    torch.testing.assert_close(objective.weight, plain.weight)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_scale_leaves_the_step_as_it_is(clip):
    weights = []
    for scaler in (None, GradScaler("cpu", init_scale=2.0**10)):
        objective = Objective()
        step(objective, torch.optim.SGD(objective.parameters(), 1.0), scaler, clip)
        weights.append(objective.weight.detach())
    torch.testing.assert_close(*weights)


def test_fp16_needs_a_scaler_and_auto_is_never_fp16_without(monkeypatch):
    objective = Objective()
    optimizer = torch.optim.SGD(objective.parameters(), 1.0)
    arguments = (objective, optimizer, torch.ones(2, 4), None, noise_key(0, samples=2))
    with pytest.raises(ValueError, match=r"scaler: expected a torch.amp.GradScaler with precision fp16, got None"):
        train_step(*arguments, precision="fp16")
    monkeypatch.setattr(device, "computes_bf16", lambda device: False)
    monkeypatch.setattr(device, "computes_fp16", lambda device: True)
    seen = []
    autocasts = lambda *_: seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)  # noqa: E731
    objective.register_forward_pre_hook(autocasts)
    train_step(*arguments)
    train_step(*arguments, scaler=GradScaler("cpu", init_scale=2.0))
    assert seen == [None, torch.float16]


@pytest.mark.parametrize(
    ("bf16", "fp16", "expected"), [(True, True, "bf16"), (True, False, "bf16"), (False, True, "fp16"), (False, False, "fp32")]
)
def test_auto_takes_what_the_hardware_has(bf16, fp16, expected, monkeypatch):
    monkeypatch.setattr(device, "computes_bf16", lambda device: bf16)
    monkeypatch.setattr(device, "computes_fp16", lambda device: fp16)
    assert resolve_precision(torch.device("cpu"), "auto") == expected
    for precision in ("fp32", "bf16", "fp16"):
        assert resolve_precision(torch.device("cpu"), precision) == precision


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_autocast_computes_in_it(precision, dtype):
    with autocast(torch.device("cpu"), precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, dtype)


@pytest.mark.parametrize(("capability", "has"), [((6, 1), False), ((7, 0), True), ((7, 5), True)])
def test_tensor_cores_compute_fp16(capability, has, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert device.computes_fp16(torch.device("cuda")) == has
    assert not device.computes_fp16(torch.device("cpu"))


# Runs


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """8 steps from the scale that torch begins with."""
    folder = tmp_path_factory.mktemp("fp16") / "run"
    with tiny_runs.without_pictures():
        train(FP16, folder)
    return folder


def scaler_state(run, step):
    return json.loads((checkpoint.at_step(run / "checkpoints", step) / "scaler.json").read_text())


def test_a_run_in_fp16(run):
    losses = [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert all(0 < loss < 10 for loss in losses)
    state = scaler_state(run, 8)
    assert 1 <= state["scale"] <= 2**16
    assert 0 < state["_growth_tracker"] <= 8
    loaded = load(run)
    assert loaded.config.precision == "fp16"
    assert all(p.isfinite().all() for p in loaded.model.parameters())
    assert loaded.sample(2, steps=2)[0].shape == (2, 1, 8, 8)


def test_resumed_in_fp16_is_bitwise_uninterrupted(run, unpictured, tmp_path):
    again = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(again / "checkpoints" / "00000008")
    state = scaler_state(again, 4)
    file = checkpoint.at_step(again / "checkpoints", 4)
    assert state == checkpoint.load_document(file, "scaler")
    train(load_yaml(again / "config.yaml"), again, resume=True)
    manifests = [(r / "checkpoints" / "00000008" / "manifest.json").read_text() for r in (run, again)]
    assert manifests[0] == manifests[1]
    assert scaler_state(again, 8)["_growth_tracker"] == state["_growth_tracker"] + 4


def test_a_skipped_step_counts_and_leaves_weights_and_average(unpictured, monkeypatch, tmp_path):
    """From a scale at which every gradient overflows: steps go by, and only the scale changes, by half each time."""
    monkeypatch.setattr("fastgen.training.train.GradScaler", lambda *a, **k: GradScaler(*a, init_scale=2.0**120, **k))
    config = dataclasses.replace(FP16, steps=4, checkpoint_every=1, keep=9)
    train(config, tmp_path / "run")
    assert [scaler_state(tmp_path / "run", step)["scale"] for step in (1, 2, 3, 4)] == [2.0**119, 2.0**118, 2.0**117, 2.0**116]
    saved = [checkpoint.at_step(tmp_path / "run" / "checkpoints", step) for step in (1, 4)]
    for name in ("model", "ema", "optimizer"):
        first, last = (checkpoint.load_tensors(folder, name) for folder in saved)
        if name == "optimizer":
            assert [tensors.pop("counts").tolist() for tensors in (first, last)] == [[0, 1], [0, 4]]
        assert all(torch.equal(first[key], last[key]) for key in first)
    model, ema = (checkpoint.load_tensors(saved[0], name) for name in ("model", "ema"))
    assert all(torch.equal(model[key], ema[key]) for key in model)


def test_the_average_takes_in_no_step_that_was_skipped(unpictured, monkeypatch, tmp_path):
    """The first step overflows; the one that follows is the average's first."""
    steep = {"init_scale": 2.0**120, "backoff_factor": 2.0**-110}
    monkeypatch.setattr("fastgen.training.train.GradScaler", lambda *a, **k: GradScaler(*a, **k, **steep))
    train(dataclasses.replace(FP16, steps=2, checkpoint_every=1, ema=0.5), tmp_path / "run")
    first, last = (checkpoint.at_step(tmp_path / "run" / "checkpoints", step) for step in (1, 2))
    before, after, average = (checkpoint.load_tensors(*of) for of in ((first, "model"), (last, "model"), (last, "ema")))
    assert any(not torch.equal(before[key], after[key]) for key in before)
    for key, weight in after.items():
        torch.testing.assert_close(average[key], 0.1 * before[key] + 0.9 * weight)
    assert checkpoint.load_tensors(last, "optimizer")["counts"].tolist() == [1, 1]


def test_other_precisions_save_no_scaler_and_may_go_on_as_fp16(unpictured, tmp_path):
    train(dataclasses.replace(FP16, precision="fp32", steps=4), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "00000004" / "scaler.json").exists()
    train(FP16, tmp_path / "run", resume=True)
    assert scaler_state(tmp_path / "run", 8)["_growth_tracker"] == 4
