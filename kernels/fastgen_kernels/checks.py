"""Argument checks shared by the ops. Every message reads "argument: expected …, got …"."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_float(**tensors: Tensor | None) -> None:
    """Raise TypeError for a tensor that is not fp16, bf16, fp32 or fp64; None is an absent argument."""
    for name, x in tensors.items():
        if x is not None and x.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64, got {x.dtype}")


def check_shape(shape: Sequence[int], what: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for a tensor whose shape is not `shape`, which the message calls `what`, as in "(N, C)"."""
    for name, x in tensors.items():
        if x is not None and x.shape != torch.Size(shape):
            raise ValueError(f"{name}: expected shape {what} = {tuple(shape)}, got {tuple(x.shape)}")


def check_device(device: torch.device, what: str, **tensors: Tensor | None) -> None:
    """Raise ValueError for a tensor that is not on `device`, which the message calls `what`."""
    for name, x in tensors.items():
        if x is not None and x.device != device:
            raise ValueError(f"{name}: expected a tensor on the device {what}, {device}, got {x.device}")


def check_batched(**tensors: Tensor) -> None:
    """Raise ValueError for a tensor without a batch dimension."""
    for name, x in tensors.items():
        if x.dim() == 0:
            raise ValueError(f"{name}: expected a batch dimension, (N, ...), got a scalar")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise ValueError for a value that is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_key(key: Tensor, n: int) -> None:
    """Raise for a noise key that is not int64 (N, 4)."""
    if key.dtype != torch.int64:
        raise TypeError(f"key: expected int64, got {key.dtype}")
    check_shape((n, 4), "(N, 4)", key=key)
