"""reconstruction_nll beside the sequence of PyTorch operations."""

import pytest

from benchmarks.harness.ops import cases


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("reconstruction_nll"), ids=lambda case: case.shape)
def test_reconstruction_nll(measured, case, direction):
    measured(case, direction, {})
