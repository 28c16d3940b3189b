"""Registration of ops that call Triton kernels with torch.library, so that autograd, torch.compile and torch.export see one op
each way; and the short way to their kernels, which repeated eager calls take."""

import sys
from collections.abc import Callable, Hashable, Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastgen_kernels.dispatch import repeats
from fastgen_kernels.recording import Recording, record, signature

LIBRARY = torch.library.Library("fastgen", "DEF")
REMEMBERED = 4096  # signatures of an op; a model has some dozens, and where sizes vary without end all are forgotten

Signature = tuple[Hashable, ...]


class Op:
    """The op fastgen::NAME. An eager call takes the short way to its kernels where its signature is recorded, else that of
    torch.library, which is also the one for all that looks at what is computed: torch.compile, modes, subclasses of Tensor."""

    def __init__(self, schema: str, launcher: str) -> None:
        self.name = schema.partition("(")[0]
        self.registered: Callable[..., Any]  # with torch.library
        self.function: type[Function] | None = None  # with which autograd sees a call that is repeated
        self._launcher = launcher
        self._recordings: dict[Signature, Recording | None] = {}  # None: called once
        self._unrepeatable: set[Signature] = set()

    def __call__(self, *arguments: Any) -> Any:
        outputs = self.repeat(*arguments)
        return self.registered(*arguments) if outputs is None else outputs

    def repeat(self, *arguments: Any) -> Any:
        """What the op returns, with None for outputs that it does not have for these arguments, where an eager call of this
        signature is recorded; else None. So these arguments have passed the op's checks before, or nothing is done with them."""
        if torch.compiler.is_compiling():
            return None
        recording = self.recorded(arguments)
        if recording is None:
            return None
        if torch.is_grad_enabled() and any([arguments[i].requires_grad for i in recording.tensors]):
            return None if self.function is None else apply(self.function, *arguments, recording)
        return recording(arguments)

    def recorded(self, arguments: Sequence[Any]) -> Recording | None:
        """The recording of a call's signature, where it may be repeated."""
        if not repeats(_first(arguments)):
            return None
        try:
            recording = self._recordings.get(signature(arguments))  # type: ignore[arg-type]
        except (TypeError, RuntimeError):  # an argument that cannot be hashed, a tensor without memory
            return None
        return None if recording is None or _watched() else recording

    def launch(self, *arguments: Any) -> Any:
        """What torch.library calls: the launcher. It records the second call of a signature."""
        module, _, function = self._launcher.partition(":")
        launcher = getattr(import_module(module), function)
        x = _first(arguments)
        key = signature(arguments) if repeats(x) else None
        if key is None or key in self._unrepeatable:
            return launcher(*arguments)
        if key not in self._recordings:
            if len(self._recordings) + len(self._unrepeatable) >= REMEMBERED:
                self._recordings.clear()
                self._unrepeatable.clear()
            self._recordings[key] = None
            return launcher(*arguments)
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            return launcher(*arguments)  # what autotune would search is not found yet
        outputs, recording = record(launcher, arguments)
        if recording is None:
            del self._recordings[key]
            self._unrepeatable.add(key)
        else:
            self._recordings[key] = recording
        return outputs


def define(
    schema: str,
    launcher: str,
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
    kept: int = 0,
) -> Op:
    """Register and return the op fastgen::NAME of a schema "NAME(...) -> ...", in the grammar of torch.library.

    launcher: "module:function" of what launches the op's kernels, on a GPU or in the interpreter. The module is imported when
        the op is first called: it needs Triton, which may be missing where the op's reference runs.
    fake: gives empty outputs of the shapes, dtypes and strides that the launcher's have.
    setup_context, backward: as torch.library.register_autograd takes them. An op without them has no derivative: its backward
        raises NotImplementedError. An op that writes into its arguments ("!" in the schema) has none either, and returns nothing.
    kept: how many of the outputs, the last ones, backward alone uses. A call that is repeated does not return them.
    """
    op = Op(schema, launcher)
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(op.name, op.launch, key)
    torch.library.register_fake(f"fastgen::{op.name}", fake, lib=LIBRARY)
    op.registered = getattr(torch.ops.fastgen, op.name).default
    if "!)" in schema:
        return op
    if setup_context is not None and backward is not None:
        op.function = function(op.name, setup_context, backward, kept)
    else:

        def backward(ctx: Any, *grads: Tensor) -> None:
            raise NotImplementedError(
                f"fastgen::{op.name} has no derivative; for second derivatives call the op inside fastgen.disabled()"
            )

    torch.library.register_autograd(f"fastgen::{op.name}", backward, setup_context=setup_context, lib=LIBRARY)
    return op


class BesideInput:
    """Called, it returns the first output of an op, and its first input unchanged, with one backward pass for both.

    setup_context, backward: those of the op. backward gets the gradient of the output and, as its second, that of the input that
    was returned: it adds the two in its own pass, where autograd would take another one. torch.library does not let an op return
    an input, so that this is an autograd.Function; under torch.compile, which fuses the addition itself, it is the op alone.
    """

    def __init__(self, op: Op, setup_context: Callable[..., None], backward: Callable[..., Any], kept: int = 0) -> None:
        self._op = op
        self._function = function(op.name, setup_context, backward, kept, beside_input=True)

    def __call__(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            return self._op(*arguments)[0], arguments[0]
        return self._function.apply(*arguments, lambda given: self._op(*given))  # type: ignore[no-any-return]

    def repeat(self, *arguments: Any) -> tuple[Tensor, Tensor] | None:
        """As the op's `repeat`."""
        if torch.compiler.is_compiling():
            return None
        recording = self._op.recorded(arguments)
        return None if recording is None else apply(self._function, *arguments, recording)


def function(
    name: str, setup_context: Callable[..., None], backward: Callable[..., Any], kept: int, beside_input: bool = False
) -> type[Function]:
    """The autograd.Function of an op's arguments and, as the last, what makes its outputs of them. It takes less host time than
    what torch.library makes of the same. beside_input: it returns the first output and its first argument."""

    def forward(ctx: Any, *arguments: Any) -> Any:
        given = arguments[:-1]
        outputs = arguments[-1](given)
        setup_context(ctx, given, outputs)
        if beside_input:
            return outputs[0], given[0]
        return outputs if isinstance(outputs, Tensor) else tuple(outputs[: len(outputs) - kept])

    def gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        made = backward(ctx, *grads, *[None] * kept)
        return (*made, None) if isinstance(made, tuple) else (made, None)

    return type(name, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(gradients)})


def apply(function: type[Function], *arguments: Any) -> Any:
    """function.apply(*arguments) where no transform of torch.func is active, which it would look for."""
    return super(Function, function).apply(*arguments)  # type: ignore[misc]


def _first(arguments: Sequence[Any]) -> Any:
    """The first tensor of an op's arguments; what is no tensor may be anything, for it is not checked yet."""
    x = arguments[0]
    return x if isinstance(x, Tensor) else next((y for y in arguments if isinstance(y, Tensor)), None)


def _watched() -> bool:
    """Whether hooks wait for Triton's launches, which a profiler sets: those are called by Triton itself."""
    runtime = sys.modules["triton"].knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)
