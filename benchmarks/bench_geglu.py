"""geglu beside the sequence of PyTorch operations, and Liger's, whose gate is the tanh approximation of GELU."""

import pytest

from benchmarks.harness.ops import cases


def liger(case):
    from liger_kernel.ops.geglu import LigerGELUMulFunction

    def call(x):
        value, gate = x.chunk(2, -1)
        return (LigerGELUMulFunction.apply(gate, value),)

    return call


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("geglu"), ids=lambda case: case.shape)
def test_geglu(measured, case, direction):
    measured(case, direction, {"Liger": liger})
