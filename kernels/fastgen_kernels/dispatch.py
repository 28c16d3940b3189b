"""Which path an op takes: its Triton kernel or its reference.

Kernels run on NVIDIA GPUs from compute capability 8.0 on. With TRITON_INTERPRET=1 in the environment they run on CPU tensors, in
Triton's interpreter, which is slow and meant for tests. FASTGEN_KERNELS=off, read once at import, or `disabled()` forces the
reference everywhere.
"""

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

_SWITCH = os.environ.get("FASTGEN_KERNELS", "on")
if _SWITCH not in ("on", "off"):
    raise ValueError(f"FASTGEN_KERNELS: expected on or off, got {_SWITCH!r}")
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # when triton reads it: before it is imported
_enabled = _SWITCH == "on"
_repeated_on_cpu = False


def use_triton(*tensors: Tensor | None, dtype: torch.dtype | None = None) -> bool:
    """Whether an op on these tensors takes its kernel; None is an absent argument.

    dtype: of a result of another dtype than the tensors. fp64, in which the tensors or the result make the op compute, takes the
    reference on a GPU: the kernels' tiles are made for the registers that fp32 needs. The transforms of torch.func and
    forward-mode differentiation take it too: kernels have derivatives for backward alone.
    """
    if not _enabled or (dtype == torch.float64 and not _INTERPRETED) or transformed():
        return False
    for x in tensors:
        if x is not None and (obstacle(x.device) is not None or (x.dtype == torch.float64 and not _INTERPRETED)):
            return False
    return True


def transformed() -> bool:
    """Whether a transform of torch.func, or forward-mode differentiation, looks at what is computed."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


@contextmanager
def disabled() -> Iterator[None]:
    """Ops called inside take their reference: to compare, to differentiate twice, to look for a fault."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def repeats(x: object) -> bool:
    """Whether a call of an op on x may be repeated from a recording: on a GPU, where nothing looks at what is computed."""
    return (
        (type(x) is Tensor or type(x) is Parameter)
        and (x.is_cuda or _repeated_on_cpu)  # type: ignore[attr-defined]
        and _enabled
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._is_tracing()
    )


@contextmanager
def repeated_on_cpu() -> Iterator[None]:
    """Calls on CPU tensors are repeated too, where a driver without a device, or the interpreter, stands for a GPU."""
    global _repeated_on_cpu
    before, _repeated_on_cpu = _repeated_on_cpu, True
    try:
        yield
    finally:
        _repeated_on_cpu = before


@contextmanager
def on_fake_tensors() -> Iterator[None]:
    """Ops called inside, on tensors without data, take their kernels as on an H200; nothing is launched, so no GPU or Triton is
    needed."""
    global _enabled, _INSTALLED, _INTERPRETED
    before = _enabled, _INSTALLED, _INTERPRETED
    _enabled = _INSTALLED = _INTERPRETED = True
    try:
        yield
    finally:
        _enabled, _INSTALLED, _INTERPRETED = before


def obstacle(device: torch.device) -> str | None:
    """Why kernels do not run on a device, None where they do."""
    if not _INSTALLED:
        return "triton is not installed"
    if device.type == "cpu":
        return None if _INTERPRETED else "the device is a CPU"
    if device.type != "cuda" or torch.version.cuda is None:
        return "the device is no NVIDIA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    return None if major >= 8 else f"compute capability 8.0 or newer is needed, the device has {major}.{minor}"


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a GPU; where kernels are interpreted, that of an H200."""
    return (9, 0) if _INTERPRETED else torch.cuda.get_device_capability(device)


# Dynamo calls them instead of tracing them. torch.compiler.assume_constant_result does this too, but imports all of Dynamo first.
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]
capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; where kernels are interpreted, or compiled ahead of time, those of an H200."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return _INTERPRETED


def switched_off() -> bool:
    """Whether FASTGEN_KERNELS or `disabled()` forces the references."""
    return not _enabled
