"""Distributing a module over ranks: copies (DDP) or shards (FSDP2), and sharded tensors in and out of files."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from fastgen.training.ranks import rank, world


def distribute(objective: nn.Module, device: torch.device, *, shards: bool) -> nn.Module:
    """The objective, to be trained on all ranks: its gradients are means over them. Before an optimizer is made: shards are other
    parameters. In one process it is the objective itself."""
    if world() == 1:
        return objective
    if shards:
        shard(objective, device)
        return objective
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(objective, ids, gradient_as_bucket_view=True)


def shard(module: nn.Module, device: torch.device, *, free: bool = True) -> None:
    """Spreads the parameters of a module over the ranks: each block of its lists is gathered when it is computed, and what is
    outside of blocks with the module. free: blocks give up what was gathered once they are computed."""
    # A block hands on what it was given, for skip connections, which is safe: nothing is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world(),))
    for block in [*_blocks(module), module]:
        fully_shard(block, mesh=mesh, reshard_after_forward=free)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def accumulating(objective: nn.Module, last: bool) -> Any:
    """The context of a part of a batch: ranks exchange gradients after the last part alone."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, every rank has all of a model that was sharded with free=False, and may compute it alone."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.unshard()
    yield
    for module in shards:
        module.reshard()


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is sharded made whole, on every rank that asks for it at the same time, and put on the CPU by the first alone."""
    made = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if rank() == 0:
            made[name] = full.cpu() if isinstance(value, DTensor) else full
    return made


def laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value, the same on every rank, with its own dtype and the parameter's device, memory format and shards."""
    if isinstance(parameter, DTensor):
        value = distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
