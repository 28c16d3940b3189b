"""What Triton's JIT would compile for a launch on some GPU, found without one.

The launchers themselves are called, on CPU tensors, with a driver in place that is of the architecture asked for. The JIT
specializes the kernel as on a GPU (dtypes, integers equal to 1, divisibility by 16), and its hook gets its own record of that.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from proof.aot_cases import Launch


@dataclass(frozen=True)
class Configuration:
    """A kernel as the JIT specialized it; record is Triton's own text of that."""

    cc: int
    op: str
    launch: str
    wide: dict[str, int]
    kernel: str  # module:name
    record: str


class Target:
    """A driver without a device, for Triton's JIT to specialize and compile kernels with. Its device number is the capability, so
    that the JIT keeps the architectures apart."""

    def __init__(self, cc: int) -> None:
        self.cc = cc

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.cc, 32)

    def get_current_device(self) -> int:
        return self.cc

    def get_current_stream(self, device: int) -> int:
        return 0


def captured(launches: Iterable[Launch], cc: int) -> list[Configuration]:
    """The distinct configurations that the launches pick on an architecture, each under the first launch that picks it."""
    found: dict[tuple[str, str], Configuration] = {}
    with launching(cc) as kernels:
        for launch in launches:
            if launch.capabilities is not None and cc not in launch.capabilities:
                continue
            kernels.clear()
            launch.run()
            if not kernels:
                raise ValueError(f"{launch.op}: {launch.name} launches no kernel")
            for configuration in kernels:
                found.setdefault(configuration, Configuration(cc, launch.op, launch.name, launch.wide, *configuration))
    return list(found.values())


@contextlib.contextmanager
def launching(cc: int) -> Iterator[list[tuple[str, str]]]:
    """Inside, a launch puts the kernel's name and its specialization into the list and does nothing else."""
    kernels: list[tuple[str, str]] = []

    def instead(*, fn, compile, **_):
        kernels.append((f"{fn.module}:{fn.name}", compile["specialization_data"]))
        return True  # not to compile, and so not to launch

    driver.set_active(Target(cc))
    with (
        triton.knobs.runtime.scope(),
        patch.object(torch.cuda, "get_device_capability", lambda device=None: divmod(cc, 10)),
    ):
        triton.knobs.runtime.jit_cache_hook = instead
        yield kernels
