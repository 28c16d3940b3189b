"""group_norm beside the sequence of PyTorch operations, and that sequence with the norms of Liger and apex."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.harness.ops import Absent, cases


def liger(case):
    """As (N, C, S): its backward pass takes no fourth dimension, and its layout is contiguous."""
    from liger_kernel.ops.group_norm import LigerGroupNormFunction

    def norm(x, weight, bias):
        y = LigerGroupNormFunction.apply(x.flatten(2), weight, bias, x.shape[1], 32, 1e-5)
        return y.view(x.shape)

    return with_norm(case, norm)


def apex(case):
    """With SiLU in the kernel where nothing comes between, and its own choice of one pass or two."""
    from apex.contrib.group_norm.group_norm import group_norm_nhwc_fprop

    if "channels_last" not in case.shape:
        raise Absent("takes channels_last alone")
    fused = "scale" not in case.shape

    def norm(x, weight, bias):
        passes = 2 if x.shape[2] * x.shape[3] > 1024 else 1
        return group_norm_nhwc_fprop(x, 32, weight, bias, 1e-5, "silu" if fused else "", passes)[0]

    return with_norm(case, norm, activation=(lambda y: y) if fused else F.silu)


def on_a_cpu(case):
    """What autocast runs on a CPU: the norm in x's dtype, where on a GPU it is in fp32."""
    if torch.cuda.is_available():
        raise Absent("is for a CPU")
    return with_norm(case, lambda x, weight, bias: F.group_norm(x, 32, weight, bias))


def with_norm(case, norm, activation=F.silu):
    """The case's eager code with another norm."""

    def call(weight, bias, x, *rest):
        total = x + rest[0] if "residual" in case.shape else x
        y = norm(total, weight, bias)
        if "scale" in case.shape:
            scale, shift = rest[-1].view(*rest[-1].shape, *[1] * (x.dim() - 2)).chunk(2, 1)
            y = y * (1 + scale) + shift
        return (activation(y), total) if "residual" in case.shape else (activation(y),)

    return call


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("group_norm"), ids=lambda case: case.shape)
def test_group_norm(measured, case, direction):
    measured(case, direction, {"CPU autocast": on_a_cpu, "Liger": liger, "apex": apex})
