"""Training in several processes that torchrun starts: who they are, and what they agree on. One process agrees with itself."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

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


def everyones(value: T) -> list[T]:
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
        if world() == 1:
            return code
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
