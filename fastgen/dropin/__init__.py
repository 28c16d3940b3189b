"""The drop-in: a model that someone has, faster, with the same parameters and checkpoints."""

from typing import Literal

from torch import nn

from fastgen.dropin.channels_last import to_channels_last, to_contiguous
from fastgen.dropin.report import Changed, Entry, Report
from fastgen.dropin.rules import RULES
from fastgen.dropin.swap import unswap
from fastgen_kernels.checks import check_choice
from fastgen_kernels.dispatch import obstacle

__all__ = ["Entry", "Report", "optimize", "restore"]


def optimize(
    model: nn.Module, *, channels_last: bool | Literal["auto"] = "auto", backend: Literal["auto", "triton"] = "auto"
) -> Report:
    """Makes the model faster, in place: outputs and gradients are the same to rounding, parameters and state_dict the same.

    It knows the blocks of diffusers' UNets and autoencoders, guided-diffusion's GroupNorm32, nn.GroupNorm anywhere, and GroupNorm
    and SiLU beside each other in an nn.Sequential. Each gets a class of the same name that derives from the one it had and makes
    fewer passes over memory; where that does not fit an input, the former forward is called. A second call changes what is new.

    Call it after loading, moving to the GPU and adding LoRA, before DDP, FSDP2 and torch.compile.

    channels_last: whether weights of convolutions are laid out as tensor cores take them, so that all that passes between is
        channels_last; "auto" where the model is on a GPU.
    backend: "triton" requires the kernels to run on the model's device; "auto" takes their references where they do not.

    Raises TypeError for what is no nn.Module, ValueError for other options, for a model under FSDP, and for backend "triton"
    where the kernels do not run.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize: model must be an nn.Module, got {type(model).__name__}")
    check_choice("optimize", "channels_last", channels_last, (True, False, "auto"))
    check_choice("optimize", "backend", backend, ("auto", "triton"))
    devices = {parameter.device for parameter in model.parameters()}
    reasons = {str(device): obstacle(device) for device in devices}
    if backend == "triton" and any(reasons.values()):
        raise ValueError(f"optimize: backend 'triton' must run on the model's device, got {reasons}")
    for name, module in model.named_modules():
        if {"FSDPModule", "FullyShardedDataParallel"} & {cls.__name__ for cls in type(module).__mro__}:
            raise ValueError(
                f"optimize: model must not be sharded yet, got FSDP on {name or 'the model'}: call optimize before it"
            )

    changed: list[Entry] = []
    left: list[Entry] = []
    for rule in RULES:
        for name, module in [*model.named_modules()]:
            if outcome := rule(module):
                entry = Entry(name, type(module).__name__, outcome.text)
                (changed if isinstance(outcome, Changed) else left).append(entry)
    if channels_last == "auto":
        channels_last = {device.type for device in devices} == {"cuda"}
    return Report(tuple(changed), tuple(left), to_channels_last(model) if channels_last else 0)


def restore(model: nn.Module) -> None:
    """Undoes `optimize`: the classes, attributes and memory formats from before. The parameters' values stay as they are."""
    for module in [*model.modules()]:
        unswap(module)
        to_contiguous(module)
