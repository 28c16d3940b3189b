"""One call of an op's launcher, and the tensors that such calls are given."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@dataclass(frozen=True)
class Launch:
    """One call of a launcher. wide says how many bytes each access to an argument is to have, where layout and alignment allow
    more than one element. main: what training and sampling do, and what is checked at every change. capabilities: where the
    kernels are taken, None for everywhere."""

    op: str
    name: str
    run: Callable[[], object]
    wide: dict[str, int] = field(default_factory=dict)
    main: bool = False
    capabilities: tuple[int, ...] | None = None


def empty_tensor(layout: str, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor (N, C, *S) without values, in a layout: "contiguous", "channels_last", "every second" or "unaligned"."""
    n, c, *s = sizes
    if layout == "channels_last":
        return torch.empty(n, *s, c, dtype=dtype).movedim(-1, 1)
    if layout == "every second":
        return torch.empty(*sizes[:-1], 2 * sizes[-1], dtype=dtype)[..., ::2]
    if layout == "unaligned":
        return torch.empty(1 + math.prod(sizes), dtype=dtype)[1:].view(sizes)
    return torch.empty(sizes, dtype=dtype)


def widths(pointers: list[str], lane: int, dtype: torch.dtype) -> dict[str, int]:
    """Accesses of as many elements as a lane has side by side, 16 bytes at the most."""
    return dict.fromkeys(pointers, min(16, lane * dtype.itemsize)) if lane else {}


def keys(n: int) -> Tensor:
    return torch.zeros(n, 4, dtype=torch.int64)


def text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
