"""`fastgen info`: what runs here, and how."""

import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import torch
import tyro

from fastgen import __version__, functional
from fastgen.device import resolve_device, resolve_precision
from fastgen_kernels.attention.choice import has_tiles
from fastgen_kernels.dispatch import obstacle, switched_off


def main(arguments: list[str]) -> None:
    tyro.cli(_info, args=arguments, prog="fastgen info", description="Versions, device, and which path each op takes.")


def _info() -> None:
    device = resolve_device("auto")
    precision = resolve_precision(device, "auto")
    rows = {
        "fastgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "autocast": precision if precision != "fp32" else "none: the device does not multiply 16 bits in hardware",
    }
    ops = [getattr(functional, name) for name in functional.__all__ if name not in ("at", "fresh_key", "noise_key")]
    rows |= {op.__name__: _path(op, device) for op in ops}
    for name, value in rows.items():
        print(f"{name:19}{value}")


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
        return "kernel in 16 bits, at some sizes" if has_tiles(device) else "reference: its kernels need compute capability 9.0"
    return "kernel"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
