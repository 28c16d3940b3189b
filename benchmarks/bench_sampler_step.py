"""sampler_step beside the sequence of PyTorch operations, which draws its noise from torch's generator."""

import pytest

from benchmarks.harness.ops import cases


@pytest.mark.parametrize("case", cases("sampler_step"), ids=lambda case: case.shape)
def test_forward(measured, case):
    measured(case, "forward", {})


@pytest.mark.parametrize("case", [case for case in cases("sampler_step") if case.backward], ids=lambda case: case.shape)
def test_backward(measured, case):
    measured(case, "backward", {})
