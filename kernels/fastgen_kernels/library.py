"""Registration of ops that call Triton kernels with torch.library, so that autograd, torch.compile and torch.export see one op
each way."""

from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("fastgen", "DEF")


def define(
    schema: str,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """The op fastgen::NAME of a schema "NAME(...) -> ...".

    launch runs it, on the GPU or in the interpreter; fake gives empty outputs of the same shapes and strides. backward and
    setup_context are as torch.library.register_autograd takes them; an op without them has no derivative. An op that writes into
    its arguments has none either, and returns nothing.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, launch, key)
    torch.library.register_fake(f"fastgen::{name}", fake, lib=LIBRARY)
    if "!)" in schema:
        return getattr(torch.ops.fastgen, name).default
    if backward is None:

        def backward(ctx: Any, *grads: torch.Tensor) -> None:
            raise NotImplementedError(
                f"fastgen::{name} has no derivative; for second derivatives call the op inside fastgen.disabled()"
            )

    torch.library.register_autograd(f"fastgen::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.fastgen, name).default
