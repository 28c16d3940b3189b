"""A GPU that is not there: a call of an op goes through everything up to the driver, which launches nothing.

With it, on a CPU, is measured what a call costs its host, and seen which kernels it launches with which arguments.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from fastgen_kernels import checks, dispatch
from proof.specialize import Target


@dataclass
class Launched:
    """A launch that reached the driver. arguments: of the kernel, in order; tensors as they were given or their addresses."""
    kernel: str
    grid: tuple[int, int, int]
    arguments: tuple[Any, ...]


class _Compiled:
    """In place of a compiled kernel."""
    function = packed_metadata = None

    def __init__(self, name: str, log: list[Launched] | None) -> None:
        self._name, self._log = name, log

    def launch_metadata(self, *_: object) -> None:
        return None

    def run(
        self, x: int, y: int, z: int, stream: int, function: object, packed: object, metadata: object, enter: object,
        leave: object, *arguments: Any,
    ) -> None:  # fmt: skip
        if self._log is not None:
            self._log.append(Launched(self._name, (x, y, z), arguments))


@contextmanager
def stub(cc: int = 90, log: list[Launched] | None = None) -> Iterator[None]:
    """Inside, eager ops on CPU tensors do what they do on a GPU of this compute capability, but their results are not written.
    TRITON_INTERPRET must not be set. log: is given the launches."""

    def compiled(kernel: JITFunction[Any], key: str, *_: object) -> _Compiled:
        made = kernel.device_caches[cc][0][key] = _Compiled(kernel.__name__, log)
        return made

    driver.set_active(Target(cc))
    with ExitStack() as stack:
        stack.enter_context(dispatch.repeated_on_cpu())
        stack.enter_context(patch.object(dispatch, "obstacle", lambda device: None))
        stack.enter_context(patch.object(checks, "has_values", lambda x: False))
        stack.enter_context(patch.object(torch.cuda, "get_device_capability", lambda device=None: divmod(cc, 10)))
        stack.enter_context(patch.object(JITFunction, "_do_compile", compiled))
        yield
