"""Training in bf16 with fp32 masters: it learns as autocast does, and what is saved is fp32."""

import dataclasses
import shutil

import pytest
import torch

from fastgen import UNet, load
from fastgen.cli import main
from fastgen.config.files import load_yaml
from fastgen.config.schema import ConvVAEConfig
from fastgen.device import cast
from fastgen.optim import AdamWEMA
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.preview import Preview
from fastgen.training.state import restore_state, save_state
from fastgen.training.train import train
from tests.helpers import tiny_runs

UNET = dataclasses.replace(
    tiny_runs.LABELLED,
    model=dataclasses.replace(tiny_runs.LABELLED.model, dropout=0.1),
    accumulation=2,
    precision="bf16_weights",
    log_every=1,
)
VAE = dataclasses.replace(tiny_runs.VAE, precision="bf16_weights", log_every=1)
CONV_VAE = dataclasses.replace(VAE, model=ConvVAEConfig(latent_dim=4, channels=8, multipliers=(1, 2), groups=4))
CONFIGS = pytest.mark.parametrize("config", [UNET, CONV_VAE], ids=["unet", "conv_vae"])
STILL = {"steps": 1, "warmup": 0, "lr": 1e-12}  # weights stay what they are, to 1e-12


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch):
    monkeypatch.setattr(Preview, "__call__", lambda self, step: {})


def saved(run, name, step=None):
    step = step or checkpoint.steps(run / "checkpoints")[-1]
    return checkpoint.load_tensors(checkpoint.at_step(run / "checkpoints", step), name)


def losses(run):
    return torch.tensor([line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line])


def begun(config, run):
    """The weights that training begins with, which one tiny step leaves as they are."""
    train(dataclasses.replace(config, **STILL), run)
    return saved(run, "model")


@CONFIGS
def test_resumed_is_bitwise_uninterrupted(config, tmp_path):
    """From masters whose step, moments and averages are those of fp32."""
    train(config, tmp_path / "run")
    again = shutil.copytree(tmp_path / "run", tmp_path / "again")
    shutil.rmtree(again / "checkpoints" / "00000012")
    train(load_yaml(again / "config.yaml"), again, resume=True)
    for name in ("model", "ema", "optimizer"):
        one, other = (saved(run, name) for run in (tmp_path / "run", again))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
        assert {x.dtype for key, x in one.items() if key != "counts"} == {torch.float32}
    assert any((x != x.bfloat16()).any() for x in saved(again, "model").values())
    assert {p.dtype for p in load(again).model.parameters()} == {torch.float32}


@CONFIGS
def test_the_losses_are_those_of_fp32(config, tmp_path):
    """To what bf16 rounds to, 2^-9 of a weight, a few times over."""
    for precision in ("fp32", "bf16_weights"):
        train(dataclasses.replace(config, precision=precision), tmp_path / precision)
    torch.testing.assert_close(losses(tmp_path / "bf16_weights"), losses(tmp_path / "fp32"), rtol=2e-3, atol=0)


def test_a_model_of_linear_layers_is_bitwise_that_of_autocast(tmp_path):
    """Which casts the same weights, and sums the same gradients."""
    for precision in ("bf16", "bf16_weights"):
        train(dataclasses.replace(VAE, precision=precision), tmp_path / precision)
    for name in ("model", "ema", "optimizer"):
        autocast, cast = (saved(tmp_path / precision, name) for precision in ("bf16", "bf16_weights"))
        assert all(torch.equal(autocast[key], cast[key]) for key in autocast)
    assert torch.equal(losses(tmp_path / "bf16"), losses(tmp_path / "bf16_weights"))


def test_the_model_computes_in_bf16(monkeypatch, tmp_path):
    seen = []
    step = AdamWEMA.step

    def watched(self, closure=None):
        params = self.param_groups[0]["params"]
        seen.append({x.dtype for p in params for x in (p, p.grad)})
        step(self, closure)
        seen.append(all(torch.equal(p, self.state_dict()["masters"][i].bfloat16()) for i, p in enumerate(params)))

    monkeypatch.setattr(AdamWEMA, "step", watched)
    train(dataclasses.replace(UNET, steps=2), tmp_path / "run")
    assert seen == [{torch.bfloat16}, True] * 2


def test_training_begins_with_weights_that_are_not_rounded(tmp_path):
    fp32 = begun(dataclasses.replace(UNET, precision="fp32"), tmp_path / "fp32")
    torch.testing.assert_close(begun(UNET, tmp_path / "bf16_weights"), fp32, rtol=0, atol=1e-9)


@pytest.mark.parametrize("there", ["fp32", "bf16_weights"])
def test_a_run_goes_on_in_the_other_precision_from_the_same_weights(there, tmp_path):
    here = "fp32" if there == "bf16_weights" else "bf16_weights"
    train(dataclasses.replace(UNET, precision=here, steps=6), tmp_path / "run")
    still = dataclasses.replace(UNET, precision=there, steps=7, lr=1e-12)
    train(still, tmp_path / "run", resume=True)
    weights, average = ([saved(tmp_path / "run", name, step) for step in (6, 7)] for name in ("model", "ema"))
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-9)
    expected = {key: x.lerp(weights[1][key], 9 / 16) for key, x in average[0].items()}  # the seventh update, warming up
    torch.testing.assert_close(average[1], expected, rtol=1e-6, atol=1e-8)


def test_a_run_begins_with_the_average_of_another(tmp_path):
    train(dataclasses.replace(UNET, steps=2), tmp_path / "run")
    train(dataclasses.replace(UNET, **STILL), tmp_path / "tuned", init_from=tmp_path / "run")
    torch.testing.assert_close(saved(tmp_path / "tuned", "model"), saved(tmp_path / "run", "ema"), rtol=0, atol=1e-9)


def test_a_unet_of_diffusers_there_and_back(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    from tests.helpers import tiny_diffusers

    unet = tiny_diffusers.unet()
    folder = tiny_diffusers.pipeline(tmp_path / "theirs", unet, diffusers.DDIMScheduler())
    train(dataclasses.replace(UNET, model=tiny_runs.LABELLED.model, **STILL), tmp_path / "run", init_from=folder)
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "back")])
    back = diffusers.UNet2DModel.from_pretrained(tmp_path / "back" / "unet")
    torch.testing.assert_close(back.state_dict(), unet.state_dict(), rtol=0, atol=1e-9)


def test_masters_that_were_never_stepped_are_saved_and_restored(tmp_path):
    """Of a run that a signal stops before its first step; no average is there yet."""
    made = []
    for seed in range(2):
        torch.manual_seed(seed)
        model = UNet(1, channels=8, multipliers=(1,), groups=4)
        whole = {name: x.clone() for name, x in model.state_dict().items()}
        optimizer = AdamWEMA(cast(model, "bf16_weights").parameters(), ema=0.9)
        optimizer.load_master_state_dict(model, whole)
        made.append((model, optimizer, whole))
    (model, optimizer, whole), (other, restored, _) = made
    save_state(tmp_path, 0, model, optimizer, {}, 1)
    restore_state(tmp_path, other, restored, {})
    for tensors in (restored.master_state_dict(other), restored.ema_state_dict(other), saved(tmp_path, "ema")):
        torch.testing.assert_close(tensors, whole, rtol=0, atol=0)
    torch.testing.assert_close(other.state_dict(), {name: x.bfloat16() for name, x in whole.items()}, rtol=0, atol=0)


def test_the_command_line(tmp_path, capsys):
    run = str(tmp_path / "run")
    main(["train", "digits", "--precision", "bf16_weights", "--steps", "2", "--batch-size", "4", "--out", run])
    assert load(run).config.precision == "bf16_weights"
    main(["sample", run, "--n", "2", "--steps", "2", "--out", str(tmp_path / "drawn.png")])
    assert (tmp_path / "drawn.png").exists()
