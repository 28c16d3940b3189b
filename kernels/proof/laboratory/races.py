"""Programs of one launch that get in each other's way, seen in the interpreter's log, where they run one after another."""

from collections.abc import Callable
from itertools import combinations, groupby
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from proof.interpreter import Access, backwards, recorded, shuffled


def assert_race_free(fn: Callable[[], Any]) -> Any:
    """No two programs of a launch touch one byte, one of them writing, unless both do so by atomics or atomics order them.
    Returns what fn returns.

    Two programs are ordered where the first, after its access, and the second, before its own, use an atomic on one
    address: so the last program to arrive at a counter may read what the others stored before they arrived.
    """
    with recorded() as log:
        returned = fn()
    assert log.launches, "no kernel was launched"
    for _, launch in groupby(log, lambda access: access.launch):
        accesses = list(launch)
        for first, second in sorted(_conflicts(accesses)):
            assert _ordered(accesses, first, second), _describe(accesses[first], accesses[second])
    return returned


def assert_order_free(fn: Callable[[], Any], in_order: Any = None) -> None:
    """fn's results, tensors, are the same bit for bit in whatever order the programs run: backwards, where of any two programs
    the other comes first, and at random. in_order: the results in order, where they are known."""
    in_order = fn() if in_order is None else in_order
    for order in (backwards(), shuffled(0)):
        with order:
            out_of_order = fn()
        for i, (x, y) in enumerate(zip(tree_leaves(in_order), tree_leaves(out_of_order), strict=True)):
            same = torch.equal(x.contiguous().view(torch.uint8), y.contiguous().view(torch.uint8))
            assert same, f"result {i} depends on the order in which the programs run"


def _conflicts(accesses: list[Access]) -> set[tuple[int, int]]:
    """Pairs of accesses, by their places in the list, of different programs to one byte, neither both loads nor both atomics."""
    ranges = [(access.addresses.reshape(-1, 1) + np.arange(access.width)).ravel() for access in accesses]
    touched = np.concatenate([*ranges, np.empty(0, np.int64)])
    order = np.argsort(touched, kind="stable")
    of = np.repeat(np.arange(len(accesses)), [len(r) for r in ranges])[order]
    starts = np.flatnonzero(np.diff(touched[order], prepend=-1))
    if not len(starts):
        return set()

    ranks = {program: rank for rank, program in enumerate(dict.fromkeys(access.program for access in accesses))}
    program = np.array([ranks[access.program] for access in accesses])[of]
    kind = np.array([("load", "store", "atomic").index(access.kind) for access in accesses])[of]
    several = np.minimum.reduceat(program, starts) < np.maximum.reduceat(program, starts)
    in_one_way = (np.maximum.reduceat(kind, starts) == 0) | (np.minimum.reduceat(kind, starts) == 2)

    ends = np.append(starts[1:], len(of))
    suspects = {tuple(of[starts[i] : ends[i]].tolist()) for i in np.flatnonzero(several & ~in_one_way)}
    harmless = (("load", "load"), ("atomic", "atomic"))
    return {
        (a, b)
        for suspect in suspects
        for a, b in combinations(suspect, 2)
        if accesses[a].program != accesses[b].program and (accesses[a].kind, accesses[b].kind) not in harmless
    }


def _ordered(accesses: list[Access], first: int, second: int) -> bool:
    after = _synchronizes(accesses[first:], accesses[first].program)
    before = _synchronizes(accesses[: second + 1], accesses[second].program)
    return not after.isdisjoint(before)


def _synchronizes(accesses: list[Access], program: tuple[int, int, int]) -> set[int]:
    """The addresses of a program's atomics, but for the relaxed ones, which order nothing."""
    atomics = (access for access in accesses if access.program == program and access.kind == "atomic" and not access.relaxed)
    return {address for access in atomics for address in access.addresses.tolist()}


def _describe(first: Access, second: Access) -> str:
    shared = np.intersect1d(first.addresses, second.addresses)
    return (
        f"{first.kernel}, launch {first.launch}: program {first.program}'s {first.kind} and program {second.program}'s "
        f"{second.kind} meet at {len(shared)} addresses, and nothing orders them"
    )
