"""Tensors of every shape, dtype and layout that an op may be given, for hypothesis. Where it is not installed, as on a machine
that has only what `pytest -m gpu` needs, the tests with it skip."""

from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor

from proof.laboratory.tensors import FLOATS, GRADIENTS, LAYOUTS, random

try:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:
    HealthCheck = Phase = st = MagicMock()

    def given(*_strategies: Any, **_named: Any) -> Callable[..., Any]:
        def skipped() -> None:
            pytest.skip("needs hypothesis")

        return lambda test: skipped

    def settings(**_options: Any) -> Callable[..., Any]:
        return lambda test: test


def examples(n: int) -> Callable[..., Any]:
    """Decorates a @given test: n examples, the same ones in every run."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )


# Sizes at which kernels break: none, one, around powers of two, primes.
SIZES = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257)


@st.composite
def shapes(draw: st.DrawFn, min_dims: int = 1, max_dims: int = 4, max_elements: int = 2**10) -> tuple[int, ...]:
    shape: list[int] = []
    for _ in range(draw(st.integers(min_dims, max_dims))):
        left = max_elements
        for size in shape:
            left //= max(1, size)
        shape.append(draw(st.sampled_from([size for size in SIZES if size <= left])))
    return tuple(draw(st.permutations(shape)))


def dtypes(*among: torch.dtype) -> st.SearchStrategy[torch.dtype]:
    return st.sampled_from(among or FLOATS)


def layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(tuple(LAYOUTS))


def gradient_layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(tuple(GRADIENTS))


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: st.SearchStrategy[torch.dtype] | None = None,
    layout: st.SearchStrategy[str] | None = None,
) -> Tensor:
    """A random tensor that requires a gradient, some of whose dimensions may be expanded from one element, at stride 0."""
    size = draw(shapes() if shape is None else shape)
    kept = [1 if n > 1 and draw(st.sampled_from((False, False, False, True))) else n for n in size]
    x = random(
        kept, draw(dtypes() if dtype is None else dtype), draw(layouts() if layout is None else layout), draw(st.integers(0, 99))
    )
    return x.expand(size).requires_grad_()
