"""An op under torch.compile, torch.export, autocast and activation checkpointing gives what it gives in eager.

fn takes tensors, of which those that require a gradient are differentiated, and other arguments, which are given as they are.
Tensors whose first dimension is the first tensor's have the batch there.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from proof.laboratory.accuracy import results
from proof.laboratory.device import DEVICE
from proof.laboratory.tensors import GRADIENTS, upstream


def assert_compiles(fn: Callable[..., Any], *args: Any, backends: Sequence[str] = ("aot_eager",)) -> None:
    """In one graph, forward and backward, and from the third batch size on without compiling again. Batch: 4 or more."""
    from torch._dynamo.testing import CompileCounterWithBackend  # takes seconds, which tests that compile nothing save

    for backend in backends:
        torch.compiler.reset()
        counter = CompileCounterWithBackend(backend)
        compiled = torch.compile(fn, fullgraph=True, backend=counter)
        for smaller in range(3):
            _assert_same(compiled, fn, *_with_batch(args, smaller), what=f"under {backend}")
        assert counter.frame_count <= 2, f"{backend} compiled {counter.frame_count} times for 3 batch sizes"


def assert_exports(fn: Callable[..., Any], *args: Any) -> None:
    """As part of a module, with a batch size that is free. Batch: 4 or more."""

    class Module(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Any:
            given = iter(tensors)
            return fn(*(next(given) if isinstance(x, Tensor) else x for x in args))

    tensors = [x.detach() for x in args if isinstance(x, Tensor)]
    batch = len(tensors[0])
    free = [{0: torch.export.Dim.DYNAMIC} if x.dim() and len(x) == batch else None for x in tensors]
    exported = torch.export.export(Module(), tuple(tensors), dynamic_shapes={"tensors": tuple(free)}).module()
    for smaller in range(2):
        _assert_same(exported, Module(), *_with_batch(tensors, smaller), what="exported")


def assert_ignores_autocast(fn: Callable[..., Any], *args: Any) -> None:
    """The same values in the same dtypes, forward and backward."""
    _assert_same(torch.autocast(DEVICE, dtype=torch.bfloat16)(fn), fn, *args, what="under autocast", exactly=True)


def assert_checkpoints(fn: Callable[..., Any], *args: Any) -> None:
    """The same values when forward is run again in backward."""

    def checkpointed(*inputs: Any) -> Any:
        return checkpoint(fn, *inputs, use_reentrant=False)

    _assert_same(checkpointed, fn, *args, what="checkpointed", exactly=True)


def assert_differentiates(fn: Callable[..., Any], *args: Any) -> None:
    """In fp64 its derivatives are those of finite differences, in the arguments' layouts and however the gradient arrives."""
    doubles = [
        x.detach().double().requires_grad_(x.requires_grad) if isinstance(x, Tensor) and x.is_floating_point() else x
        for x in args
    ]
    assert torch.autograd.gradcheck(fn, doubles, fast_mode=True)

    outputs = tree_leaves(fn(*doubles))
    outputs = [y for y in outputs if y.requires_grad]
    inputs = [x for x in doubles if isinstance(x, Tensor) and x.requires_grad]
    for layout in GRADIENTS:
        given = [upstream(y, layout) for y in outputs]
        strided, contiguous = (
            torch.autograd.grad(outputs, inputs, grads, retain_graph=True, allow_unused=True)
            for grads in (given, [grad.contiguous() for grad in given])
        )
        torch.testing.assert_close(strided, contiguous, msg=lambda message, at=layout: f"gradients that arrive {at}: {message}")


def assert_registered(op: Callable[..., Any], *samples: Sequence[Any]) -> None:
    """torch.library.opcheck of an op (torch.ops.NAMESPACE.NAME.default) on each sample of arguments."""
    for sample in samples:
        torch.library.opcheck(op, tuple(sample))


def _assert_same(one: Callable[..., Any], other: Callable[..., Any], *args: Any, what: str, exactly: bool = False) -> None:
    ours, expected = results(one, *args), results(other, *args)
    tolerance = {"rtol": 0, "atol": 0} if exactly else {}
    torch.testing.assert_close(
        ours, expected, **tolerance, equal_nan=True, check_stride=True, msg=lambda message: f"{what}: {message}"
    )


def _with_batch(args: Sequence[Any], smaller: int) -> list[Any]:
    """The arguments with so many samples fewer, their strides as they are."""
    batch = next(len(x) for x in args if isinstance(x, Tensor))
    if batch < 4:
        raise ValueError(f"the batch must be 4 or more for smaller ones to be tried, got {batch}")
    return [
        x.detach()[: batch - smaller].requires_grad_(x.requires_grad)
        if isinstance(x, Tensor) and x.dim() and len(x) == batch
        else x
        for x in args
    ]
