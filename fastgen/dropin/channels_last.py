"""The memory format of a model's convolutions."""

import torch
from torch import nn

_CONVERTED = "_fastgen_channels_last"  # names of the parameters of a module


def to_channels_last(model: nn.Module) -> int:
    """Brings the 4-dimensional weights of a model into channels_last, in place. Returns how many it changed."""
    count = 0
    for module in model.modules():
        names = [name for name, weight in module._parameters.items() if weight is not None and _differs(weight)]
        if names:
            module.__dict__[_CONVERTED] = names
            for name in names:
                weight = module._parameters[name]
                weight.data = weight.data.contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
            count += len(names)
    return count


def to_contiguous(module: nn.Module) -> None:
    """Undoes `to_channels_last` for a module, not its children."""
    for name in module.__dict__.pop(_CONVERTED, ()):
        weight = module._parameters[name]
        weight.data = weight.data.contiguous()  # type: ignore[union-attr]


def _differs(weight: torch.Tensor) -> bool:
    return weight.dim() == 4 and not weight.is_contiguous(memory_format=torch.channels_last)
