"""group_norm with kernels as an operation of torch: registration, torch.compile, export, checkpointing, autocast."""

from functools import partial

import pytest

from fastgen_kernels.group_norm import _group_norm, _group_norm_backward
from proof.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_ignores_autocast,
    assert_registered,
)
from tests.helpers.group_norm_problems import ALGORITHMS, OPTIONS, force, inputs, op

pytestmark = pytest.mark.kernels


def test_registered():
    for layout, options in (("contiguous", OPTIONS), ("channels_last", ("weight", "bias"))):
        x, *rest, residual = inputs((2, 4, 3, 2), layout=layout, options=options)
        assert_registered(_group_norm.registered, (x, residual, *rest, 1, 1e-5, "silu"))
        y, total, statistics = (y.detach() for y in _group_norm(x, residual, *rest, 1, 1e-5, "silu"))
        dtotal = None if residual is None else total
        data = [None if p is None else p.detach() for p in rest]
        wanted = [True, *(p is not None for p in rest)]
        assert_registered(_group_norm_backward.registered, (y, dtotal, x.detach(), *data, statistics, "silu", wanted))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "layout"), [*zip(ALGORITHMS, ("contiguous", "channels_last", "permuted"), strict=True)])
def test_differentiates(monkeypatch, algorithm, layout):
    force(monkeypatch, algorithm)
    assert_differentiates(partial(op, groups=2), *inputs((2, 4, 3), layout=layout))


def test_compiles_exports_and_checkpoints():
    given = inputs((5, 4, 3, 2), layout="channels_last")
    for check in (assert_compiles, assert_exports, assert_checkpoints, assert_ignores_autocast):
        check(op, *given, 1)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((5, 4, 3, 2), layout="channels_last"), 1, backends=("inductor",))
