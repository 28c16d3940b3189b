"""`fastgen info`: what runs here, and how."""

import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from typing import Any

import torch
import tyro

from fastgen import __version__, functional
from fastgen.device import computes_bf16, resolve_device
from fastgen_kernels.dispatch import obstacle, switched_off


def main(arguments: list[str]) -> None:
    tyro.cli(_info, args=arguments, prog="fastgen info", description="Versions, device, and which path each op takes.")


def _info() -> None:
    device = resolve_device("auto")
    rows = {
        "fastgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "autocast": "bf16" if computes_bf16(device) else "none: the device does not multiply bf16 in hardware",
    }
    ops = [getattr(functional, name) for name in functional.__all__ if name not in ("at", "fresh_key", "noise_key")]
    rows |= {op.__name__: _path(op, device) for op in ops}
    for name, value in rows.items():
        print(f"{name:19}{value}")


def _path(op: Callable[..., Any], device: torch.device) -> str:
    """Which path the op takes on the device, and why."""
    if importlib.util.find_spec(f"{op.__module__}_triton") is None:
        return "reference: it has no kernel yet"
    if switched_off():
        return "reference: FASTGEN_KERNELS is off"
    reason = obstacle(device)
    if reason is not None:
        return f"reference: {reason}"
    return "kernel" if device.type == "cuda" else "kernel, in Triton's interpreter"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
