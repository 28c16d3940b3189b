"""attention_qkv beside each backend of scaled_dot_product_attention and FlexAttention, each with what takes qkv apart and puts
the output together."""

from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from benchmarks.harness.ops import Absent, cases


def with_backend(backend):
    def peer(case):
        for_a_gpu()

        def call(qkv):
            with sdpa_kernel(backend):
                return case.eager(qkv)

        return call

    return peer


def flex(case):
    """Compiled with all that is around it, as it is meant to be used. Before it torch.compile of the eager code resets Dynamo."""
    for_a_gpu()
    return torch.compile(partial(case.eager, attend=flex_attention), dynamic=False, fullgraph=True)


def for_a_gpu():
    if not torch.cuda.is_available():
        raise Absent("is for a GPU")


PEERS = {
    "flash": with_backend(SDPBackend.FLASH_ATTENTION),
    "cuDNN": with_backend(SDPBackend.CUDNN_ATTENTION),
    "memory-efficient": with_backend(SDPBackend.EFFICIENT_ATTENTION),
    "math": with_backend(SDPBackend.MATH),
    "FlexAttention": flex,
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("attention_qkv"), ids=lambda case: case.shape)
def test_attention_qkv(measured, case, direction):
    measured(case, direction, PEERS)
