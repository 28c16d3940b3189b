"""Fewer cases than every combination: each two values of two parameters still occur together."""

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import Any


def all_pairs(*parameters: Sequence[Any], allowed: Callable[..., bool] = lambda *case: True) -> list[tuple[Any, ...]]:
    """Cases of one value a parameter, so chosen that any two values of different parameters meet in one of them, as far as a case
    that is `allowed` has both; always the same ones."""
    indices = [range(len(values)) for values in parameters]
    cases = [case for case in product(*indices) if allowed(*(values[i] for values, i in zip(parameters, case, strict=True)))]
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        chosen.append(tuple(values[i] for values, i in zip(parameters, best, strict=True)))
    return chosen
