"""Where attention takes its kernels and where scaled_dot_product_attention; and which backward pass the kernels have."""

import torch
from torch import Tensor

from fastgen_kernels.dispatch import capability, interpreted


def has_tiles(device: torch.device) -> bool:
    """Architectures other than Hopper have none yet."""
    return capability(device) == (9, 0)


def kernels_are_faster(d: int, keys: int, dtype: torch.dtype, device: torch.device) -> bool:
    """In the interpreter kernels are what is wanted."""
    return interpreted() or (has_tiles(device) and faster_on_hopper(d, keys, dtype))


def faster_on_hopper(d: int, keys: int, dtype: torch.dtype) -> bool:
    """In 16 bits, where SDPA's transposes should cost about as much as its products. That is arithmetic: nothing was measured."""
    return dtype.itemsize == 2 and (keys <= 1024 if d <= 64 else keys <= 256 and d <= 128)


def readable(*heads: Tensor) -> bool:
    """Whether tiles of heads (N, H, S, D) are read 16 bytes at a time: columns or positions side by side, and where it is
    positions a multiple of 8. In the interpreter it does not matter."""
    return interpreted() or all(x.stride(3) == 1 or (x.stride(2) == 1 and x.stride(3) % 8 == 0) for x in heads)


def one_tile(d: int, keys: int, dtype: torch.dtype) -> bool:
    """Whether in backward a program holds all keys of a head, so that the output need not be kept: where registers hold them and
    their gradients without spilling, as `python -m benchmarks.aot --op attention` shows."""
    if dtype.itemsize > 2 or d > 128:
        return False
    return keys <= 64 or (keys <= 128 and (d <= 64 or d > 96)) or (keys <= 256 and (d <= 32 or 48 < d <= 64))
