"""The short way to a kernel. What the launcher of an op allocates and launches follows from the signature of its call alone: the
dtypes, shapes, strides, devices and alignments of its tensors, and its other arguments. So the second call of a signature is
recorded, and from the third on it is repeated, without the plans and dictionaries that led to it, which take many times the
host time of the launch itself.

A launcher that does anything else than to allocate, to view and to launch is not recorded, as where it copies a tensor that its
kernel cannot read in place. Nor is what depends on more than the signature: see `unrepeatable`.
"""

import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

ALIGNED = 16  # bytes: what Triton specializes pointers on
_NOTHING = -1  # the source of a tensor without elements

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip
_EMPTY = {  # torch.empty_strided on the current device in half its time, as Inductor's code calls it
    "cpu": torch._C._dynamo.guards._empty_strided_cpu,  # type: ignore[attr-defined]
    "cuda": torch._C._dynamo.guards._empty_strided_cuda,  # type: ignore[attr-defined]
}
_local = threading.local()


def signature(arguments: Sequence[Any]) -> tuple[Hashable, ...] | None:
    """What a launcher's doings follow from; None where an argument is a tensor of a subclass, or holds tensors."""
    key: list[Any] = []
    for x in arguments:
        kind = type(x)
        if x is None:
            key.append(None)
        elif kind is Tensor or kind is nn.Parameter:
            key += x.dtype, x.shape, x.stride(), x.device, x.data_ptr() % ALIGNED
        elif kind is list or kind is tuple:
            if any([isinstance(y, Tensor) for y in x]):
                return None
            key.append(tuple(x))
        elif isinstance(x, Tensor):
            return None
        else:
            key += kind, x  # 1, 1.0 and True are equal, but not all of them are what an op takes
    return tuple(key)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **named: Any) -> None:
    """kernel[grid](*arguments, **named), which a recording that is being made takes down."""
    tape: _Tape | None = getattr(_local, "tape", None)
    if tape is None:
        kernel[grid](*arguments, **named)
        return
    with _disable_current_modes():  # what Triton's interpreter does with tensors is not the launcher's
        compiled = kernel[grid](*arguments, **named)
    tape.launched(kernel, compiled, grid, arguments, named)


def unrepeatable() -> None:
    """What is being recorded depends on more than its signature, such as on a setting of PyTorch: it will not be repeated."""
    tape: _Tape | None = getattr(_local, "tape", None)
    if tape is not None:
        tape.repeatable = False


@dataclass(frozen=True)
class Place:
    """Where a tensor lies that a kernel is given: so many bytes after the start of its source, which is one of the op's tensors
    or, counted on from those, of what the launcher allocates."""
    source: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def of(self, sources: Sequence[Any]) -> Tensor:
        """The tensor itself: Triton's interpreter takes no addresses."""
        x: Tensor = sources[self.source]
        view = torch.empty(0, dtype=self.dtype)
        start = x.storage_offset() * x.element_size() + self.offset
        return view.set_(x.untyped_storage(), start // view.element_size(), self.shape, self.stride)  # type: ignore[call-overload]


@dataclass(frozen=True)
class Launch:
    """A kernel, its grid and its arguments in order. places: of the tensors among them, by their index."""
    kernel: Any  # what Triton compiled, or in its interpreter the function
    interpreted: bool
    grid: tuple[int, ...]  # of three numbers
    arguments: tuple[Any, ...]
    places: tuple[tuple[int, Place], ...]

    def __call__(self, sources: Sequence[Any], addresses: Sequence[int], stream: int) -> None:
        arguments, kernel = list(self.arguments), self.kernel
        if self.interpreted:
            for i, place in self.places:
                arguments[i] = place.of(sources)
            kernel[self.grid](*arguments)
            return
        for i, place in self.places:
            arguments[i] = addresses[place.source] + place.offset
        kernel.run(*self.grid, stream, kernel.function, kernel.packed_metadata, None, None, None, *arguments)


@dataclass(frozen=True)
class Recording:
    """What a launcher does for a signature."""
    device: torch.device
    tensors: tuple[int, ...]  # the arguments that are tensors
    allocations: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]  # shapes, strides and dtypes
    launches: tuple[Launch, ...]
    outputs: tuple[int | None, ...]  # which of the allocated tensors are returned; None for one of no elements
    single: bool  # not in a tuple

    def __call__(self, arguments: Sequence[Any]) -> Any:
        """What the launcher would return for these arguments, which are of the signature that was recorded; but None in place of
        an output of no elements, which stands for one that there is not."""
        device, stream = self.device, 0
        if device.type == "cuda":
            if torch._C._cuda_getDevice() != device.index:
                with torch.cuda.device(device):
                    return self(arguments)
            stream = torch._C._cuda_getCurrentRawStream(device.index)
        empty = _EMPTY[device.type]
        made = [empty(shape, stride, dtype) for shape, stride, dtype in self.allocations]
        sources = [arguments[i] for i in self.tensors] + made
        addresses = [x.data_ptr() for x in sources]
        for kernel in self.launches:
            kernel(sources, addresses, stream)
        if self.single:
            return made[self.outputs[0]]  # type: ignore[index]
        return [None if i is None else made[i] for i in self.outputs]


def record(launcher: Callable[..., Any], arguments: Sequence[Any]) -> tuple[Any, Recording | None]:
    """What the launcher returns, and what it did, None where that cannot be repeated."""
    # A tensor that is two arguments becomes two tensors, so that it can be said which of them a kernel is given.
    seen = {id(x): i for i, x in reversed(list(enumerate(arguments)))}
    arguments = [x.detach() if isinstance(x, Tensor) and seen[id(x)] < i else x for i, x in enumerate(arguments)]
    tape = _Tape(arguments)
    before, _local.tape = getattr(_local, "tape", None), tape
    try:
        with tape:
            outputs = launcher(*arguments)
    finally:
        _local.tape = before
    return outputs, tape.recording(outputs)


class _Tape(TorchDispatchMode):
    """Takes down what a launcher does."""

    def __init__(self, arguments: Sequence[Any]) -> None:
        super().__init__()
        self.arguments = arguments
        self.allocated: list[Tensor] = []
        self.launches: list[Launch] = []
        self.repeatable = True
        # Of each tensor its source, itself, so that ids stay true, and the offset.
        self.tensors = [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
        self.known = {id(arguments[i]): (k, arguments[i], 0) for k, i in enumerate(self.tensors)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATIONS:
            if result.numel():
                self.known[id(result)] = len(self.tensors) + len(self.allocated), result, 0
                self.allocated.append(result)
            else:
                self.known[id(result)] = _NOTHING, result, 0
        elif func.is_view and id(args[0]) in self.known:
            source, _, offset = self.known[id(args[0])]
            for x in result if isinstance(result, (list, tuple)) else [result]:
                further = x.storage_offset() * x.element_size() - args[0].storage_offset() * args[0].element_size()
                self.known[id(x)] = source, x, offset + further
        else:
            self.repeatable = False
        return result

    def launched(
        self, kernel: Any, compiled: Any, grid: tuple[int, ...], arguments: Sequence[Any], named: dict[str, Any]
    ) -> None:
        """Takes down a launch. compiled: None in Triton's interpreter."""
        given = {name: x for name, x in named.items() if name in kernel.arg_names}  # without num_warps and its like
        bound = inspect.signature(kernel.fn).bind(*arguments, **given)
        bound.apply_defaults()
        places = []
        for i, x in enumerate(bound.args):
            if isinstance(x, Tensor):
                source, _, offset = self.known.get(id(x), (_NOTHING, x, 0))
                if source == _NOTHING:
                    self.repeatable = False
                    return
                places.append((i, Place(source, offset, tuple(x.shape), x.stride(), x.dtype)))
        values = tuple(None if isinstance(x, Tensor) else x for x in bound.args)
        run = kernel if compiled is None else compiled
        self.launches.append(Launch(run, compiled is None, (*grid, 1, 1)[:3], values, tuple(places)))

    def recording(self, outputs: Any) -> Recording | None:
        """Of a launcher that has returned these outputs, None where it cannot be repeated."""
        if not self.repeatable or not self.launches:
            return None
        single, returned = isinstance(outputs, Tensor), list[int | None]()
        for x in [outputs] if single else outputs:
            source, _, offset = self.known.get(id(x), (0, x, 0))
            if source == _NOTHING:
                returned.append(None)
                continue
            i = source - len(self.tensors)
            if i < 0 or i in returned or offset or x.numel() != self.allocated[i].numel():
                return None  # an argument, or a part of a tensor
            self.allocated[i] = x  # as it is seen from outside, with its channels innermost perhaps
            returned.append(i)
        return Recording(
            device=self.arguments[self.tensors[0]].device,
            tensors=tuple(self.tensors),
            allocations=tuple((tuple(x.shape), x.stride(), x.dtype) for x in self.allocated),
            launches=tuple(self.launches),
            outputs=tuple(returned),
            single=single,
        )
