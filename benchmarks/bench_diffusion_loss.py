"""diffusion_loss beside the same by PyTorch's operations, in fp32 and in the prediction's dtype."""

import pytest
import torch.nn.functional as F

from benchmarks.harness.ops import cases


def uncast(case):
    """As it is often written: in bf16 faster, and the loss loses its digits."""
    return lambda pred, target, weight: (F.mse_loss(pred, target, reduction="none").mean((1, 2, 3)) * weight,)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("diffusion_loss"), ids=lambda case: case.shape)
def test_diffusion_loss(measured, case, direction):
    measured(case, direction, {"eager without casts": uncast})
