"""`fastgen info [--preset PRESET] [--batch N]`: what runs here, and how; or how much memory training takes."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import torch
import tyro

from fastgen import __version__, functional
from fastgen.config.presets import PRESETS
from fastgen.data import open_dataset
from fastgen.data.indexed import IndexedDataset
from fastgen.data.units import measure
from fastgen.device import resolve_device, resolve_precision, unusable
from fastgen.errors import expect, lookup
from fastgen.training.data import reading
from fastgen.training.footprint import footprint
from fastgen_kernels.attention.choice import has_kernels
from fastgen_kernels.dispatch import obstacle, switched_off


def main(arguments: list[str]) -> None:
    """Prints versions and paths of the ops, or a preset's memory. arguments: those after `fastgen info`. Raises ValueError for
    an unknown preset or one whose data have any shape, and for --batch without --preset."""
    tyro.cli(_info, args=arguments, prog="fastgen info")


def _info(preset: str | None = None, batch: int | None = None) -> None:
    """Versions, device, and which path each op takes; or, of a preset, the memory that training it on a GPU takes.

    Args:
        preset: Count the memory of its training step, without a GPU.
        batch: Samples per step, instead of the preset's.
    """
    expect("batch", batch, batch is None or preset is not None, "none without --preset")
    rows = _versions() if preset is None else _memory(preset, batch)
    for name, value in rows.items():
        print(f"{name:19}{value}")


def _versions() -> dict[str, str]:
    device = resolve_device("auto")
    precision = resolve_precision(device, "auto")
    rows = {
        "fastgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": _device_name(device),
        "autocast": precision if precision != "fp32" else "none: the device does not multiply 16 bits in hardware",
    }
    ops = [getattr(functional, name) for name in functional.__all__ if name not in ("at", "fresh_key", "noise_key")]
    return rows | {op.__name__: _path(op, device) for op in ops}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    if device.type == "mps":
        return "mps"
    reason = unusable("mps") if torch.backends.mps.is_available() else None
    instead = "" if reason is None else f"; not mps, which lacks what is needed: {reason}"
    return f"cpu, {torch.get_num_threads()} threads{instead}"


def _memory(preset: str, batch: int | None) -> dict[str, str]:
    """The footprint of a preset; where it names no data, RGB images without classes are assumed."""
    config = lookup("preset", preset, PRESETS)
    if batch is not None:
        config = dataclasses.replace(config, batch_size=batch)
    source = config.data
    what, values = "images", None
    if source.source:
        data = open_dataset(source.source, **reading(source))
        shape, num_classes = data.shape, data.num_classes
        if isinstance(data, IndexedDataset) and data.kind == "values":
            what, values = "rows of" if len(shape) == 1 else "signals", measure(data)
    else:
        side = source.size or 0
        expect("preset", preset, side, "one that names its data or the size of its images")
        shape, num_classes = (source.channels or 3, side, side), None
    found = {
        precision: footprint(config, shape, num_classes, precision, values) for precision in ("bf16", "bf16_weights", "fp32")
    }
    classes = "" if num_classes is None else f", {num_classes} classes"
    parts = "" if config.accumulation == 1 else f" in {config.accumulation} parts"
    rows = {
        "batch": f"{config.batch_size} {what} {'x'.join(map(str, shape))}{classes}{parts}",
        "parameters": f"{found['bf16'].parameters:,}",
    }
    for part in ("weights", "gradients", "optimizer", "average"):
        usual, rounded = (_megabytes(getattr(found[precision], part)) for precision in ("bf16", "bf16_weights"))
        rows[part] = usual if usual == rounded else f"{usual}, {rounded} with bf16_weights"
    for precision, one in found.items():
        rows[precision] = f"{_megabytes(one.activations)} of activations, {_megabytes(one.total)} in all"
    return rows


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _path(op: Callable[..., Any], device: torch.device) -> str:
    """Which path the op takes on the device, and why."""
    if switched_off():
        return "reference: FASTGEN_KERNELS is off"
    reason = obstacle(device)
    if reason is not None:
        return f"reference: {reason}"
    if device.type != "cuda":
        return "kernel, in Triton's interpreter"
    if op in (functional.attention, functional.attention_qkv):
        return "kernel in 16 bits, at some sizes" if has_kernels(device) else "reference: no kernel is listed for this GPU"
    return "kernel"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
