import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(folder, example, *options):
    """What it prints, without the interpreter, in which it would take minutes."""
    command = [sys.executable, EXAMPLES / f"{example}.py", *map(str, options)]
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_diffusers_finetune(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    assert "step 2: loss" in run(tmp_path, "diffusers_finetune", "--steps", 2, "--batch-size", 4, "--out", "first")
    model = diffusers.DDPMPipeline.from_pretrained(tmp_path / "first").unet
    assert type(model) is diffusers.UNet2DModel
    printed = run(tmp_path, "diffusers_finetune", "--steps", 2, "--batch-size", 4, "--unet", "first/unet", "--no-optimize")
    assert "changed" not in printed
    assert (tmp_path / "runs/diffusers_finetune/unet/config.json").exists()


def test_own_unet(tmp_path):
    printed = run(tmp_path, "own_unet", "--steps", 3)
    assert "9  Sequential  GroupNorm + SiLU" in printed
    assert (tmp_path / "runs/own_unet.png").exists()


@pytest.mark.parametrize(
    "options", [pytest.param((), marks=pytest.mark.exhaustive), pytest.param(("--regional",), marks=pytest.mark.slow)]
)
def test_compile(tmp_path, options):
    pytest.importorskip("diffusers")
    printed = run(tmp_path, "compile", "--width", 8, "--steps", 1, *options)
    assert float(re.search(r"difference from the untouched model: (\S+)", printed)[1]) < 1e-5
