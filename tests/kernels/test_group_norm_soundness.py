"""What the kernels of group_norm read, write and keep: bounds, addresses over 2^31, launches, tensors saved for backward."""

from functools import partial

import pytest
import torch

from fastgen.functional import add_group_norm
from fastgen_kernels.group_norm import forward_triton
from proof.counters import of_operations
from proof.interpreter import recorded
from proof.laboratory.accuracy import results
from proof.laboratory.child import died
from proof.laboratory.device import interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.guard_pages import assert_in_bounds
from proof.laboratory.soundness import assert_sound
from proof.laboratory.tensors import random
from tests.helpers.group_norm_problems import ALGORITHMS, OPTIONS, force, inputs, op

pytestmark = pytest.mark.kernels


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("algorithm", ["streamed", "split"])
def test_in_bounds_without_options(monkeypatch, algorithm):
    force(monkeypatch, algorithm)
    assert_in_bounds(partial(results, op), *inputs((2, 6, 5, 3), options=()), 2)


@interpreter_only
@pytest.mark.parametrize(
    ("algorithm", "shape", "groups", "layout"),
    [
        *(pytest.param(algorithm, (3, 3, 4, 3), 1, "contiguous", marks=pytest.mark.kill) for algorithm in ALGORITHMS),
        ("held", (2, 12, 3, 3), 4, "channels_last"),
        ("streamed", (2, 6, 5, 4), 2, "row_gap"),
        ("split", (2, 12, 5, 3), 4, "channels_last"),
        ("held", (3, 4), 2, "contiguous"),
    ],
)
def test_sound(monkeypatch, algorithm, shape, groups, layout):
    force(monkeypatch, algorithm, tile=32)
    monkeypatch.setattr(forward_triton, "MERGED", 1024)  # what a mask leaves out is then out of bounds
    assert_sound(op, *inputs(shape, layout=layout), groups)


def spread(x, strides):
    copy = lazy(1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)), x.dtype)
    return copy.as_strided(x.shape, strides).copy_(x.detach()).requires_grad_()


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("algorithm", "layout", "strides"),
    [
        ("held", "contiguous", (12, 2**30, 1)),
        ("held", "channels_last", (8, 1, 2**28)),
        ("streamed", "channels_last", (8, 1, 2**28)),
    ],
)
def test_channels_and_positions_far_apart(monkeypatch, algorithm, layout, strides):
    """A tile that reaches over 2^31 elements, and one of fewer that begins beyond them."""
    force(monkeypatch, algorithm, tile=64)
    near = [random((2, 8, 12), layout=layout, seed=i).requires_grad_() for i in range(4)]

    def made(x, residual, dy, dtotal):
        y, total = add_group_norm(x, residual, 2)
        return y, total, *torch.autograd.grad([y, total], [x, residual], [dy, dtotal])

    def run():
        torch.testing.assert_close(made(*(spread(x, strides) for x in near)), made(*near), rtol=0, atol=0)

    report = died(run)
    assert report is None, report


@interpreter_only
@pytest.mark.parametrize(
    ("algorithm", "forward", "backward"),
    [
        ("held", ["held_kernel"], ["held_kernel"]),
        ("streamed", ["streamed_kernel"], ["streamed_kernel"]),
        ("split", ["statistics_kernel", "merge_kernel", "apply_kernel"], ["sums_kernel", "merge_kernel", "apply_kernel"]),
    ],
)
def test_launches(monkeypatch, algorithm, forward, backward):
    force(monkeypatch, algorithm)
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    with recorded() as log:
        y = op(x, *options, 3)
        assert log.launches == forward
        y.sum().backward()
        assert log.launches == [*forward, *backward, "parameters_kernel"]


@interpreter_only
@pytest.mark.kill
def test_x_alone_takes_no_launch_for_parameters():
    x, *options = inputs((2, 6, 3, 2), options=())
    with recorded() as log:
        op(x, *options, 3).sum().backward()
    assert log.launches == ["held_kernel", "held_kernel"]


def test_the_gradient_of_the_sum_takes_no_pass_of_its_own():
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    y, skip = add_group_norm(x, None, 3, *options[:2])
    with of_operations() as operations:
        torch.autograd.grad([y, skip], x, [torch.ones_like(x)] * 2)
    assert not any("add" in name for name in operations.names)


def test_what_is_saved_for_backward():
    """x, or with a residual the sum, which is a result anyhow; the statistics, and what was given for a channel."""
    for options in (OPTIONS, ("weight", "bias")):
        x, *rest = inputs((2, 8, 16, 16), torch.bfloat16, options=options)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda saved: saved):
            made = op(x, *rest, 4)
        small = sum(4 * y.numel() for y in rest[:5] if y is not None) + 2 * 4 * 3 * 4
        assert sum(y.nbytes for y in saved) <= x.nbytes + small
        if "residual" in options:
            assert any(y.data_ptr() == made[1].data_ptr() for y in saved)
