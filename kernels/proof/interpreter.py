"""Watching Triton's interpreter: every access of a kernel to memory, every launch, and the order of the programs.

TRITON_INTERPRET=1 has to be set before the kernels are imported. All hooks are undone when their context ends.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import triton
from triton._C.libtriton.ir import MEM_SEMANTIC
from triton.language import core
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


SMALLEST = 2.0**-126  # normal number of fp32


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


def shuffled(seed: int) -> AbstractContextManager[None]:
    """The programs of each launch run in a random order, the same for the same seed."""
    return _ordered_by(random.Random(seed).shuffle)


def backwards() -> AbstractContextManager[None]:
    """The programs of each launch run from the last to the first."""
    return _ordered_by(list.reverse)


@contextmanager
def _ordered_by(reorder: Callable[[list[tuple[int, ...]]], None]) -> Iterator[None]:
    _require_interpreter()
    order: Iterator[tuple[int, ...]] = iter(())

    def set_grid_dim(*grid):
        nonlocal order
        programs = list(itertools.product(*map(range, grid)))
        reorder(programs)
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
    """For the rest of the process, the interpreter does what it did with less than half of the work:

    - it replaces triton.language's functions once a launch for each module whose functions are called, not on each call;
    - it leaves out the arithmetic that looks for overflows of integers: the assertion on its result is off without debug;
    - it makes the type and the shape of blocks once for each dtype and shape, and finds out at once that a dtype equals itself.
    """
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
    _replace_functions_once()
    _make_types_once()


def _replace_functions_once() -> None:
    def launch(executor, *args, **kwargs):
        done.clear()
        return call(executor, *args, **kwargs)

    def replace_once(fn):
        if id(fn.__globals__) in done:
            return interpreter._LangPatchScope()
        done.add(id(fn.__globals__))
        return replace_all(fn)

    def replace_function(module, name, function, builder, scope):
        def called(*args, _semantic=None, **kwargs):
            return function(*args, **kwargs, _semantic=interpreter.interpreter_semantic)

        scope.set_attr(module, name, called)

    done: set[int] = set()
    interpreter._patch_attr = replace_function
    call, replace_all = GridExecutor.__call__, interpreter._patch_lang
    GridExecutor.__call__, interpreter._patch_lang = launch, replace_once


def _make_types_once() -> None:
    @cache
    def shape_and_size(*shape):
        return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))

    def make_tensor(tensor, handle, type):
        tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
        tensor.shape, tensor.numel = shape_and_size(*type.shape.values) if type.is_block() else scalar

    def make_block(block, element_ty, shape):
        key = element_ty.name, (*shape,)
        if key not in blocks:
            make_any_block(block, element_ty, shape)
            blocks[key] = block.shape, block.numel, block.name
        block.element_ty, (block.shape, block.numel, block.name) = element_ty, blocks[key]

    def equal(dtype, other):
        return dtype is other or equal_by_name(dtype, other)

    def equal_shapes(shape, other):
        plain = type(other) is list and all(type(size) is int for size in other)
        return core.constexpr(shape.values == other) if plain else equal_tuples(shape, other)

    def broadcast(left, right):
        same = left.shape is right.shape  # made once, so of one size
        return (left, right) if same else broadcast_any(left, right)

    def numpy_dtype(dtype):
        element = dtype.scalar
        if element.is_ptr():
            return np.dtype(np.uint64)
        if element.name not in numpy_dtypes:
            numpy_dtypes[element.name] = find_numpy_dtype(element)
        return numpy_dtypes[element.name]

    blocks: dict[tuple[str, tuple[Any, ...]], tuple[tuple[int, ...], int, str]] = {}
    numpy_dtypes: dict[str, np.dtype] = {}
    scalar = shape_and_size()
    make_any_block, find_numpy_dtype = core.block_type.__init__, interpreter._get_np_dtype
    equal_by_name, equal_tuples = core.dtype.__eq__, core.tuple.__eq__
    broadcast_any = interpreter.interpreter_semantic.broadcast_impl_value
    core.tensor.__init__, core.block_type.__init__, interpreter._get_np_dtype = make_tensor, make_block, numpy_dtype
    core.dtype.__eq__, core.tuple.__eq__ = equal, equal_shapes
    interpreter.interpreter_semantic.broadcast_impl_value = broadcast


def round_products_once() -> None:
    """For the rest of the process, tl.dot in the interpreter sums in fp64 and rounds once. Its own sums are a BLAS's, which some
    processors make less exact than PyTorch's, and that would be held against the kernel."""

    def dot(a, b, total, *precision):
        product = np.matmul(a.data, b.data, dtype=np.float64) + total.data
        return interpreter.TensorHandle(product.astype(total.data.dtype), total.dtype.scalar)

    interpreter_builder.create_dot = dot


def round_as_on_a_gpu() -> None:
    """For the rest of the process, fp32's exp, exp2, square root and division are as inexact as PTX lets them be: of ex2.approx,
    sqrt.approx and rcp.approx a unit in the last place, taken as the farther of the two neighbours of the exact result; exp(x) is
    ex2 of the rounded x log2(e), a / b is a times the reciprocal of b. tl.sqrt_rn and tl.div_rn are correctly rounded.
    Source: PTX ISA, floating-point instructions; Triton's lowering of tl.exp and of /."""

    def inexact(method: str, function: Callable[[np.ndarray], np.ndarray]) -> None:
        original = getattr(interpreter_builder, method)

        def unary(x):
            if x.data.dtype != np.float32:
                return original(x)
            with np.errstate(all="ignore"):
                return interpreter.TensorHandle(_farther(function(x.data)), x.dtype.scalar)

        setattr(interpreter_builder, method, unary)

    def divide(a, b):
        if a.data.dtype != np.float32:
            return divide_exactly(a, b)
        with np.errstate(all="ignore"):
            reciprocal = _farther(1 / b.data.astype(np.float64))
            product, exact = a.data * reciprocal, a.data / b.data
            inside = np.isfinite(product) & (np.abs(reciprocal) >= SMALLEST)  # div.full scales what would leave the range
        return interpreter.TensorHandle(np.where(inside, product, exact).astype(np.float32), a.dtype.scalar)

    log2_e = np.float32(math.log2(math.e))
    divide_exactly = interpreter_builder.create_fdiv
    inexact("create_exp", lambda x: np.exp2((x * log2_e).astype(np.float64)))
    inexact("create_exp2", lambda x: np.exp2(x.astype(np.float64)))
    inexact("create_sqrt", lambda x: np.sqrt(x.astype(np.float64)))
    interpreter_builder.create_fdiv = divide


def _farther(exact: np.ndarray) -> np.ndarray:
    """The farther of the two numbers of fp32 beside each of fp64; what fp32 holds, and what is not a normal number, as it is."""
    near = exact.astype(np.float32)
    beyond = np.nextafter(near, np.where(exact > near, np.inf, -np.inf).astype(np.float32))
    normal = np.isfinite(near) & np.isfinite(beyond) & (np.abs(near) >= SMALLEST) & (exact != near)
    return np.where(normal, beyond, near).astype(np.float32)


def _require_interpreter() -> None:
    if not triton.knobs.runtime.interpret:
        raise RuntimeError("kernels are watched in Triton's interpreter: set TRITON_INTERPRET=1 before triton is imported")
