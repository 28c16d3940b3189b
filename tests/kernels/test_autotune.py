import pytest
import torch

from fastgen.functional import group_norm
from fastgen_kernels import autotune
from fastgen_kernels.autotune import fastest
from proof.interpreter import recorded
from proof.laboratory.device import interpreter_only
from proof.laboratory.tensors import random
from tests.helpers.environments import printed_under


@pytest.fixture
def searching(monkeypatch):
    monkeypatch.setattr(autotune, "_searching", True)
    monkeypatch.setattr(autotune, "_found", {})


def test_without_a_search_it_is_the_first():
    assert fastest("op", [3, 1, 2], pytest.fail) == 3


def test_the_fastest_is_searched_once_for_each_kind(searching, monkeypatch):
    launched = []
    monkeypatch.setattr(autotune, "_once", lambda launch, way: launch(way) or way)
    assert [fastest(kind, [3, 1, 2], launched.append) for kind in ("op", "op", "another")] == [1, 1, 1]
    assert launched == 2 * [*[3] * 6, *[1] * 6, *[2] * 6]


def test_a_single_way_is_not_timed(searching):
    assert fastest("op", [3], pytest.fail) == 3


def test_nothing_is_timed_while_a_graph_is_captured(searching, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert fastest("op", [3, 1], pytest.fail) == 3


@interpreter_only
@pytest.mark.kernels
def test_group_norm_gives_the_same_whatever_is_the_fastest(searching, monkeypatch):
    """Each of its algorithms is made the fastest in turn; a second call of the same kind launches it and nothing else."""
    x, weight = random((1, 4, 3, 2)).requires_grad_(), random((4,), seed=1).requires_grad_()
    found = []
    for i, kernel in enumerate(("held_kernel", "streamed_kernel", "apply_kernel")):
        monkeypatch.setattr(autotune, "_found", {})
        seconds = iter([*(float(k != i) for k in range(3) for _ in range(5))] * 2)
        monkeypatch.setattr(autotune, "_once", lambda launch, way, seconds=seconds: launch(way) or next(seconds))
        y = group_norm(x, 1, weight)
        found.append((y, *torch.autograd.grad(y, [x, weight], torch.ones_like(y))))
        with recorded() as log:
            y = group_norm(x, 1, weight)
            torch.autograd.grad(y, [x, weight], torch.ones_like(y))
        assert log.launches.count(kernel) == 2
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_the_switch():
    code = "from fastgen_kernels import autotune; print(autotune._searching)"
    lines = printed_under([{"FASTGEN_AUTOTUNE": value} for value in ("1", "0", "yes")], code)
    assert lines == ["True", "False", "ValueError: FASTGEN_AUTOTUNE: expected 0 or 1, got 'yes'"]
