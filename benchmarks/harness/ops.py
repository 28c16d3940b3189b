"""An op at one of its cases, beside its peers and its roofs: a table for each clock."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Literal

import torch
from torch import Tensor

from benchmarks.harness.clocks import CLOCKS, Call, Stopwatch, l2_bytes, launches
from benchmarks.harness.timing import interleaved, machine, rows
from proof.cases import CASES, Case, Outputs, small

Direction = Literal["forward", "backward"]
Peer = Callable[[Case], Callable[..., Outputs]]  # what takes a case's inputs as its `ours` does; may raise Absent or ImportError

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ROUNDS = 30 if GPU else 10


class Absent(Exception):
    """Why a peer does not run here, or not at this case."""


def cases(op: str) -> list[Case]:
    """The cases of an op that this machine can measure: all on a GPU, the small ones on a CPU."""
    return [case for case in CASES if case.op == op] if GPU else small(op)


def compiled(case: Case) -> Callable[..., Outputs]:
    """torch.compile of the eager code, in its default mode."""
    if not GPU:
        raise Absent("left out on a CPU: compiling would take longer than all the rest")
    return compile_eager(case)


def compile_eager(case: Case, backend: str = "inductor") -> Callable[..., Outputs]:
    """torch.compile of the eager code, for one shape, as one graph."""
    torch._dynamo.reset()  # one function takes eight shapes at most
    torch._functorch.config.donated_buffer = False  # with it, code in the compiler's cache may refuse a second backward pass
    return torch.compile(case.eager, dynamic=False, fullgraph=True, backend=backend)


def measure(case: Case, direction: Direction, peers: dict[str, Peer]) -> list[dict]:
    """A table for each clock: on a GPU cold, graph and wall, on a CPU wall alone.

    Beside `peers`, those that every op has: eager PyTorch and torch.compile of it. One that does not run is named with its
    reason under "absent". Raises AssertionError when a GPU is at hand and fastgen launched no Triton kernel.
    """
    torch.manual_seed(0)
    with _stream():
        sets = [case.inputs(DEVICE) for _ in range(_number_of_sets(case))]
        calls = {"fastgen": warm(make_calls(case.ours, sets, direction))}
        kernels = kernels_of(calls["fastgen"][0]) if GPU else []
        assert kernels or not GPU, f"{case.op} launched no Triton kernel: its reference would have been timed"
        calls["eager"] = warm(make_calls(case.eager, sets, direction))
        present, absent = of_peers({"torch.compile": compiled, **peers}, case, sets, direction)
        calls |= present
        read, written = traffic(case, direction, sets[0])
        if GPU:
            from benchmarks.harness.roof import roofs  # needs Triton

            calls |= roofs(read, written, case.normals, DEVICE, len(sets))
        facts = {
            "title": f"{case.op} {direction}, {case.shape}",
            "machine": machine(),
            "op": case.op,
            "shape": case.shape,
            "direction": direction,
            "path": "kernel" if kernels else "reference",
            "kernels": kernels,
            "read": read,
            "written": written,
            "calls": len(sets),
        }
        return [facts | table(clock, calls, absent) for clock in (CLOCKS if GPU else ["wall"])]


@cache
def _side_stream() -> torch.cuda.Stream:
    return torch.cuda.Stream()  # one for all: memory that is freed on a stream is used again on that stream alone


def _stream() -> AbstractContextManager:
    """On a GPU a stream of our own, as benchmarks.harness.clocks needs it."""
    return torch.cuda.stream(_side_stream()) if GPU else nullcontext()


def table(clock: str, calls: dict[str, list[Call]], absent: dict[str, str]) -> dict:
    """What a clock says of every variant. A peer that it cannot time, as one that waits for the GPU, becomes absent."""
    stopwatches: dict[str, Stopwatch] = {}
    absent = dict(absent)
    for name, of_variant in calls.items():
        try:
            stopwatch = CLOCKS[clock](of_variant)
            stopwatch()
        except Exception as error:
            if name == "fastgen":
                raise
            absent[name] = _first_line(error)
        else:
            stopwatches[name] = stopwatch
    seconds = interleaved(stopwatches, rounds=ROUNDS)
    others = [name for name in seconds if name != "fastgen"]
    return {
        "clock": clock,
        "rounds": ROUNDS,
        "rows": [dataclasses.asdict(row) for row in rows(seconds, {"fastgen": others})],
        "absent": absent,
    }


def make_calls(function: Callable[..., Outputs], sets: Sequence[tuple[Tensor, ...]], direction: Direction) -> list[Call]:
    """A call for each set of inputs. The backward calls share a forward pass and upstream gradients made here."""
    if direction == "forward":
        return [partial(function, *inputs) for inputs in sets]
    return [_backward(function, inputs) for inputs in sets]


def _backward(function: Callable[..., Outputs], inputs: tuple[Tensor, ...]) -> Call:
    outputs = function(*inputs)
    upstream = [torch.randn_like(y) for y in outputs]
    return partial(torch.autograd.grad, outputs, _leaves(inputs), upstream, retain_graph=True)


def _leaves(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [x for x in inputs if x.requires_grad]


def of_peers(
    peers: dict[str, Peer], case: Case, sets: Sequence[tuple[Tensor, ...]], direction: Direction
) -> tuple[dict[str, list[Call]], dict[str, str]]:
    """The calls of the peers that run, and why each of the others does not."""
    calls, absent = {}, {}
    for name, make in peers.items():
        try:
            calls[name] = warm(make_calls(make(case), sets, direction))
        except Absent as reason:
            absent[name] = str(reason)
        except ImportError as error:
            absent[name] = f"not installed ({error})"
        except Exception as error:  # what a peer cannot do is a result too, and costs the others nothing
            absent[name] = _first_line(error)
    return calls, absent


def warm(calls: list[Call]) -> list[Call]:
    """The calls, each made once: what is compiled and loaded on first use is out of the way."""
    for call in calls:
        call()
    return calls


def kernels_of(call: Call) -> list[str]:
    """The names of the Triton kernels that a call launches."""
    with launches() as names:
        call()
    return list(names)


def traffic(case: Case, direction: Direction, inputs: tuple[Tensor, ...]) -> tuple[int, int]:
    """Bytes that have to be read and written: every input once, in the backward pass the upstream gradients too; every output."""
    outputs = case.ours(*inputs)
    if direction == "forward":
        return _bytes(inputs), _bytes(outputs)
    return _bytes(inputs) + _bytes(outputs), _bytes(_leaves(inputs))


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def _number_of_sets(case: Case) -> int:
    """As many as make twice the L2 cache together, between 2 and 128; the cache is emptied before a graph of them anyway."""
    return min(128, max(2, 2 * l2_bytes() // case.forward)) if GPU else 4


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
