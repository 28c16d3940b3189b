"""to_x0 beside the sequence of PyTorch operations."""

import pytest

from benchmarks.harness.ops import cases


@pytest.mark.parametrize("case", cases("to_x0"), ids=lambda case: case.shape)
def test_forward(measured, case):
    measured(case, "forward", {})


@pytest.mark.parametrize("case", [case for case in cases("to_x0") if case.backward], ids=lambda case: case.shape)
def test_backward(measured, case):
    measured(case, "backward", {})
