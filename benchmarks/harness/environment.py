"""What a measurement was made on: device, driver, versions, commit, clocks."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.timing import processor

ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "triton", "numpy", "fastgen-torch", "diffusers")


def describe(commit: str | None = None) -> dict[str, Any]:
    """commit: of the code, where it is not in a git checkout."""
    return {
        "device": device(),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda}
        | {package: installed(package) for package in _PACKAGES},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or git_commit(),
    }


def device() -> dict[str, Any]:
    """The GPU, or the processor where there is none."""
    if not torch.cuda.is_available():
        return {"kind": "cpu", "name": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "kind": "cuda",
        "name": torch.cuda.get_device_name(),
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": f"{properties.total_memory / 2**30:.0f} GiB",
        "L2": f"{properties.L2_cache_size / 2**20:.0f} MiB",
        **nvidia_smi("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit"),
    }


def readings() -> dict[str, str]:
    """What the GPU does at the moment; nothing without one."""
    return nvidia_smi("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "utilization.gpu")


def nvidia_smi(*fields: str) -> dict[str, str]:
    """Fields of nvidia-smi with their units; nothing where it is missing or does not answer."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return {}
    command = [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return {}
    values = answer.stdout.strip().split(", ")
    return dict(zip(fields, values, strict=True)) if answer.returncode == 0 and len(values) == len(fields) else {}


def slug(name: str) -> str:
    """ "NVIDIA H200" as a file name: nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def installed(package: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str:
    """The commit that is checked out, with a word where files differ from it."""
    head, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
    return "unknown: no git checkout" if head is None else f"{head}{' with changes' if changes else ''}"


def _git(*arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
