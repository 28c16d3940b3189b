"""What the second pass of group_norm should find in the L2 cache of an H200: arithmetic on its plan, not a measurement.

The second pass goes back from where the first ended. What it reads at a distance of d elements from there was touched d elements
of each tensor ago, and is still in the cache where these are no more than it holds.
"""

import torch
from torch import Tensor

from fastgen_kernels.dispatch import processors
from fastgen_kernels.group_norm import backward_triton, forward_triton
from fastgen_kernels.group_norm.plan import Plan, plans

L2 = 50 * 2**20  # bytes
WARPS = 16  # of a processor at work, with 128 registers a lane


def second_reads(x: Tensor, groups: int, residual: bool) -> tuple[float | None, float | None]:
    """Of group_norm on x (N, C, S), forward and backward: the share of the second reads that hit, None for a single pass."""
    forward = plans(x, groups, forward_triton.HELD, forward_triton.TILE)[0]
    backward = plans(x, groups, backward_triton.HELD // (2 if residual else 1), backward_triton.TILE)[0]
    # Forward: x and y, with a residual it and the sum too. Backward: x, dy and dx, and the sum's gradient.
    return share(forward, x, 4 if residual else 2), share(backward, x, 4 if residual else 3)


def share(plan: Plan, x: Tensor, tensors: int) -> float | None:
    if plan.algorithm == "held":
        return None
    at_work = min(plan.programs, processors(torch.device("cpu")) * max(1, WARPS // plan.warps))
    elements = x.numel() if plan.algorithm == "split" else at_work * plan.channels * x.shape[2]
    return min(1.0, L2 / (tensors * elements * x.itemsize))
