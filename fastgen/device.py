"""Which device to compute on, and in which precision."""

import textwrap
import warnings

import torch
from torch import Tensor, nn

from fastgen.errors import expect

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "bf16_weights": torch.bfloat16, "fp16": torch.float16}
"""What matrix products and convolutions are computed in, by the precision; "fp32" is computed without autocast."""

PRECISIONS = ("auto", "fp32", *AUTOCAST_DTYPES)


def resolve_device(name: str = "auto") -> torch.device:
    """ "auto" is cuda where there is one, else mps where it computes what is needed, else cpu; a warning says why an mps that is
    there is not taken. Raises ValueError for a device that this machine does not have, and for one that lacks what is needed."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            reason = unusable("mps")
            if reason is None:
                return torch.device("mps")
            warnings.warn(f"device: auto is cpu here, since mps lacks what is needed ({reason})", stacklevel=2)
        return torch.device("cpu")
    reason = unusable(name)
    if reason is not None:
        raise ValueError(f"device: expected auto, cpu, or a device of this machine, got {name!r} ({reason})")
    return torch.device(name)


def unusable(name: str) -> str | None:
    """Why a device cannot be computed on, in few words; None where it can."""
    try:
        # Samplers and the optimizer compute their coefficients in fp64, which mps lacks so far; "meta" has no values.
        torch.zeros(1, dtype=torch.float64, device=torch.device(name)).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:  # without CUDA torch raises AssertionError
        return textwrap.shorten(str(error).split("\n")[0], 100)  # torch lists all that it could have been
    return None


def place(model: nn.Module, device: torch.device, *, channels_last: bool = True) -> nn.Module:
    """Moves the model to the device, in place, and returns it. On a GPU, with `channels_last`, the weights of its convolutions
    get that memory format, which tensor cores take, and its activations follow."""
    if device.type == "cuda" and channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    return model.to(device)


def cast(model: nn.Module, precision: str) -> nn.Module:
    """The model with its weights in bf16 for "bf16_weights", in place; as it is for another precision."""
    if precision == "bf16_weights":
        for p in model.parameters():
            p.data = p.data.to(torch.bfloat16)  # model.to would cast buffers too, and takes no tensors without data
    return model


def computes_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware: on others bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def computes_fp16(device: torch.device) -> bool:
    """Whether the device is a GPU with tensor cores, all of which multiply fp16."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0)


def resolve_precision(device: torch.device, precision: str) -> str:
    """ "auto" is bf16 where the device computes it, else fp16 where it computes that, else fp32; another is itself. Raises
    ValueError for one that is not in PRECISIONS."""
    expect("precision", precision, precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
    if precision != "auto":
        return precision
    return "bf16" if computes_bf16(device) else "fp16" if computes_fp16(device) else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of a precision, as `resolve_precision` takes it: to bf16 for "bf16_weights" too, off for fp32."""
    precision = resolve_precision(device, precision)
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES.get(precision), enabled=precision in AUTOCAST_DTYPES)


def host_may_read(x: Tensor) -> bool:
    """Whether the host may read a tensor's values: not while a CUDA graph is captured, and not where there are none, on the meta
    device."""
    return not x.is_meta and not (x.is_cuda and torch.cuda.is_current_stream_capturing())
