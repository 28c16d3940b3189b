"""The state of training in a run's folder: begun, saved in checkpoints, restored from the last one."""

import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from fastgen.optim.adamw_ema import AdamWEMA, copy_like
from fastgen.runs import checkpoint
from fastgen.runs.run import find_checkpoint
from fastgen.training.ranks import barrier, full_tensors, gather, rank


def claim(out: Path) -> int:
    """Makes `out` a new run's folder, at step 0. Raises ValueError where it holds a run, or anything else, already."""
    if (out / "checkpoints").is_dir() and any((out / "checkpoints").iterdir()):
        raise ValueError(f"out: {str(out)!r} already holds a run; add --resume to go on with it, or --out for another folder")
    if out.is_dir() and any(out.iterdir()) and not (out / "config.yaml").exists():
        raise ValueError(f"out: expected a new or empty folder, got {str(out)!r}, which holds {next(out.iterdir()).name}")
    barrier()  # all have looked
    if rank() > 0:
        return 0
    try:
        (out / "samples").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: expected a place that can be written, got {str(out)!r}: {error.strerror}") from None
    return 0


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
    stale = [checkpoint.at_step(folder.parent, old) for old in checkpoint.steps(folder.parent)[:-keep]]
    for path in [*stale, *folder.parent.glob(".*.tmp")]:  # the latter are what a crash left half-written
        shutil.rmtree(path)


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
    _load_optimizer(model, optimizer, checkpoint.load_tensors(folder, "optimizer"), int(folder.name))
    optimizer.load_master_state_dict(model, _sharded_as(model, checkpoint.load_tensors(folder, "model")))
    optimizer.load_ema_state_dict(model, checkpoint.load_tensors(folder, "ema"))
    _set_rng_state(checkpoint.load_tensors(folder, "rng"))
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
