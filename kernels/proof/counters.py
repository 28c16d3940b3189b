"""Counting the memory traffic of Triton's kernels, in the interpreter, and of PyTorch's operations."""

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor, interpreter_builder

from proof.interpreter import Log

CPU = DispatchKeySet(DispatchKey.CPU)
SECTOR = 32  # bytes: what the GPU's L2 cache and memory move at the least


@dataclass(frozen=True)
class Traffic:
    """bytes: of every load and store of a program, an address that several of its lanes name counted once. A second read of an
    address counts again. sectors: the distinct ones that a program loads from, and those it stores to. What one program touches
    twice is in its L1 cache; another program's counts again."""

    loaded: int = 0
    stored: int = 0
    loaded_sectors: int = 0
    stored_sectors: int = 0
    launches: int = 0

    @property
    def bytes(self) -> int:
        return self.loaded + self.stored

    @property
    def sector_bytes(self) -> int:
        return SECTOR * (self.loaded_sectors + self.stored_sectors)

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


def of_kernels(log: Log, scale: list[float] | None = None) -> Traffic:
    """The traffic of recorded launches. An atomic is a load and a store; scale has a factor for each launch, from `sampled`."""
    width: dict[str, float] = defaultdict(float)
    touched: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for access in log:
        addresses = np.unique(access.addresses)
        for kind in ("load", "store") if access.kind == "atomic" else (access.kind,):
            width[kind] += len(addresses) * access.width * (scale[access.launch] if scale else 1)
            touched[kind, access.launch, access.program].append(np.unique(addresses // SECTOR))
    sectors: dict[str, float] = defaultdict(float)
    for (kind, launch, _), parts in touched.items():
        sectors[kind] += len(np.unique(np.concatenate(parts))) * (scale[launch] if scale else 1)
    return Traffic(*(round(x[kind]) for x in (width, sectors) for kind in ("load", "store")), launches=len(log.launches))


@contextmanager
def sampled(limit: int) -> Iterator[list[float]]:
    """Of a launch of more programs than `limit` only so many run, drawn at random. The list has for each launch the number of
    its programs over the number that ran."""
    rng, scale = random.Random(0), []
    grid: tuple[int, ...] = ()
    programs: list[int] = []

    def launch(executor, *args, **kwargs):
        def some(meta):
            nonlocal grid, programs
            grid = whole(meta) if callable(whole) else whole
            grid = (*grid, *[1] * (3 - len(grid)))
            programs = sorted(rng.sample(range(math.prod(grid)), min(limit, math.prod(grid))))
            scale.append(math.prod(grid) / len(programs))
            return len(programs), 1, 1

        whole, executor.grid = executor.grid, some
        return call(executor, *args, **kwargs)

    call = GridExecutor.__call__
    set_dim, set_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    with (
        patch.object(GridExecutor, "__call__", launch),
        patch.object(interpreter_builder, "set_grid_dim", lambda *_: set_dim(*grid)),
        patch.object(interpreter_builder, "set_grid_idx", lambda x, *_: set_idx(*map(int, np.unravel_index(programs[x], grid)))),
    ):
        yield scale


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()
        self.names: list[str] = []
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        if func.namespace == "fastgen":
            with self:  # its kernel alone: from the top the dispatcher would come back here
                return func.redispatch(CPU, *args, **kwargs)
        outputs = func(*args, **kwargs)
        read, written = operands(func, args, kwargs, outputs)
        if read or written:
            self.names.append(func.__name__)
            sizes = [sum(distinct_bytes(x) for x in tensors) for tensors in (read, written)]
            self.traffic += Traffic(*sizes, *(-(-size // SECTOR) for size in sizes), launches=1)
        return outputs


@contextmanager
def of_operations() -> Iterator[Operations]:
    """Counts every aten operation inside as a kernel that reads its inputs and writes its outputs, on meta tensors too.

    Views, metadata and allocations count nothing. Of fastgen's own operations what they call is counted, and of a launch in
    the interpreter, which copies tensors before and after, nothing.
    """

    def launch(*args, **kwargs):
        operations.paused = True
        try:
            return call(*args, **kwargs)
        finally:
            operations.paused = False

    call = GridExecutor.__call__
    with patch.object(GridExecutor, "__call__", launch), Operations() as operations:
        yield operations


def distinct_bytes(x: Tensor) -> int:
    """Bytes of the elements, an element of an expanded tensor counted once."""
    return x.itemsize * math.prod(size for size, stride in zip(x.shape, x.stride(), strict=True) if stride != 0 or size == 0)


_ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_", "set_", "detach_"}
_WRITE_ONLY = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}  # do not read self


def operands(func: Any, args: tuple, kwargs: dict, outputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that an operation reads and those that it writes, each once."""
    name = func.overloadpacket.__name__
    inputs, results = _tensors((args, kwargs)), _tensors(outputs) or _tensors(_written(func, args, kwargs))
    storages = {x.untyped_storage()._cdata for x in inputs}
    view = not func._schema.is_mutable and all(x.untyped_storage()._cdata in storages for x in results)
    if name in _ALLOCATIONS or (view and results):
        return [], []
    if name.endswith("_like") or name.startswith("new_"):
        return [], results
    if name in _WRITE_ONLY:
        inputs = _tensors((args[1:], kwargs))
    if "out" in kwargs:
        inputs = _tensors((args, {k: v for k, v in kwargs.items() if k != "out"}))
    return inputs, results


def _written(func: Any, args: tuple, kwargs: dict) -> list[Any]:
    """What an operation that returns nothing writes, as those on lists of tensors."""
    if func._schema.returns:
        return []
    arguments = {x.name: x for x in func._schema.arguments if x.alias_info is not None and x.alias_info.is_write}
    if kwargs.get("grad_scale") is None:  # a fused optimizer's step writes gradients only where it divides them
        arguments.pop("grads", None)
    given = dict(zip((x.name for x in func._schema.arguments), args, strict=False)) | kwargs
    return [given[name] for name in arguments if name in given]


def _tensors(tree: Any) -> list[Tensor]:
    found = {
        (x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride()): x
        for x in tree_leaves(tree)
        if isinstance(x, Tensor)
    }
    return list(found.values())
