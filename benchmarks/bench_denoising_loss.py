"""denoising_loss beside the same by PyTorch's operations, with noise that is drawn and with a target that was kept."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness.ops import cases


def kept(case):
    """The loss alone, against a target that is stored: what is left where the step that made x_t has made it too."""
    targets = {}

    def loss(pred, x0, alpha, sigma, weight, key):
        if pred.data_ptr() not in targets:  # at the first call, which is not timed
            targets[pred.data_ptr()] = torch.randn_like(pred)
        target = targets[pred.data_ptr()]
        return (F.mse_loss(pred.float(), target.float(), reduction="none").mean((1, 2, 3)) * weight,)

    return loss


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("denoising_loss"), ids=lambda case: case.shape)
def test_denoising_loss(measured, case, direction):
    measured(case, direction, {"eager, target kept": kept})
