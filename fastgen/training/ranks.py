"""Training in several processes that torchrun starts: who they are, what they agree on, and how a model is spread over them, in
copies (DDP) or shards (FSDP2). One process agrees with itself."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from fastgen.errors import expect

T = TypeVar("T")

PATIENCE = timedelta(hours=1)  # the others wait while the first rank draws samples and writes
MARK = ".torchrun"  # the file in a run's folder that names the torchrun which began it


def rank() -> int:
    """The number of this process; the first, 0, alone writes, draws samples and shows progress."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined() -> Iterator[None]:
    """Connects the processes, GPUs by NCCL and processors by gloo, and parts them at the end. Where they are connected already,
    or there is but one, it does nothing.

    An error is handed to torchrun, which ends the others and reports the first. Where the error is that another rank is gone,
    ConnectionError says so in one line, and the other's own says why.
    """
    if world() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    except BaseException as error:
        if _of_a_peer(error):
            raise ConnectionError(f"rank {rank()} stops: another rank is gone") from error
        get_error_handler().record_exception(error)
        raise
    dist.destroy_process_group()


def _of_a_peer(error: BaseException) -> bool:
    """Whether it is what NCCL or gloo raises when another process went away; gloo has no class of its own for it."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def expect_own_device(name: str, device: torch.device) -> None:
    """Raises ValueError where the device that a setting named, or chose, would be one GPU for several ranks."""
    if world() > 1 and device.type == "cuda":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        expect("device", name, device.index is None, "auto, cpu or cuda: each rank has a GPU of its own")
        expect("device", name, here <= torch.cuda.device_count(), f"cpu, or {here} GPUs for {here} ranks")


def barrier() -> None:
    """Waits until every rank is here."""
    if world() > 1:
        dist.all_reduce(torch.zeros(()))  # dist.barrier would take a GPU for it


def mean(value: Tensor) -> Tensor:
    """The mean over the ranks of a tensor that each has, which a GPU computes without the host waiting."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world()


def gather(value: T) -> list[T]:
    """What each rank has, in their order. For what is small: it is pickled."""
    values: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


class Vote:
    """vote(code), which every rank calls at every step: the largest code that any of them gave at the step before.

    All ranks so see the same at the same step, and stop there together. The answer to a step comes while the next one is
    computed: it passes between the hosts alone and nothing waits for it, where one that rode on the logged loss would come after
    `log_every` steps, which may be longer than the 30 s that torchrun leaves a process between SIGTERM and SIGKILL.
    """

    def __init__(self) -> None:
        self._codes, self._work = torch.zeros((), dtype=torch.int32), None

    def __call__(self, code: int) -> int:
        before = self.close()
        self._codes = torch.tensor(code, dtype=torch.int32)
        self._work = dist.all_reduce(self._codes, dist.ReduceOp.MAX, async_op=True)
        return before

    def close(self) -> int:
        """The answer that is still on its way."""
        if self._work is not None:
            self._work.wait()
        return int(self._codes.numpy())


def restarted(out: Path) -> bool:
    """Whether this torchrun had begun the run `out`, and started processes again after some died, and there is a checkpoint to go
    on from. A folder that another torchrun left is never taken for that. Every rank must call it; all are told the same.

    torchrun starts processes again reliably with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in its own environment: else they all
    connect through the store of the torchrun, which may still hold what the dead ones left there.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    begun = (out / MARK).exists() and (out / MARK).read_text() == _job() and any((out / "checkpoints").glob("[0-9]*"))
    # How often is counted for each machine, and the first rank's name is the one in the mark.
    known = torch.tensor([int(os.environ["TORCHELASTIC_RESTART_COUNT"]), rank() == 0 and begun])
    if world() > 1:
        dist.all_reduce(known, dist.ReduceOp.MAX)
    return bool(known.all())


def mark(out: Path) -> None:
    """Leaves in a run's folder what `restarted` knows it by."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        (out / MARK).write_text(_job())


def _job() -> str:
    """The name of the torchrun that started this process. One without --rdzv-id may be called "none": the parent is then its
    own, where the first rank always is."""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"process {os.getppid()}"


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


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is sharded made whole, on every rank that asks for it at the same time, and put on the CPU by the first alone."""
    made = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if rank() == 0:
            made[name] = full.cpu() if isinstance(value, DTensor) else full
    return made
