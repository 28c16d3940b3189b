"""Runs written before the package was divided into rooms sample, and go on bit for bit.

data/before_rooms/NAME is the run of a tiny UNet that was stopped at step 4 of 8, with `expected.safetensors`: weights and average
that the same code had at step 8, and four samples of step 4's average. Exact on the kind of processor that wrote them and under
its torch; elsewhere convolutions round otherwise.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fastgen import load
from fastgen.config.files import load_yaml
from fastgen.runs import checkpoint
from fastgen.training.train import train

RUNS = Path(__file__).parent / "data" / "before_rooms"


@pytest.fixture(params=["digits", "wine"])
def old(request, tmp_path):
    """A copy of the run, and equal(name, tensor)."""
    pytest.importorskip("sklearn", reason="needs scikit-learn, which has the data")
    run = shutil.copytree(RUNS / request.param, tmp_path / "run")
    with safe_open(run / "expected.safetensors", "pt") as file:
        expected, made_by = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    exact = made_by == {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}

    def equal(name, x):
        tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-3, "atol": 1 if x.dtype == torch.uint8 else 1e-4}
        torch.testing.assert_close(x, expected[name], **tolerance)

    return run, equal


def test_an_old_run_samples(old):
    run, equal = old
    samples, _ = load(run, device="cpu").sample(4, steps=3, guidance=1.5, seed=3, sampler="dpmpp_2m")
    equal("samples:4", samples)


def test_an_old_run_goes_on(old):
    run, equal = old
    train(load_yaml(run / "config.yaml"), run, resume=True)
    for part in ("model", "ema"):
        for name, x in checkpoint.load_tensors(checkpoint.at_step(run / "checkpoints", 8), part).items():
            equal(f"{part}:{name}", x)
