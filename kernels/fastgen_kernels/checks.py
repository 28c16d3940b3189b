"""Argument checks shared by the ops. Every message reads "argument: expected …, got …".

Types, dtypes, shapes and devices are checked at every call. Values in tensors are checked where nothing waits for them: on a CPU,
see `has_values`.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastgen_kernels.dispatch import interpreted, switched_off
from fastgen_kernels.messages import shown

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (int, torch.SymInt, np.integer)
_NUMBERS = (float, int, torch.SymFloat, torch.SymInt, np.floating, np.integer)


def check_float(**tensors: Any) -> None:
    """Raise TypeError for what is not a tensor of fp16, bf16, fp32 or fp64."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or x.dtype not in FLOATS:
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64 in a tensor, got {_kind(x)}")


def check_optional_float(**tensors: Any) -> None:
    """As check_float, which raises TypeError, of arguments that may be absent, None."""
    for name, x in tensors.items():
        if x is not None and (not isinstance(x, Tensor) or x.dtype not in FLOATS):
            raise TypeError(f"{name}: expected float16, bfloat16, float32 or float64 in a tensor, got {_kind(x)}")


def check_float_or_uint8(**tensors: Any) -> None:
    """As check_float, which raises TypeError, of images, which may be bytes too."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor) or (x.dtype != torch.uint8 and x.dtype not in FLOATS):
            raise TypeError(f"{name}: expected float16, bfloat16, float32, float64 or uint8 in a tensor, got {_kind(x)}")


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
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {shown(value)}")


def check_number(name: str, value: Any, expected: str = "a finite number >= 0", low: float = 0.0) -> None:
    """Raise TypeError for what is not a number, ValueError for one below `low` and for one that is not finite."""
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    if not low <= value < math.inf:
        raise ValueError(f"{name}: expected {expected}, got {value}")


def check_finite(name: str, value: Any) -> None:
    """Raise TypeError for what is not a number, ValueError for one that is not finite."""
    if not isinstance(value, _NUMBERS):
        raise TypeError(f"{name}: expected a finite number, got {shown(value)}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value}")


def check_divisor(name: str, value: Any, of: str, total: int) -> None:
    """Raise TypeError for what is not an integer, ValueError for one that does not divide `total`, which the message calls
    `of`."""
    if not isinstance(value, _INTEGERS):
        raise TypeError(f"{name}: expected a whole number that divides {of} = {total}, got {shown(value)}")
    if value < 1 or total % value:  # type: ignore[operator]
        raise ValueError(f"{name}: expected a divisor of {of} = {total}, got {value}")


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise TypeError for what is not an integer, ValueError for one below `low`, or at `high` and above where that is given."""
    expected = f"a whole number >= {low}" if high is None else f"a whole number from {low} to {high - 1}"
    if not isinstance(value, _INTEGERS):
        raise TypeError(f"{name}: expected {expected}, got {shown(value)}")
    if value < low or (high is not None and value >= high):
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}")


def check_key(key: Any, n: int | None = None) -> None:
    """Raise for a noise key that is not int64 (N, 4). n: its N, where that is known."""
    if not isinstance(key, Tensor):
        raise TypeError(f"key: expected an int64 tensor (N, 4), as noise_key makes it, got {shown(key)}")
    if key.dtype != torch.int64:
        raise TypeError(f"key: expected int64, got {key.dtype}")
    if n is None:
        n = key.shape[0] if key.dim() == 2 else 0
    check_shape((n, 4), "(N, 4)", key=key)


def check_dtype(dtype: Any) -> None:
    """Raise TypeError for what is not one of FLOATS."""
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected a floating dtype, got {shown(dtype)}")


def check_range(name: str, x: Tensor, low: float, high: float) -> None:
    """Raise ValueError for a CPU tensor with a value outside of [low, high], or NaN. On other devices it would wait: there it
    does nothing."""
    if has_values(x) and x.numel():
        least, most = (value.item() for value in x.detach().aminmax())
        if not (low <= least and most <= high):
            worst = most if least >= low else least
            raise ValueError(f"{name}: expected values from {low} to {high}, got {worst}")


def check_finite_values(**tensors: Tensor | None) -> None:
    """Raise ValueError for a CPU tensor that holds NaN or infinity; elsewhere it would wait and does nothing."""
    for name, x in tensors.items():
        if x is not None and has_values(x) and not math.isfinite(x.detach().sum(dtype=torch.float64).item()):  # in one pass
            raise ValueError(f"{name}: expected finite numbers, got {x.detach()[~x.detach().isfinite()][0].item()}")


def has_values(x: Tensor) -> bool:
    """Whether a tensor's values can be read without waiting: on a CPU that takes the references, and outside of torch.compile,
    fake tensors, other modes that see each operation, and torch.func's transforms."""
    return (
        x.device.type == "cpu"
        and (switched_off() or not interpreted())  # in the interpreter a CPU stands for a GPU
        and type(x) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _kind(x: object) -> str:
    """What was given for a tensor: its dtype, or what else it is."""
    return str(x.dtype) if isinstance(x, Tensor) else shown(x)
