"""Training in several processes that torchrun starts: who they are, what they agree on, and how a model is spread over them, in
copies (DDP) or shards (FSDP2). One process agrees with itself."""

import os
import warnings
from collections.abc import Callable, Iterator
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

from fastgen.atomic import write_text
from fastgen.errors import expect
from fastgen.runs import checkpoint

T = TypeVar("T")

TIMEOUT = timedelta(hours=1)  # the other ranks wait while the first one draws samples and writes
MARK = ".torchrun"  # the file in a run's folder that names the torchrun which began it


def rank() -> int:
    """The number of this process, torchrun's RANK. Rank 0 alone writes, draws samples and shows progress."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes train together, torchrun's WORLD_SIZE."""
    return int(os.environ.get("WORLD_SIZE", 1))


def cores() -> int:
    """Processor cores for this process: those of the machine, shared evenly by the ranks on it (torchrun's LOCAL_WORLD_SIZE); at
    least 1. More threads than that wait for one another: a step then takes several times as long."""
    return max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


@contextmanager
def joined() -> Iterator[None]:
    """A context in which the processes are connected, GPUs by NCCL and processors by gloo. It does nothing where they are
    connected already, or there is one process.

    An error inside is handed to torchrun, which ends the other processes and reports the error that came first. Raises
    ConnectionError, of one line, where the error is that another rank is gone: that rank's own error says why.
    """
    if world() == 1 or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
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
    """Raises ValueError where several ranks would share one GPU. name: the setting, device: what it was resolved to."""
    if world() > 1 and device.type == "cuda":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        expect("device", name, device.index is None, "auto, cpu or cuda: each rank has a GPU of its own")
        expect("device", name, here <= torch.cuda.device_count(), f"cpu, or {here} GPUs for {here} ranks")


def barrier() -> None:
    """Waits until every rank is here."""
    if world() > 1:
        dist.all_reduce(torch.zeros(()))  # dist.barrier would take a GPU for it


def mean(value: Tensor) -> Tensor:
    """The mean over the ranks of a tensor of one shape on each. Nothing waits for a GPU."""
    if world() == 1:
        return value
    value = value.clone()
    dist.all_reduce(value)
    return value / world()


def gather(value: T) -> list[T]:
    """The value of each rank, in their order, on every rank. It is pickled: for small values."""
    values: list[Any] = [value] * world()
    if world() > 1:
        dist.all_gather_object(values, value)
    return values


def agreed(check: Callable[[], object]) -> None:
    """Calls check() on rank 0 alone. Every rank must call it. Raises its ValueError on every rank."""
    problem: str | None = None
    if rank() == 0:
        try:
            check()
        except ValueError as error:
            problem = str(error)
    problem = gather(problem)[0]
    if problem is not None:
        raise ValueError(problem)


class Vote:
    """vote(code), which every rank calls at every step: the largest code that any of them gave at the step before.

    All ranks so get the same answer at the same step, and stop there together. The codes are exchanged between the hosts while
    the step is computed, and nothing waits for them. (With the logged loss they would come after `log_every` steps, which may
    take longer than the 30 s that torchrun leaves a process between SIGTERM and SIGKILL.)
    """

    def __init__(self) -> None:
        self._codes, self._work = torch.zeros((), dtype=torch.int32), None

    def __call__(self, code: int) -> int:
        before = self.close()
        self._codes = torch.tensor(code, dtype=torch.int32)
        self._work = dist.all_reduce(self._codes, dist.ReduceOp.MAX, async_op=True)
        return before

    def close(self) -> int:
        """Waits for the answer to the last call, the largest code of any rank; 0 where there was none."""
        if self._work is not None:
            self._work.wait()
        return int(self._codes.numpy())


def restarted(out: Path) -> bool:
    """Whether torchrun restarted this process after a failure, the run in `out` was begun under the same torchrun, and it has a
    checkpoint: then training resumes by itself. Every rank must call it, and gets the same answer.

    Restarts are reliable with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's own environment: otherwise the processes connect
    through torchrun's store, which may still hold what the failed ones left there.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    begun = (out / MARK).exists() and (out / MARK).read_text() == _job() and bool(checkpoint.steps(out / "checkpoints"))
    # Each machine counts its own restarts, and only the first rank can tell whether the mark is of this torchrun.
    known = torch.tensor([int(os.environ["TORCHELASTIC_RESTART_COUNT"]), rank() == 0 and begun])
    if world() > 1:
        dist.all_reduce(known, dist.ReduceOp.MAX)
    return bool(known.all())


def mark(out: Path) -> None:
    """Writes the name of this torchrun into a run's folder, by which `restarted` knows it; nothing without torchrun."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        write_text(out / MARK, _job())


def _job() -> str:
    """The name of the torchrun that started this process. One without --rdzv-id may be called "none": the parent is then its
    own, where the first rank always is."""
    name = os.environ["TORCHELASTIC_RUN_ID"]
    return name if name != "none" else f"process {os.getppid()}"


def distribute(objective: nn.Module, device: torch.device, *, shards: bool) -> nn.Module:
    """The objective wrapped so that its gradients are means over the ranks: by DDP, or, with `shards`, by FSDP2, in place. In one
    process it is returned as it is. To be called before the optimizer is made, since FSDP2 replaces the parameters."""
    if world() == 1:
        return objective
    if shards:
        shard(objective, device)
        return objective
    ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(objective, ids, gradient_as_bucket_view=True)


def shard(module: nn.Module, device: torch.device, *, free: bool = True) -> None:
    """Shards the parameters of a module over the ranks by FSDP2, in place. Each module in a ModuleList is a unit, which is
    gathered when it is computed, and all outside of the lists is another. free: whether a unit is freed again once it is
    computed."""  # A block hands on what it was given, for skip connections, which is safe: nothing is changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (world(),))
    for block in [*_blocks(module), module]:
        fully_shard(block, mesh=mesh, reshard_after_forward=free)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _blocks(child)


def accumulating(objective: nn.Module, last: bool) -> Any:
    """The context in which a part of a batch is computed: only in the `last` one do ranks exchange gradients."""
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(last)
    return objective.no_sync() if isinstance(objective, DistributedDataParallel) and not last else nullcontext()


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """A context in which every rank has all parameters of a model that was sharded with free=False, and may compute it alone."""
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.unshard()
    yield
    for module in shards:
        module.reshard()


def full_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the same names, with those that are sharded gathered: on rank 0, on its CPU where they were sharded; empty
    on the others. Every rank must call it."""
    made = {}
    for name, value in tensors.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if rank() == 0:
            made[name] = full.cpu() if isinstance(value, DTensor) else full
    return made
