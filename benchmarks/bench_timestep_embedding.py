"""timestep_embedding beside the same by PyTorch's operations."""

import pytest

from benchmarks.harness.ops import cases


@pytest.mark.parametrize("case", cases("timestep_embedding"), ids=lambda case: case.shape)
def test_timestep_embedding(measured, case):
    measured(case, "forward", {})
