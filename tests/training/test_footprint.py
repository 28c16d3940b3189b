"""The memory of a training step, counted without data."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from fastgen import UNet
from fastgen.cli import main
from fastgen.config.schema import DiffusersConfig, DiffusionConfig, UNetConfig
from fastgen.device import autocast, cast
from fastgen.functional import noise_key
from fastgen.optim import AdamWEMA
from fastgen.training.footprint import footprint, saved_bytes
from fastgen.training.preview import Preview
from fastgen.training.train import make_objective, train
from fastgen_kernels.dispatch import on_fake_tensors, use_triton
from tests.helpers.tiny_runs import LABELLED, VAE

SMALL = UNetConfig(channels=8, multipliers=(1, 2), blocks=1, attention_levels=(), groups=4)


def test_saved_bytes_by_hand():
    """A linear layer saves its input, a ReLU its output, which the next layer saves too; weights are not counted."""
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    x = torch.randn(4, 3)
    assert saved_bytes(lambda: model(x).sum(), model) == 4 * (4 * 3 + 4 * 5)


def test_views_of_one_memory_count_once():
    weight = nn.Parameter(torch.ones(6))
    x = torch.randn(6)
    model = nn.ParameterList([weight])
    assert saved_bytes(lambda: (weight[:3] * x[:3] + weight[3:] * x[3:]).sum(), model) == 4 * 6


@pytest.mark.kernels
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, which is used where there is no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16_weights"])
def test_without_data_as_with(precision):
    """The kernels, interpreted, save what the count says."""
    config = dataclasses.replace(LABELLED, model=SMALL, batch_size=2)
    model = UNet(1, channels=8, multipliers=(1, 2), blocks=1, groups=4, num_classes=10, head_dim=64)
    objective = make_objective(config, cast(model, precision))
    images, labels, key = torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), noise_key(0, samples=2)
    with autocast(torch.device("cpu"), precision):
        expected = saved_bytes(lambda: objective(images, labels, key=key).sum(), model)
    counted = footprint(config, (1, 8, 8), 10, precision)
    assert counted.activations == expected
    assert counted.parameters == sum(p.numel() for p in model.parameters())


def test_activations_grow_with_the_batch_and_shrink_in_parts_and_by_checkpointing():
    def activations(**changes):
        return footprint(dataclasses.replace(LABELLED, model=SMALL, **changes), (1, 16, 16), 10, "fp32").activations

    once = activations(batch_size=8)
    assert activations(batch_size=16) == pytest.approx(2 * once, rel=0.02)
    assert activations(batch_size=16, accumulation=2) == once
    checkpointed = dataclasses.replace(LABELLED, model=dataclasses.replace(SMALL, checkpointing=True), batch_size=8)
    assert 0 < footprint(checkpointed, (1, 16, 16), 10, "fp32").activations < 0.5 * once


@pytest.mark.parametrize(
    ("precision", "config"), [("fp32", LABELLED), ("bf16", LABELLED), ("bf16_weights", LABELLED), ("bf16_weights", VAE)]
)
def test_weights_and_what_follows_them(precision, config, monkeypatch, tmp_path):
    """The bytes of the tensors that a training holds at its steps, beside activations."""
    held = []

    class Watched(AdamWEMA):
        def step(self, closure=None):
            super().step(closure)
            params = self.param_groups[0]["params"]
            state = self.state_dict()
            moments = [x for of in state["state"].values() for name, x in of.items() if name != "step"]
            groups = params, [p.grad for p in params], [*moments, *state["masters"].values()], state["averages"][0].values()
            held.append([sum(x.untyped_storage().nbytes() for x in group) for group in groups])

    copies = []
    monkeypatch.setattr("fastgen.training.train.AdamWEMA", Watched)
    monkeypatch.setattr(
        Preview, "__call__", lambda self, step: copies.append(sum(p.nbytes for p in self.model.parameters())) or {}
    )
    train(dataclasses.replace(config, precision=precision, steps=2), tmp_path / "run")
    counted = footprint(config, (1, 8, 8), 10, precision)
    expected = [counted.weights, counted.gradients, counted.optimizer, counted.average - copies[0]]
    assert held == [expected] * 2
    assert counted.total == sum(expected) + copies[0] + counted.activations


def test_a_schedule_is_made_of_numbers():
    """As a chain of betas is, which looks at them."""
    linear = dataclasses.replace(LABELLED, model=SMALL, diffusion=DiffusionConfig("linear", "eps"))
    flow = dataclasses.replace(LABELLED, model=SMALL)
    counted = [footprint(config, (1, 8, 8), 10, "bf16_weights") for config in (linear, flow)]
    assert counted[0].activations == pytest.approx(counted[1].activations, rel=0.01)


def test_a_unet_of_diffusers_is_refused():
    config = dataclasses.replace(LABELLED, model=DiffusersConfig(), diffusion=DiffusionConfig("linear", "eps"))
    with pytest.raises(ValueError, match="model: expected a model of fastgen's own, got 'DiffusersConfig'"):
        footprint(config, (1, 8, 8), 10, "bf16_weights")


def test_kernels_are_taken_inside_alone():
    assert not use_triton(torch.zeros(1))
    with on_fake_tensors():
        assert use_triton(torch.zeros(1))
    assert not use_triton(torch.zeros(1))


def test_info_on_a_preset(capsys):
    main(["info", "--preset", "folder32", "--batch", "64"])
    rows = dict((line[:19].strip(), line[19:]) for line in capsys.readouterr().out.splitlines())
    assert rows["batch"] == "64 images 3x32x32"
    assert rows["parameters"] == "27,742,851"
    assert rows["weights"] == rows["gradients"] == "111.0 MB, 55.5 MB with bf16_weights"
    assert rows["optimizer"] == "221.9 MB, 332.9 MB with bf16_weights"
    assert rows["average"] == "221.9 MB"
    numbers = {
        p: [float(n.replace(",", "")) for n in re.findall(r"([\d,.]+) MB", rows[p])] for p in ("bf16", "bf16_weights", "fp32")
    }
    assert numbers["bf16"][0] < 0.6 * numbers["fp32"][0]
    assert numbers["bf16"][0] - numbers["bf16_weights"][0] == pytest.approx(55.5, rel=0.01)  # what autocast casts the weights to
    for activations, total in numbers.values():
        assert total - activations == pytest.approx(6 * 110.97, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "folder3"], "preset: expected one of .*, got 'folder3'; did you mean folder32"),
        (["--batch", "3"], "batch: expected none without --preset, got 3"),
        (["--preset", "digits", "--batch", "0"], "batch_size: expected a whole number >= 1, got 0"),
    ],
)
def test_bad_input(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["info", *arguments])
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err)
