"""Weights to start from."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastgen.errors import expect
from fastgen.interchange.init_from import is_run
from fastgen.models.diffusers_unet import load_unet
from fastgen.runs import checkpoint
from fastgen.runs.run import find_checkpoint


def load_weights(model: nn.Module, path: Path, description: dict[str, Any]) -> None:
    """Puts the averaged weights of a run, or those of a UNet that diffusers wrote, into the model of a description.

    Raises ValueError where they are of another model, naming the first key that differs, or were trained for another output."""
    if is_run(path):
        folder = find_checkpoint(path)
        trained = checkpoint.load_document(folder, "config")
        for name in ("model", "diffusion"):
            expect(f"init_from: {name}", description[name], description[name] == trained[name], f"{trained[name]}, as in {path}")
        weights = checkpoint.load_tensors(folder, "ema")
    else:
        weights = {f"unet.{key}": value for key, value in load_unet(path).state_dict().items()}
    _expect_same(model.state_dict(), weights, path)
    model.load_state_dict(weights)


def _expect_same(own: dict[str, Tensor], given: dict[str, Tensor], path: Path) -> None:
    for key in [*own, *given]:
        expected, got = (tuple(tensors[key].shape) if key in tensors else "nothing" for tensors in (own, given))
        expect(f"init_from: {key} of {path}", got, expected == got, f"shape {expected}, as in the model that is to be trained")
