"""Kernels of adamw_ema.py: the sum of the gradients' squares, what every parameter's step then takes, and the step.

The first and the last go over all tensors of a kind at once, a chunk to a program. A table on the device has a row for each
tensor, of addresses, size and group; a list has for each program its tensor and its chunk of that. A kind is the dtypes of
gradient and copy, and whether all addresses are multiples of 16 bytes, which accesses of that width need.
"""

from collections import defaultdict
from functools import lru_cache
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.arithmetic_triton import TRITON_DTYPE, rounded

CHUNK = tl.constexpr(16384)
BLOCK = tl.constexpr(1024)
WIDTH = tl.constexpr(512)  # of prepare_kernel
PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, FIRST, SECOND, COPY, STEP, SIZE, GROUP = (tl.constexpr(i) for i in range(10))
COLUMNS = tl.constexpr(10)
FACTORS = tl.constexpr(8)  # columns of the table that prepare_kernel makes, of a parameter's numbers


@triton.jit
def chunk(table_ptr, chunk_ptr):
    """The tensor that a chunk is of, its row in the table, where in the tensor the chunk begins and how many elements it has."""
    tensor = tl.load(chunk_ptr)
    row = table_ptr + tensor * COLUMNS
    start = tl.load(chunk_ptr + 1) * CHUNK
    return tensor, row, start, tl.minimum(tl.load(row + SIZE) - start, CHUNK).to(tl.int32)


@triton.jit
def address(row, COLUMN: tl.constexpr, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Of element `start` of a tensor."""
    x = tl.load(row + COLUMN).to(tl.pointer_type(DTYPE)) + start
    if ALIGNED:
        x = tl.multiple_of(x, 16)
    return x


@triton.jit(do_not_specialize=["begin"])
def norm_kernel(table_ptr, chunks_ptr, sums_ptr, begin, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The sum of the squares of each chunk from `begin` on."""
    at = begin + tl.program_id(0)
    _, row, start, n = chunk(table_ptr, chunks_ptr + 2 * at)
    grad_ptr = address(row, GRAD, start, DTYPE, ALIGNED)
    e = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    whole = n // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        grad = tl.load(grad_ptr + first + e).to(tl.float32)
        total += grad * grad
    grad = tl.load(grad_ptr + whole + e, e < n - whole, 0.0).to(tl.float32)
    total += grad * grad
    tl.store(sums_ptr + at, tl.sum(total))


@triton.jit(do_not_specialize=["N", "SUMS"])
def prepare_kernel(
    table_ptr, sums_ptr, counts_ptr, lr_ptr, settings_ptr, profiles_ptr, scale_ptr, found_ptr, factors_ptr, common_ptr,
    N, SUMS, clip, AVERAGES: tl.constexpr,
):  # fmt: skip
    """The numbers of each of N parameters, and those common to all: whether the step is made, and the weights of the averages.
    Counts the step. One program, in fp64."""
    i = tl.arange(0, WIDTH)
    scale, kept = 1.0, tl.full((), 1, tl.int1)
    if scale_ptr is not None:
        scale /= tl.load(scale_ptr)
    if found_ptr is not None:
        kept = tl.load(found_ptr) == 0.0
    if sums_ptr is not None:
        total = tl.zeros((WIDTH,), tl.float64)
        for first in range(0, SUMS, WIDTH):
            total += tl.load(sums_ptr + first + i, first + i < SUMS, 0.0)
        norm = tl.sqrt(tl.sum(total)) * scale
        kept = kept & (norm < float("inf"))  # nor is NaN
        scale *= tl.minimum(clip / (norm + 1e-6), 1.0)
    tl.store(common_ptr, kept)

    n = tl.load(counts_ptr).to(tl.float64) + 1.0
    for j in tl.static_range(AVERAGES):
        profile = profiles_ptr + 3 * j
        decay = tl.minimum(tl.load(profile), n / (n + tl.load(profile + 1)))
        tl.store(common_ptr + 1 + j, 1.0 - decay * power(1.0 - 1.0 / n, tl.load(profile + 2)))
    count_ptr = counts_ptr + tl.where(kept, 0, 1)
    tl.store(count_ptr, tl.load(count_ptr) + 1)

    for first in range(0, N, WIDTH):
        inside = first + i < N
        row = table_ptr + (first + i) * COLUMNS
        step_ptr = tl.load(row + STEP, inside).to(tl.pointer_type(tl.float32))
        step = tl.load(step_ptr, inside) + tl.where(kept, 1.0, 0.0)
        tl.store(step_ptr, step, inside)

        group = tl.load(row + GROUP, inside, 0)
        settings = settings_ptr + 4 * group
        lr, beta1, beta2 = tl.load(lr_ptr + group), tl.load(settings), tl.load(settings + 1)
        factors = factors_ptr + (first + i) * FACTORS
        tl.store(factors, scale, inside)
        tl.store(factors + 1, 1.0 - lr * tl.load(settings + 3), inside)
        tl.store(factors + 2, 1.0 - beta1, inside)
        tl.store(factors + 3, beta2, inside)
        tl.store(factors + 4, 1.0 - beta2, inside)
        tl.store(factors + 5, lr / (1.0 - power(beta1, step)), inside)
        tl.store(factors + 6, tl.sqrt(1.0 - power(beta2, step)), inside)
        tl.store(factors + 7, tl.load(settings + 2), inside)


@triton.jit
def power(base, exponent):
    """Of a base in fp64 from 0 on; 1 for 0^0."""
    return tl.exp(exponent * tl.log(tl.maximum(base, 1e-300)))


@triton.jit
def eight(at):
    """Eight numbers that lie side by side, from `at` on."""
    a, b, c, d = tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
    return a, b, c, d, tl.load(at + 4), tl.load(at + 5), tl.load(at + 6), tl.load(at + 7)


@triton.jit
def lerp(x, y, weight):
    """As torch.lerp rounds."""
    return tl.where(weight < 0.5, x + weight * (y - x), y - (y - x) * (1.0 - weight))


@triton.jit(do_not_specialize=["begin"])
def update_kernel(
    table_ptr, chunks_ptr, factors_ptr, common_ptr, begin,
    GRAD_DTYPE: tl.constexpr, COPY_DTYPE: tl.constexpr, AVERAGES: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """The step and the averages of each chunk from `begin` on; the averages alone where there is no gradient."""
    if tl.load(common_ptr) == 0.0:
        return
    tensor, row, start, n = chunk(table_ptr, chunks_ptr + 2 * (begin + tl.program_id(0)))
    param = address(row, PARAM, start, tl.float32, ALIGNED)
    grad, exp_avg, exp_avg_sq, copy, first, second = None, None, None, None, None, None
    if GRAD_DTYPE is not None:
        grad = address(row, GRAD, start, GRAD_DTYPE, ALIGNED)
        exp_avg = address(row, EXP_AVG, start, tl.float32, ALIGNED)
        exp_avg_sq = address(row, EXP_AVG_SQ, start, tl.float32, ALIGNED)
    if COPY_DTYPE is not None:
        copy = address(row, COPY, start, COPY_DTYPE, ALIGNED)
    if AVERAGES > 0:
        first = address(row, FIRST, start, tl.float32, ALIGNED)
    if AVERAGES > 1:
        second = address(row, SECOND, start, tl.float32, ALIGNED)

    numbers = None
    if GRAD_DTYPE is not None:
        numbers = eight(factors_ptr + tensor * FACTORS)
    weights = tl.load(common_ptr + 1), tl.load(common_ptr + 2)

    e = tl.arange(0, BLOCK)
    whole = n // BLOCK * BLOCK
    for at in range(0, whole, BLOCK):
        update(param, grad, exp_avg, exp_avg_sq, first, second, copy, at + e, None, numbers, weights)
    if whole < n:
        update(param, grad, exp_avg, exp_avg_sq, first, second, copy, whole + e, whole + e < n, numbers, weights)


@triton.jit
def update(param_ptr, grad_ptr, exp_avg_ptr, exp_avg_sq_ptr, first_ptr, second_ptr, copy_ptr, e, inside, numbers, weights):
    """The step, copies and averages of elements e; pointers of absent tensors are None. numbers, weights: of prepare_kernel."""
    p = tl.load(param_ptr + e, inside)
    if grad_ptr is not None:
        scale, shrink, one_minus_beta1, beta2, one_minus_beta2, step_size, correction, eps = numbers
        g = tl.load(grad_ptr + e, inside).to(tl.float32) * scale
        m = lerp(tl.load(exp_avg_ptr + e, inside), g, one_minus_beta1)
        v = beta2 * tl.load(exp_avg_sq_ptr + e, inside) + one_minus_beta2 * g * g
        p = p * shrink - tl.div_rn(step_size * m, tl.div_rn(tl.sqrt_rn(v), correction) + eps)
        tl.store(param_ptr + e, p, inside)
        tl.store(exp_avg_ptr + e, m, inside)
        tl.store(exp_avg_sq_ptr + e, v, inside)
    if copy_ptr is not None:
        tl.store(copy_ptr + e, rounded(p, copy_ptr.dtype.element_ty), inside)
    if first_ptr is not None:
        tl.store(first_ptr + e, lerp(tl.load(first_ptr + e, inside), p, weights[0]), inside)
    if second_ptr is not None:
        tl.store(second_ptr + e, lerp(tl.load(second_ptr + e, inside), p, weights[1]), inside)


class Facts(NamedTuple):
    """All that a plan depends on. pointers: of params, grads, exp_avgs, exp_avg_sqs, first, second, copies and steps."""

    pointers: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    grads: tuple[torch.dtype, ...]
    copies: tuple[torch.dtype, ...]
    groups: tuple[int, ...]
    settings: tuple[float, ...]
    profiles: tuple[float, ...]
    device: torch.device


class Kind(NamedTuple):
    """Tensors that one launch takes."""

    grad: torch.dtype | None
    copy: torch.dtype | None
    aligned: bool


class Plan(NamedTuple):
    """On the device the table, the list of chunks, kind by kind, settings and profiles; and each kind's number of chunks."""

    table: Tensor
    chunks: Tensor
    settings: Tensor
    profiles: Tensor
    kinds: dict[Kind, int]


def launch(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    steps: list[Tensor], first: list[Tensor], second: list[Tensor], copies: list[Tensor], counts: Tensor, lr: Tensor,
    settings: list[float], groups: list[int], profiles: list[float], clip: float, grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:  # fmt: skip
    """The op adamw_ema_: settings and profiles are flat lists, four numbers a group and three an average."""
    lists = params, grads, exp_avgs, exp_avg_sqs, first, second, copies, steps
    facts = Facts(
        tuple([tuple([x.data_ptr() for x in xs]) for xs in lists]),
        tuple([p.numel() for p in params]),
        tuple([g.dtype for g in grads]),
        tuple([c.dtype for c in copies]),
        tuple(groups),
        tuple(settings),
        tuple(profiles),
        counts.device,
    )
    averages = len(profiles) // 3
    with torch.cuda.device_of(counts):
        plan = find_plan(facts)
        sums = counts.new_empty(sum(plan.kinds.values()), dtype=torch.float32) if clip > 0 else None
        factors = counts.new_empty((len(grads), FACTORS.value), dtype=torch.float32)
        common = counts.new_empty(3, dtype=torch.float32)

        taken = 0
        for kind, chunks in plan.kinds.items() if sums is not None else ():
            if kind.grad is not None:
                norm_kernel[(chunks,)](plan.table, plan.chunks, sums, taken, TRITON_DTYPE[kind.grad], kind.aligned)
                taken += chunks
        prepare_kernel[(1,)](
            plan.table, sums, counts, lr, plan.settings, plan.profiles, grad_scale, found_inf, factors, common,
            len(grads), taken, clip, averages,
        )  # fmt: skip
        begin = 0
        for kind, chunks in plan.kinds.items():
            if kind.grad is not None or averages:
                update_kernel[(chunks,)](
                    plan.table, plan.chunks, factors, common, begin,
                    kind.grad and TRITON_DTYPE[kind.grad], kind.copy and TRITON_DTYPE[kind.copy], averages, kind.aligned,
                )  # fmt: skip
            begin += chunks


def find_plan(facts: Facts) -> Plan:
    """The plan that was made for the same facts on the same stream, or a new one. A graph that is captured has one of its own,
    which each replay copies to the device again."""
    if facts.device.type != "cuda":
        return remember_plan(facts, 0)
    if torch.cuda.is_current_stream_capturing():
        return make_plan(facts)
    return remember_plan(facts, torch.cuda.current_stream(facts.device).cuda_stream)


@lru_cache(maxsize=8)
def remember_plan(facts: Facts, stream: int) -> Plan:
    """make_plan, once for the same facts on the same stream."""
    return make_plan(facts)


def make_plan(facts: Facts) -> Plan:
    """The table, the list of chunks, settings and profiles, in one copy to the device; see Plan."""
    table = list(zip_longest(*facts.pointers, facts.sizes, facts.groups, fillvalue=0))
    of_kind: dict[Kind, list[int]] = defaultdict(list)
    for i, (row, grad, copy) in enumerate(zip_longest(table, facts.grads, facts.copies)):
        of_kind[Kind(grad, copy, all(x % 16 == 0 for x in row[: STEP.value]))].append(i)
    tensors = np.array([i for chosen in of_kind.values() for i in chosen], np.int64)
    numbers = -(-np.array(facts.sizes, np.int64) // CHUNK.value)
    repeated = numbers[tensors]
    within = np.arange(repeated.sum()) - np.repeat(repeated.cumsum() - repeated, repeated)
    parts = [
        np.array(table, np.int64),
        np.stack((np.repeat(tensors, repeated), within), 1),
        np.array(facts.settings, np.float64).view(np.int64),
        np.array(facts.profiles, np.float64).view(np.int64),
    ]
    words = upload(np.concatenate([part.ravel() for part in parts]), facts.device).split([part.size for part in parts])
    kinds = {kind: int(numbers[chosen].sum()) for kind, chosen in of_kind.items()}
    return Plan(
        words[0], words[1], words[2].view(torch.float64), words[3].view(torch.float64), {k: n for k, n in kinds.items() if n}
    )


def upload(words: np.ndarray, device: torch.device) -> Tensor:
    """Without waiting for the device."""
    host = torch.from_numpy(words)
    if device.type != "cuda":
        return host
    host = host.pin_memory()
    if torch.cuda.is_current_stream_capturing():
        _replayed.append(host)
    return host.to(device, non_blocking=True)


_replayed: list[Tensor] = []  # what graphs read again at each replay, for as long as the process lives
