"""What a call of an op costs its host, beside PyTorch eager: Python and dispatch up to the driver, which is a stub.

    python kernels/proof host [--op NAME] [--rounds N] [--json FILE]

The tensors are small, so that eager's arithmetic, on this CPU, is little beside its dispatch. The medians of interleaved rounds
are printed, in microseconds of the process; "first way" is a call through torch.library and the op's launcher, as the first of a
signature goes; "calls" are those of Python functions, which do not depend on the machine.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastgen_kernels import library
from fastgen_kernels.attention import attention_qkv
from fastgen_kernels.geglu import geglu
from fastgen_kernels.group_norm import add_group_norm, group_norm
from fastgen_kernels.layer_norm import add_layer_norm, layer_norm
from proof.record import processor, write_json
from proof.stub import Launched, stub

CALLS = 50  # timed at once


@dataclass(frozen=True)
class Case:
    """An op and what eager PyTorch does in its place, each of no arguments, and the tensors that both have gradients for."""
    op: str
    ours: Callable[[], Any]
    eager: Callable[[], Any]
    leaves: list[Tensor]


@dataclass(frozen=True)
class Row:
    """Of one op: microseconds forward, and forward and backward together; and Python calls, 0 where they are not counted."""
    op: str
    direction: str
    ours: float
    first_way: float
    eager: float
    calls: int
    first_calls: int
    eager_calls: int


def cases() -> list[Case]:
    x = torch.randn(2, 32, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    h = torch.randn(2, 8, 64, dtype=torch.bfloat16, requires_grad=True)
    qkv = torch.randn(2, 96, 4, 4, dtype=torch.bfloat16).to(memory_format=torch.channels_last).requires_grad_()
    channels, width = ([torch.randn(n, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)] for n in (32, 64))
    other, skip = x.detach().clone().requires_grad_(), h.detach().clone().requires_grad_()

    def added(y: Tensor, total: Tensor) -> Tensor:
        return y + total

    def eager_attention() -> Tensor:
        q, k, v = qkv.reshape(2, 3, 2, 16, 16).transpose(3, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 4, 4, 32).movedim(-1, 1)

    def eager_geglu() -> Tensor:
        value, gate = h.chunk(2, -1)
        return value * F.gelu(gate)

    return [
        Case("group_norm", lambda: group_norm(x, 8, *channels, activation="silu"),
             lambda: F.silu(F.group_norm(x, 8, *channels)), [x, *channels]),
        Case("add_group_norm", lambda: added(*add_group_norm(x, other, 8, *channels, activation="silu")),
             lambda: added(F.silu(F.group_norm(x + other, 8, *channels)), x + other), [x, other, *channels]),
        Case("layer_norm", lambda: layer_norm(h, *width), lambda: F.layer_norm(h, (64,), *width), [h, *width]),
        Case("add_layer_norm", lambda: added(*add_layer_norm(h, skip, *width)),
             lambda: added(F.layer_norm(h + skip, (64,), *width), h + skip), [h, skip, *width]),
        Case("geglu", lambda: geglu(h), eager_geglu, [h]),
        Case("attention_qkv", lambda: attention_qkv(qkv, 2), eager_attention, [qkv]),
    ]  # fmt: skip


def measured(case: Case, rounds: int) -> list[Row]:
    """Both directions of a case."""
    rows = []
    for direction in ("forward", "forward and backward"):
        ours, eager = (f if direction == "forward" else _with_backward(f, case.leaves) for f in (case.ours, case.eager))
        ways = [(ours, _as_it_is), (ours, _not_repeated), (eager, _as_it_is)]
        for call, setting in ways:
            with setting():
                for _ in range(3):  # the second call of a signature records, the third repeats
                    call()
        times: list[list[float]] = [[], [], []]
        for _ in range(rounds):
            for (call, setting), found in zip(ways, times, strict=True):
                with setting():
                    found.append(_microseconds(call))
        calls = []
        for call, setting in ways:
            with setting():
                calls.append(python_calls(call))
        rows.append(Row(case.op, direction, *(round(statistics.median(found), 1) for found in times), *calls))
    return rows


def python_calls(f: Callable[[], Any]) -> int:
    """How many Python functions f calls, itself left out."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        f()
    finally:
        sys.setprofile(None)
    return count - 1


def _as_it_is() -> AbstractContextManager[None]:
    return nullcontext()


def _not_repeated() -> AbstractContextManager[Any]:
    return patch.object(library, "repeats", lambda x: False)


def _with_backward(f: Callable[[], Any], leaves: list[Tensor]) -> Callable[[], Any]:
    upstream = torch.ones_like(f())
    return lambda: torch.autograd.grad(f(), leaves, upstream)


def _microseconds(f: Callable[[], Any]) -> float:
    start = time.process_time()
    for _ in range(CALLS):
        f()
    return (time.process_time() - start) / CALLS * 1e6


def table(rows: list[Row]) -> Iterator[str]:
    times = f"{'ours':>7} {'first way':>10} {'eager':>7} {'ours/eager':>11}"
    yield f"{'op':16} {'direction':22} {times}   calls: ours, first way, eager"
    for r in rows:
        yield (
            f"{r.op:16} {r.direction:22} {r.ours:7.0f} {r.first_way:10.0f} {r.eager:7.0f} {r.ours / r.eager:11.2f}"
            f"   {r.calls:11} {r.first_calls:10} {r.eager_calls:6}"
        )


def launches_the_same(case: Case, log: list[Launched]) -> bool:
    """Whether a call that is repeated, forward and backward, launches what a first call does, on the same tensors. log: the
    stub's."""
    call = _with_backward(case.ours, case.leaves)
    seen = []
    for setting in (_not_repeated, _as_it_is):
        with setting():
            for _ in range(3):
                log.clear()
                call()
        inputs = {x.data_ptr(): f"input {i}" for i, x in enumerate(case.leaves)}
        seen.append([(x.kernel, x.grid, [_named(y, inputs) for y in x.arguments]) for x in log])
    return len(seen[0]) > 0 and seen[0] == seen[1]


def _named(x: Any, inputs: dict[int, str]) -> str:
    """An argument of a launch as text. Of a tensor, or its address, that is an input's name; others lie elsewhere each time."""
    address = x.data_ptr() if isinstance(x, Tensor) else x
    return inputs.get(address, "made") if isinstance(address, int) and address > 2**32 else str(x)


def main() -> int:
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("proof.host goes through Triton's launches, and TRITON_INTERPRET is set: unset it")
    parser = argparse.ArgumentParser(prog="python kernels/proof host", description=__doc__.partition("\n")[0])
    parser.add_argument("--op", help="only this one")
    parser.add_argument("--rounds", type=int, default=21, help="of which the median is taken")
    parser.add_argument("--json", type=Path, help="write the table into this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    log: list[Launched] = []
    with stub(log=log):
        chosen = [case for case in cases() if options.op in (None, case.op)]
        faulty = [case.op for case in chosen if not launches_the_same(case, log)]
        rows = [row for case in chosen for row in measured(case, options.rounds)]
    if not rows:
        parser.error(f"--op: expected one of {', '.join(case.op for case in cases())}, got {options.op}")
    print(*table(rows), sep="\n")
    print(*(f"FAULT {op}: a call that is repeated launches something else than a first call" for op in faulty), sep="\n")
    if options.json:
        versions = {"torch": torch.__version__, "triton": triton.__version__, "python": platform.python_version()}
        write_json(options.json, {**versions, "machine": processor(), "rows": [asdict(row) for row in rows]})
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
