"""Everything that training goes on from, to and from a run's checkpoints."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastgen import checkpoint
from fastgen.ema import EMA
from fastgen.run import find_checkpoint


def save_state(
    out: Path,
    step: int,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    description: dict[str, Any],
    keep: int,
    scaler: GradScaler | None = None,
) -> Path:
    """Writes the checkpoint of `step` into the run `out`, then drops all but the last `keep`."""
    folder = checkpoint.at_step(out / "checkpoints", step)
    if not folder.exists():
        tensors = {
            "model": model.state_dict(),
            "ema": ema.model.state_dict(),
            "rng": _rng_state(),
            "optimizer": _optimizer_tensors(model, optimizer),
        }
        scaling = {"scaler": scaler.state_dict()} if scaler is not None and scaler.is_enabled() else {}
        checkpoint.save(folder, tensors, {"config": description} | scaling)
    stale = [checkpoint.at_step(folder.parent, old) for old in checkpoint.steps(folder.parent)[:-keep]]
    for path in [*stale, *folder.parent.glob(".*.tmp")]:  # the latter are what a crash left half-written
        shutil.rmtree(path)
    return folder


def restore_state(
    out: Path,
    model: nn.Module,
    ema: EMA,
    optimizer: torch.optim.Optimizer,
    description: dict[str, Any],
    scaler: GradScaler | None = None,
) -> int:
    """Puts the last checkpoint of the run `out` into model, average, optimizer, torch's generators and, where it was saved with
    one, the gradient scaler; returns its step.

    Raises ValueError where there is none, it is corrupt, or it is of another model or other data."""
    folder = find_checkpoint(out)
    saved = checkpoint.load_document(folder, "config")
    for name, value in description.items():
        if saved.get(name) != value:
            raise ValueError(f"resume: expected the run's own {name} {saved.get(name)}, got {value}")
    model.load_state_dict(checkpoint.load_tensors(folder, "model"))
    ema.model.load_state_dict(checkpoint.load_tensors(folder, "ema"))
    _load_optimizer(model, optimizer, checkpoint.load_tensors(folder, "optimizer"))
    _set_rng_state(checkpoint.load_tensors(folder, "rng"))
    if scaler is not None and scaler.is_enabled() and (folder / "scaler.json").exists():
        scaler.load_state_dict(checkpoint.load_document(folder, "scaler"))
    return int(folder.name)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state with the parameters' names: "exp_avg:stem.weight" and so on."""
    return {
        f"{kind}:{name}": value
        for name, parameter in model.named_parameters()
        for kind, value in optimizer.state[parameter].items()
    }


def _load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    index = {name: i for i, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        kind, name = key.split(":", 1)
        if value.shape == parameters[name].shape:
            value = torch.empty_like(parameters[name]).copy_(value)  # its memory format too: a fused step needs the same
        state.setdefault(index[name], {})[kind] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _rng_state() -> dict[str, Tensor]:
    """Dropout draws from torch's generators; all else from keys."""
    state = {"cpu": torch.get_rng_state()}
    return state | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else state


def _set_rng_state(state: dict[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
