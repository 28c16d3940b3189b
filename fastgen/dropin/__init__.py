"""The drop-in: `optimize` makes a model of diffusers, guided-diffusion or one's own faster, and keeps its parameters and
checkpoints."""

from typing import Literal

from torch import nn

from fastgen.dropin.channels_last import to_channels_last, to_contiguous
from fastgen.dropin.report import Changed, Entry, Report
from fastgen.dropin.rules import RULES
from fastgen.dropin.swap import unswap
from fastgen.errors import expect
from fastgen_kernels.dispatch import obstacle

__all__ = ["Entry", "Report", "optimize", "restore"]


def optimize(
    model: nn.Module, *, channels_last: bool | Literal["auto"] = "auto", backend: Literal["auto", "triton"] = "auto"
) -> Report:
    """Makes the model faster, in place: outputs and gradients are the same to rounding, parameters and state_dict the same.

    It knows the blocks of diffusers' UNets and autoencoders (0.30 to 0.42), those of guided-diffusion, nn.GroupNorm anywhere, and
    GroupNorm and SiLU one after the other, in an nn.Sequential or in any module's own forward. Each gets a class of the same name
    that derives from the one it had and whose forward makes fewer passes over memory; input that it is not made for goes to the
    former forward. Every submodule, called by anyone, gives what it gave: two are one op only in the forward of their parent, and
    only while both are of the known classes and without hooks. A second call changes what was added since. Returns what it
    changed, and what it left and why.

    Call it after loading, moving to the GPU and adding LoRA, before DDP, FSDP2 and torch.compile.

    channels_last: whether the weights of convolutions are brought into channels_last, the memory format of tensor cores, which
        activations then take too; "auto": where the model is on a GPU.
    backend: "triton" requires the kernels to run on the model's device; "auto" takes their references where they do not.

    Raises TypeError for an object that is not an nn.Module, ValueError for other options, for a model under FSDP, and for
    backend "triton" where the kernels do not run.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    expect("channels_last", channels_last, channels_last in (True, False, "auto"), "True, False or 'auto'")
    expect("backend", backend, backend in ("auto", "triton"), "'auto' or 'triton'")
    _refuse_sharded("optimize", model)
    devices = {parameter.device for parameter in model.parameters()}
    reasons = {str(device): obstacle(device) for device in devices}
    runs = backend != "triton" or not any(reasons.values())
    expect("backend", backend, runs, f"'auto', since the kernels do not run on the model's device, {reasons}")

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
    """Undoes `optimize`, in place: restores classes, attributes and memory formats. The parameters keep their values.

    Raises ValueError for a model under FSDP.
    """
    _refuse_sharded("restore", model)
    for module in [*model.modules()]:
        unswap(module)
        to_contiguous(module)


def _refuse_sharded(caller: str, model: nn.Module) -> None:
    """Raises ValueError for a model under FSDP, which changes classes too, and whose shards keep their memory format."""
    for name, module in model.named_modules():
        if {"FSDPModule", "FullyShardedDataParallel"} & {cls.__name__ for cls in type(module).__mro__}:
            raise ValueError(f"model: expected one before FSDP, got FSDP on {name or 'the model'}: call {caller} first")
