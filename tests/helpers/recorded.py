"""What a CUDA graph does, on the CPU: the ATen ops of a function are recorded, and done again on the same tensors and numbers."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.equal.default,
    aten.masked_select.default,
    aten._unique2.default,
}


class Waits(TorchDispatchMode):
    """Counts the ops for whose result the host would wait, were it on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        by_mask = op is aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1])
        self.count += op in WAITING or by_mask
        return op(*args, **kwargs or {})


class Recorder(TorchDispatchMode):
    """Keeps every op with its arguments and results, and what the tensors from outside held before they were changed."""

    def __init__(self):
        super().__init__()
        self.ops, self.made, self.before = [], set(), {}

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        assert op not in WAITING, f"{op} in a graph"
        if op._schema.is_mutable:
            for x in tensors(args):
                if id(x) not in self.made and id(x) not in self.before:
                    self.before[id(x)] = x, x.clone()
        results = op(*args, **kwargs)
        self.made |= {id(x) for x in tensors(results)} - self.before.keys()
        self.ops.append((op, args, kwargs, results))
        return results


def tensors(tree) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """`fastgen.cuda_graph.capture` for the CPU: recording leaves all as it was, as if nothing had been computed, and every replay
    returns the same memory."""
    generator = torch.get_rng_state()
    with Recorder() as recorder:
        result = function()
    with torch.no_grad():
        for x, before in recorder.before.values():
            x.copy_(before)
    torch.set_rng_state(generator)

    @torch.no_grad()
    def replay() -> Tensor:
        made: dict[int, Tensor] = {}

        def new(x):
            return made.get(id(x), x)

        for op, args, kwargs, results in recorder.ops:
            again = op(*tree_map(new, args), **tree_map(new, kwargs))
            made.update((id(old), x) for old, x in zip(tensors(results), tensors(again), strict=True))
        return result.copy_(made[id(result)])

    return replay
