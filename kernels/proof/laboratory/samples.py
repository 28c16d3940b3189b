"""PyTorch's own test inputs of its ops, for ops of ours that have the same signature."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from proof.laboratory.device import DEVICE

if TYPE_CHECKING:
    from torch.testing._internal.opinfo.core import ErrorInput, OpInfo, SampleInput


def op_samples(name: str, dtype: torch.dtype = torch.float32, requires_grad: bool = True) -> "Iterator[SampleInput]":
    """Each sample of an op, as "nn.functional.group_norm", and the same non-contiguous: op(sample.input, *sample.args,
    **sample.kwargs)."""
    for sample in op_info(name).sample_inputs(DEVICE, dtype, requires_grad=requires_grad):
        yield sample
        yield sample.noncontiguous()


def op_errors(name: str) -> "Iterator[ErrorInput]":
    """Inputs that an op must refuse: error.sample_input, error.error_type, error.error_regex."""
    yield from op_info(name).error_inputs(DEVICE)


def op_info(name: str) -> "OpInfo":
    from torch.testing._internal.common_methods_invocations import op_db  # takes seconds

    found = [info for info in op_db if info.name == name and not info.variant_test_name]
    if len(found) != 1:
        raise ValueError(f"op_samples: name must be that of one op of torch.testing, got {name!r}")
    return found[0]
