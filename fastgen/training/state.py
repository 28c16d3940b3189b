"""The state of training in a run's folder: begun, saved in checkpoints, restored from the last one."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastgen.atomic import beside, write_text
from fastgen.config.files import load_yaml, to_dict
from fastgen.config.schema import TrainConfig
from fastgen.errors import expect
from fastgen.optim.adamw_ema import AdamWEMA, copy_like
from fastgen.runs import checkpoint
from fastgen.runs.run import find_checkpoint, made_of
from fastgen.training.lock import LOCK
from fastgen.training.metrics_log import read_metrics
from fastgen.training.ranks import MARK, full_tensors, gather, rank

HISTORY = "history.jsonl"  # the settings of a run, where they were changed on the way


OWN = {"config.yaml", "history.jsonl", "metrics.jsonl", "loss.png", "samples", "checkpoints", "tensorboard", "wandb", "wandb-id"}
OWN |= {MARK, LOCK}
"""What lies in a run's folder."""


def expect_new(out: Path) -> None:
    """Raises ValueError where the folder `out` holds a run with a checkpoint, or anything that training did not write. A start
    that was stopped before its first checkpoint is begun again, over what it left."""
    if checkpoint.steps(out / "checkpoints"):
        raise ValueError(f"out: {str(out)!r} already holds a run; add --resume to go on with it, or --out for another folder")
    names = {path.name for path in out.iterdir()}
    foreign = sorted(names - OWN - {beside(out / name).name for name in OWN})
    begun = "config.yaml" in names or not any(path.is_file() for path in out.glob("samples/*"))
    if foreign or not begun:
        held = foreign[0] if foreign else "samples"
        raise ValueError(f"out: expected a new or empty folder, got {str(out)!r}, which holds {held}")


def note_settings(out: Path, step: int, config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that a run in `out` goes on with from `step` where they are others than before, {"lr": (before, now)}; and
    keeps both, in history.jsonl: a line for each time that settings were changed, with the step from which they held.

    Raises ValueError where the folder's own settings cannot be read."""
    kept = out / "config.yaml"
    if not kept.is_file():
        return {}
    before, now = to_dict(load_yaml(kept)), to_dict(config)
    changed = _differences(before, now)
    if changed:
        # A change that was noted at this step or later led to nothing that is kept: the run goes on from here.
        noted = [line for line in read_metrics(out / HISTORY) if line["step"] < step] or [{"step": 0, "settings": before}]
        lines = [*noted, {"step": step, "settings": now}]
        write_text(out / HISTORY, "".join(json.dumps(line) + "\n" for line in lines))
    return changed


def data_of(out: Path) -> str | None:
    """The digest of the data that the run in `out` was trained on; None where its last checkpoint has none. Raises ValueError
    where there is no checkpoint, or it is corrupt."""
    return checkpoint.load_document(find_checkpoint(out), "config").get("data")


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for name in [*before, *(name for name in now if name not in before)]:
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found |= _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found[prefix + name] = old, new
    return found


def save_state(
    out: Path,
    step: int,
    model: nn.Module,
    optimizer: AdamWEMA,
    description: dict[str, Any],
    keep: int,
    scaler: GradScaler | None = None,
) -> None:
    """Writes the checkpoint of `step`, which has none yet, into the run `out`, then drops all but the last `keep`. Every rank
    must call it; the first one writes, the same files for any number of them but for the generators' states. Of parameters in
    bf16 it writes the fp32 masters, so that a run may go on in another precision."""
    tensors = {
        "model": full_tensors(optimizer.master_state_dict(model)),
        "ema": full_tensors(optimizer.ema_state_dict(model)),
        "rng": _rng_states(),
        "optimizer": full_tensors(_optimizer_tensors(model, optimizer)),
    }
    if rank() > 0:
        return
    folder = checkpoint.at_step(out / "checkpoints", step)
    scaling = {"scaler": scaler.state_dict()} if scaler is not None and scaler.is_enabled() else {}
    checkpoint.save(folder, tensors, {"config": description} | scaling)
    checkpoint.drop_old(folder.parent, keep)


def restore_state(
    out: Path,
    model: nn.Module,
    optimizer: AdamWEMA,
    description: dict[str, Any],
    scaler: GradScaler | None = None,
) -> int:
    """Puts the last checkpoint of the run `out` into model, optimizer with its average, torch's generators and, where it was
    saved with one, the gradient scaler; returns its step. Every rank must call it, with any number of them.

    Raises ValueError where there is none, it is corrupt, or it is of another model or other data."""
    folder = find_checkpoint(out)
    saved = checkpoint.load_document(folder, "config")
    for name, value in description.items():
        if saved.get(name) != value:
            raise ValueError(f"resume: expected the run's own {name} {saved.get(name)}, got {value}")
    tensors = {name: checkpoint.load_tensors(folder, name) for name in ("optimizer", "model", "ema", "rng")}
    for name, restore in (
        ("optimizer", lambda: _load_optimizer(model, optimizer, tensors["optimizer"], int(folder.name))),
        ("model", lambda: optimizer.load_master_state_dict(model, _sharded_as(model, tensors["model"]))),
        ("ema", lambda: optimizer.load_ema_state_dict(model, tensors["ema"])),
        ("rng", lambda: _set_rng_state(tensors["rng"])),
    ):
        with made_of(folder / f"{name}.safetensors", "the state of this model's training"):
            restore()
    if scaler is not None and scaler.is_enabled() and (folder / "scaler.json").exists():
        scaler.load_state_dict(checkpoint.load_document(folder, "scaler"))
    return int(folder.name)


def _optimizer_tensors(model: nn.Module, optimizer: AdamWEMA) -> dict[str, Tensor]:
    """The optimizer's state with the parameters' names, "exp_avg:stem.weight" and so on, and "counts"."""
    state, names = optimizer.state_dict(), [name for name, _ in model.named_parameters()]
    moments = {f"{kind}:{names[i]}": value for i, values in state["state"].items() for kind, value in values.items()}
    return moments | {"counts": state["counts"]}


def _sharded_as(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the names of the model's, each with its own dtype and the device, memory format and shards of the model's."""
    own = model.state_dict()
    return {name: copy_like(value, own[name], value.dtype) if name in own else value for name, value in tensors.items()}


def _load_optimizer(model: nn.Module, optimizer: AdamWEMA, tensors: dict[str, Tensor], step: int) -> None:
    """step: what older checkpoints, which have no counts, are taken to have made."""
    parameters = dict(model.named_parameters())
    index = {name: i for i, name in enumerate(parameters)}
    missing = [name for name, p in parameters.items() for kind in ("step", "exp_avg") if f"{kind}:{name}" not in tensors]
    expect("parameters", missing, len(missing) in (0, 2 * len(parameters)) and tensors, "the moments of all parameters")
    counts = tensors.pop("counts", torch.tensor([step, 0]))
    kinds: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for key, value in tensors.items():
        kind, name = key.split(":", 1)
        same = value.shape == parameters[name].shape
        kinds[kind][index[name]] = copy_like(value, parameters[name], value.dtype) if same else value
    state = {i: {kind: values[i] for kind, values in kinds.items()} for i in kinds["step"]}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"], "counts": counts})


def _rng_states() -> dict[str, Tensor]:
    """The state of torch's generators on every rank, "cpu", "cuda", "cpu:1", "cuda:1" ...: dropout draws from them, all else from
    keys."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return {f"{kind}:{r}" if r else kind: value for r, one in enumerate(gather(state)) for kind, value in one.items()}


def _set_rng_state(states: dict[str, Tensor]) -> None:
    """This rank's; one that the run did not have goes on with generators as they begin."""
    suffix = f":{rank()}" if rank() else ""
    if f"cpu{suffix}" in states:
        torch.set_rng_state(states[f"cpu{suffix}"])
    if f"cuda{suffix}" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[f"cuda{suffix}"])
