"""Registration of ops that call Triton kernels with torch.library, so that autograd, torch.compile and torch.export see one op
each way."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

LIBRARY = torch.library.Library("fastgen", "DEF")


def define(
    schema: str,
    launcher: str,
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Register and return the op fastgen::NAME of a schema "NAME(...) -> ...", in the grammar of torch.library.

    launcher: "module:function" of what launches the op's kernels, on a GPU or in the interpreter. The module is imported when
        the op is first called: it needs Triton, which may be missing where the op's reference runs.
    fake: gives empty outputs of the shapes, dtypes and strides that the launcher's have.
    setup_context, backward: as torch.library.register_autograd takes them. An op without them has no derivative: its backward
        raises NotImplementedError. An op that writes into its arguments ("!" in the schema) has none either, and returns nothing.
    """
    name = schema.partition("(")[0]
    module, _, function = launcher.partition(":")

    def launch(*arguments: Any) -> Any:
        return getattr(import_module(module), function)(*arguments)

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, launch, key)
    torch.library.register_fake(f"fastgen::{name}", fake, lib=LIBRARY)
    if "!)" in schema:
        return getattr(torch.ops.fastgen, name).default
    if backward is None:

        def backward(ctx: Any, *grads: Tensor) -> None:
            raise NotImplementedError(
                f"fastgen::{name} has no derivative; for second derivatives call the op inside fastgen.disabled()"
            )

    torch.library.register_autograd(f"fastgen::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.fastgen, name).default


def beside_input(
    op: Callable[..., Any], setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function that returns the first output of an op, and its first input unchanged, with one backward pass for both.

    setup_context, backward: those of the op. backward gets the gradient of the output and, as its second, that of the input that
    was returned: it adds the two in its own pass, where autograd would take another one. torch.library does not let an op return
    an input, so that this is an autograd.Function; under torch.compile, which fuses the addition itself, it is the op alone.
    """

    class BesideInput(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
            outputs = op(x, *arguments)
            setup_context(ctx, (x, *arguments), outputs)
            return outputs[0], x

        @staticmethod
        def backward(ctx: Any, dy: Tensor | None, dx: Tensor | None) -> Any:  # type: ignore[override]
            return backward(ctx, dy, dx, None)

    def call(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return op(x, *arguments)[0], x
        return BesideInput.apply(x, *arguments)

    return call
