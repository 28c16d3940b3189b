"""PyTorch's own samples of its operators' arguments (OpInfo), which importing takes seconds: a test that needs them pays."""

from typing import Any


def op_info(name: str) -> Any:
    """PyTorch's OpInfo of an operator, such as "nn.functional.group_norm"."""
    from torch.testing._internal.common_methods_invocations import op_db

    return next(op for op in op_db if op.name == name)
