"""The training step: it waits for nothing, and is the same as a graph and compiled."""

import dataclasses

import pytest
import torch

pytest.importorskip("sklearn")  # the digits; where GPUs are tested with torch and Triton alone, they are not there
pytest.importorskip("tyro")

from fastgen.config.schema import ConvVAEConfig, UNetConfig, VAEConfig
from fastgen.cuda_graph import WARM_UP
from fastgen.runs import checkpoint
from fastgen.training.metrics_log import read_metrics
from fastgen.training.progress import Reading
from fastgen.training.train import learning_rate, train
from fastgen_kernels import philox
from tests.helpers import recorded
from tests.helpers.tiny_runs import LABELLED

UNET = dataclasses.replace(
    LABELLED,
    data=dataclasses.replace(LABELLED.data, flip=True, shift=1),
    model=dataclasses.replace(LABELLED.model, dropout=0.1),
    accumulation=2,
    precision="fp32",
    checkpoint_every=100,
)
VAE = dataclasses.replace(UNET, model=VAEConfig(latent_dim=4), diffusion=None)
CONV_VAE = dataclasses.replace(UNET, model=ConvVAEConfig(latent_dim=4, channels=8, multipliers=(1, 2), groups=4), diffusion=None)
SMALLER = dataclasses.replace(UNET, model=UNetConfig(channels=8, multipliers=(1,), blocks=1, attention_levels=(), groups=4))
FP16 = dataclasses.replace(UNET, precision="fp16")
BF16 = dataclasses.replace(UNET, precision="bf16")
BF16_WEIGHTS = dataclasses.replace(UNET, precision="bf16_weights")
CONFIGS = {"unet": UNET, "vae": VAE, "conv_vae": CONV_VAE, "bf16": BF16, "bf16_weights": BF16_WEIGHTS, "fp16": FP16}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def _no_samples(monkeypatch):
    monkeypatch.setattr("fastgen.training.train.Preview.__call__", lambda self, step: {})


def saved(run):
    (step,) = checkpoint.steps(run / "checkpoints")
    folder = checkpoint.at_step(run / "checkpoints", step)
    return {name: checkpoint.load_tensors(folder, name) for name in ("model", "ema", "optimizer")}


def losses(run):
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nothing_waits_between_two_lines_of_the_log(config, monkeypatch, tmp_path):
    seen = []
    with recorded.Waits() as waits:
        watched = lambda c, step: seen.append(waits.count) or learning_rate(c, step)  # noqa: E731
        monkeypatch.setattr("fastgen.training.train.learning_rate", watched)
        train(dataclasses.replace(config, steps=8, log_every=8), tmp_path / "run")
    assert seen[1 : config.steps] == [seen[1]] * len(seen[1 : config.steps])
    assert waits.count > seen[-1]  # the last lines are read


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("graph", ["on", "off"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_nothing_waits_for_the_gpu(config, graph, monkeypatch, tmp_path):
    """Over 50 steps, from the one after a graph was captured."""
    debug = {WARM_UP + 2: "error", WARM_UP + 52: "default"}

    def watched(config, step):
        if step in debug:
            torch.cuda.set_sync_debug_mode(debug[step])
        return learning_rate(config, step)

    monkeypatch.setattr("fastgen.training.train.learning_rate", watched)
    try:
        train(dataclasses.replace(config, steps=60, log_every=60, cuda_graph=graph), tmp_path / "run")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "config", [UNET, VAE, CONV_VAE, BF16_WEIGHTS, FP16], ids=["unet", "vae", "conv_vae", "bf16_weights", "fp16"]
)
def test_a_recorded_step_is_the_step(config, monkeypatch, tmp_path):
    """Bit for bit: batches, keys, the learning rate, the average's warm-up and the scale all reach it through tensors."""
    monkeypatch.setattr("fastgen_kernels.philox._philox_numpy", philox._philox)  # numpy would be baked in
    train(config, tmp_path / "eager")
    monkeypatch.setattr("fastgen.training.train.use_graph", lambda config, device: True)
    monkeypatch.setattr("fastgen.cuda_graph.on_side_stream", lambda function: function())
    captured = []
    monkeypatch.setattr("fastgen.cuda_graph.capture", lambda function: captured.append(1) or recorded.capture(function))
    train(config, tmp_path / "recorded")
    assert captured == [1]
    eager, replayed = saved(tmp_path / "eager"), saved(tmp_path / "recorded")
    for name, expected in eager.items():
        assert all(torch.equal(replayed[name][key], value) for key, value in expected.items()), name
    assert losses(tmp_path / "recorded") == losses(tmp_path / "eager")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_graph_is_the_eager_step(config, tmp_path):
    for graph in ("off", "on"):
        train(dataclasses.replace(config, cuda_graph=graph), tmp_path / graph)
    torch.testing.assert_close(losses(tmp_path / "on"), losses(tmp_path / "off"), rtol=1e-5, atol=0)
    torch.testing.assert_close(saved(tmp_path / "on"), saved(tmp_path / "off"), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [SMALLER, dataclasses.replace(VAE, precision="bf16_weights")], ids=["unet", "vae in bf16_weights"]
)
def test_a_compiled_step_is_the_eager_step(config, tmp_path):
    for compiled in (False, True):
        train(dataclasses.replace(config, compile=compiled), tmp_path / str(compiled))
    torch.testing.assert_close(losses(tmp_path / "True"), losses(tmp_path / "False"), rtol=1e-5, atol=0)
    torch.testing.assert_close(saved(tmp_path / "True"), saved(tmp_path / "False"), rtol=1e-3, atol=1e-5)


def test_a_number_of_the_cpu_has_come():
    reading = Reading(torch.tensor(2.5))
    assert reading.has_come()
    assert reading.value() == 2.5


@pytest.mark.gpu
@needs_gpu
def test_a_number_of_the_gpu_comes_while_it_computes():
    """What is enqueued first is not waited for."""
    torch.cuda._sleep(10**9)
    reading = Reading(torch.full((), 2.5, device="cuda"))
    assert not reading.has_come()
    assert reading.value() == 2.5
    assert reading.has_come()
