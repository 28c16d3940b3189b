"""philox_normal beside torch.randn, which its eager peer is: the same distribution, but no key."""

import pytest

from benchmarks.harness.ops import cases


@pytest.mark.parametrize("case", cases("philox_normal"), ids=lambda case: case.shape)
def test_philox_normal(measured, case):
    measured(case, "forward", {})
