"""attention_qkv beside each backend of scaled_dot_product_attention, with what takes qkv apart and puts the output together."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.ops import Absent, cases


def with_backend(backend):
    def peer(case):
        if not torch.cuda.is_available():
            raise Absent("is for a GPU")

        def call(qkv):
            with sdpa_kernel(backend):
                return case.eager(qkv)

        return call

    return peer


PEERS = {
    "flash": with_backend(SDPBackend.FLASH_ATTENTION),
    "cuDNN": with_backend(SDPBackend.CUDNN_ATTENTION),
    "memory-efficient": with_backend(SDPBackend.EFFICIENT_ATTENTION),
}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("case", cases("attention_qkv"), ids=lambda case: case.shape)
def test_attention_qkv(measured, case, direction):
    measured(case, direction, PEERS)
