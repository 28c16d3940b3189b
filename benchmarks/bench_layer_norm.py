"""layer_norm beside the sequence of PyTorch operations, and that sequence with Liger's norm."""

import pytest

from benchmarks.harness.ops import Absent, cases


def liger(case):
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction

    if "plain" in case.shape:
        raise Absent("takes weight and bias always")

    def call(x, *rest):
        total = x + rest[0] if "residual" in case.shape else x
        y = LigerLayerNormFunction.apply(total, *rest[-2:], 1e-5)
        return (y, total) if "residual" in case.shape else (y,)

    return call


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("layer_norm"), ids=lambda case: case.shape)
def test_layer_norm(measured, case, direction):
    measured(case, direction, {"Liger": liger})
