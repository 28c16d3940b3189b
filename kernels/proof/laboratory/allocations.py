"""Deciding where the tensors that an op allocates lie, and what is in them before they are written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

EMPTY = {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}


class Allocations(TorchDispatchMode):
    """What torch allocates is moved by `place`, and what it leaves uninitialised is filled with poison before."""

    def __init__(self, place: Callable[[Tensor], Tensor] = lambda x: x, poison: float = torch.nan) -> None:
        super().__init__()
        self.place, self.poison = place, poison

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if func.namespace != "aten":
            # An op of ours: what it allocates inside is to come here too, but not its call itself, again.
            device = DispatchKey.CUDA if any(x.is_cuda for x in inputs) else DispatchKey.CPU
            with self:
                return func.redispatch(DispatchKeySet(device), *args, **kwargs)
        out = func(*args, **kwargs)
        known = {x.untyped_storage()._cdata for x in inputs}

        def placed(x: Tensor) -> Tensor:
            if x.untyped_storage()._cdata in known:  # a view, or written in place
                return x
            if func.overloadpacket.__name__ in EMPTY:
                fill(x, self.poison)
            return self.place(x)

        return tree_map_only(Tensor, placed, out)


def fill(x: Tensor, poison: float = torch.nan) -> None:
    """Fill x with poison, where x holds integers with the largest one for NaN."""
    if x.dtype.is_floating_point or x.dtype.is_complex or poison == poison:
        x.fill_(poison)
    else:
        x.fill_(True if x.dtype == torch.bool else torch.iinfo(x.dtype).max)


@contextmanager
def poisoned(poison: float = torch.nan) -> Iterator[None]:
    """Inside, memory that torch allocates without initialising it is full of NaN."""
    with Allocations(poison=poison):
        yield


def assert_all_written(fn: Callable[..., Any], *args: Any, with_ones: Any = None) -> None:
    """fn writes each element of its results, and reads nothing that it has not written: its results, tensors, do not depend
    on what was in the memory before. with_ones: the results in memory full of ones, where they are known."""
    with poisoned():
        with_nan = fn(*args)
    if with_ones is None:
        with poisoned(1.0):
            with_ones = fn(*args)
    for i, (nan, one) in enumerate(zip(tree_leaves(with_nan), tree_leaves(with_ones), strict=True)):
        unwritten = (nan != one) & ~(nan.isnan() & one.isnan())
        assert not unwritten.any(), (
            f"result {i} depends on uninitialised memory: {int(unwritten.sum())} of {unwritten.numel()} elements, "
            f"the first at {tuple(unwritten.nonzero()[0].tolist())}"
        )
