"""How much memory is free."""

import os
from pathlib import Path

import torch


def free_memory(device: torch.device) -> int:
    """Free bytes on a CUDA device; for any other, of this process's share of the host's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _free_host_memory() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's processes decode all at once


def _free_host_memory() -> int:
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if not meminfo.exists():
        return 8 << 30  # macOS, Windows: a laptop
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = container.read_text().strip() if container.exists() else "max"
    return free if limit == "max" else min(free, int(limit))
