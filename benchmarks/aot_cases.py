"""Calls of the ops' launchers that between them reach every configuration: what benchmarks.aot compiles."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product

import torch

from fastgen_kernels import philox_triton

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@dataclass(frozen=True)
class Launch:
    """One call of a launcher. wide says, for the arguments of its kernels whose layout and alignment allow more than an element at a
    time, how many bytes each access is to have."""

    op: str
    name: str
    run: Callable[[], object]
    wide: dict[str, int] = field(default_factory=dict)


def _philox() -> Iterator[Launch]:
    """Each tile: few, some and many blocks a sample. A lane of 128 has 2, 4 and 8 elements side by side; a row of Q words that is
    no multiple of 16 is written element by element, which includes all of the first tile."""

    def launch(shape, dtype, normal, **wide):
        name = f"{'normal' if normal else 'uniform'} {tuple(shape)} {_name(dtype)}"
        return Launch("philox", name, lambda: philox_triton.philox(shape, _key(shape[0]), dtype, normal), wide)

    for dtype, normal in product((FP32, FP16, BF16, FP64), (True, False)):
        for elements, side_by_side in ((256, 4), (3072, 8)):
            yield launch([128, elements], dtype, normal, out_ptr=min(16, side_by_side * dtype.itemsize))
        for elements in (1, 16, 23, 250, 3001):
            yield launch([5, elements], dtype, normal)
    for dtype in (FP32, BF16):
        yield launch([1, 3072], dtype, True)
        yield launch([16, 4], dtype, True)
    yield launch([1, 2**31 + 64], BF16, True)


def _key(n: int) -> torch.Tensor:
    return torch.zeros(n, 4, dtype=torch.int64)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LAUNCHES = [*_philox()]
