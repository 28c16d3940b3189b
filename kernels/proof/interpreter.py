"""Watching Triton's interpreter: every access of a kernel to memory, every launch, and the order of the programs.

TRITON_INTERPRET=1 has to be set before the kernels are imported. All hooks are undone when their context ends.
"""

import itertools
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import triton
from triton._C.libtriton.ir import MEM_SEMANTIC
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, interpreter_builder

Kind = Literal["load", "store", "atomic"]

# Each access ends in one of these builder methods, those through block pointers and tensor descriptors too: what it is,
# and where in the method's arguments the pointers, the mask and the memory semantics stand.
_ACCESSES: dict[str, tuple[Kind, int, int | None, int | None]] = {
    "create_masked_load": ("load", 0, 1, None),
    "create_masked_store": ("store", 0, 2, None),
    "create_atomic_rmw": ("atomic", 1, 3, 4),
    "create_atomic_cas": ("atomic", 0, None, 3),
}


@dataclass(frozen=True)
class Access:
    """One load, store or atomic of one program."""

    kernel: str
    launch: int  # counted from 0 within the recording
    program: tuple[int, int, int]
    kind: Kind
    addresses: np.ndarray  # int64, in bytes, of the active lanes alone
    width: int  # bytes per element
    relaxed: bool  # an atomic that orders no other access


class Log(list[Access]):
    """The accesses in the order they were made, and in `launches` the name of the kernel of each launch."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[str] = []


@contextmanager
def recorded() -> Iterator[Log]:
    """A log that fills while kernels run inside."""
    _require_interpreter()
    log = Log()

    def launch(executor, *args, **kwargs):
        log.launches.append(executor.fn.__name__)
        return call(executor, *args, **kwargs)

    def watching(method: str) -> Any:
        original = getattr(interpreter_builder, method)
        kind, pointers_at, mask_at, semantics_at = _ACCESSES[method]

        def access(*args, **kwargs):
            pointers = args[pointers_at]
            addresses = np.asarray(pointers.data)
            # A mask made with a scalar on one side comes as int32.
            active = True if mask_at is None else np.asarray(args[mask_at].data).astype(bool)
            addresses = addresses[np.broadcast_to(active, addresses.shape)].astype(np.int64)
            width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
            relaxed = semantics_at is not None and args[semantics_at] == MEM_SEMANTIC.RELAXED
            program = interpreter_builder.grid_idx
            log.append(Access(log.launches[-1], len(log.launches) - 1, program, kind, addresses, width, relaxed))
            return original(*args, **kwargs)

        return access

    call = GridExecutor.__call__
    with ExitStack() as hooks:
        hooks.enter_context(patch.object(GridExecutor, "__call__", launch))
        for method in _ACCESSES:
            hooks.enter_context(patch.object(interpreter_builder, method, watching(method)))
        yield log


@contextmanager
def shuffled(seed: int) -> Iterator[None]:
    """The programs of each launch run in a random order, the same for the same seed."""
    _require_interpreter()
    rng = random.Random(seed)
    order: Iterator[tuple[int, ...]] = iter(())

    def set_grid_dim(*grid):
        nonlocal order
        programs = list(itertools.product(*map(range, grid)))
        rng.shuffle(programs)
        order = iter(programs)
        return original_dim(*grid)

    def set_grid_idx(*_in_order):
        return original_idx(*next(order))

    original_dim, original_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    with (
        patch.object(interpreter_builder, "set_grid_dim", set_grid_dim),
        patch.object(interpreter_builder, "set_grid_idx", set_grid_idx),
    ):
        yield


@contextmanager
def last_program() -> Iterator[None]:
    """Of each launch the last program alone runs: enough to see whether the end of a huge tensor is found."""
    _require_interpreter()
    grid: tuple[int, ...] = ()

    def launch(executor, *args, **kwargs):
        def single(meta):
            nonlocal grid
            grid = whole(meta) if callable(whole) else whole
            grid = (*grid, *[1] * (3 - len(grid)))
            return 1, 1, 1

        whole, executor.grid = executor.grid, single
        return call(executor, *args, **kwargs)

    def set_grid_dim(*_single):
        return original_dim(*grid)

    def set_grid_idx(*_first):
        return original_idx(*(n - 1 for n in grid))

    call = GridExecutor.__call__
    original_dim, original_idx = interpreter_builder.set_grid_dim, interpreter_builder.set_grid_idx
    with (
        patch.object(GridExecutor, "__call__", launch),
        patch.object(interpreter_builder, "set_grid_dim", set_grid_dim),
        patch.object(interpreter_builder, "set_grid_idx", set_grid_idx),
    ):
        yield


def quicken() -> None:
    """For the rest of the process, the interpreter replaces triton.language's functions once a launch for each module whose
    functions are called. It does so again on each call, which is a fifth of the time that our kernels take in it."""

    def launch(executor, *args, **kwargs):
        done.clear()
        return call(executor, *args, **kwargs)

    def replace(fn):
        if id(fn.__globals__) in done:
            return interpreter._LangPatchScope()
        done.add(id(fn.__globals__))
        return replace_all(fn)

    done: set[int] = set()
    call, replace_all = GridExecutor.__call__, interpreter._patch_lang
    GridExecutor.__call__, interpreter._patch_lang = launch, replace


def round_products_once() -> None:
    """For the rest of the process, tl.dot in the interpreter sums in fp64 and rounds once. Its own sums are a BLAS's, which some
    processors make less exact than PyTorch's, and that would be held against the kernel."""

    def dot(a, b, total, *precision):
        product = np.matmul(a.data, b.data, dtype=np.float64) + total.data
        return interpreter.TensorHandle(product.astype(total.data.dtype), total.dtype.scalar)

    interpreter_builder.create_dot = dot


def _require_interpreter() -> None:
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are watched in Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported")
