"""Tensors of every shape, dtype and layout that an op may be given, for tables of cases and for hypothesis."""

from collections.abc import Sequence

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laboratory.device import DEVICE

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# The same values, laid out in another way: each takes a tensor of any shape.
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1) if x.dim() > 2 else x,
    "permuted": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim()))),
    "sliced": lambda x: torch.stack((x, torch.full_like(x, torch.nan)), -1).flatten(-2)[..., ::2] if x.dim() else x,
    "half": lambda x: torch.cat((torch.full_like(x, torch.nan), x), 1).chunk(2, 1)[1] if x.dim() > 1 and x.shape[1] else x,
    "row_gap": lambda x: torch.cat((x, torch.full_like(x[..., :1], torch.nan)), -1)[..., :-1] if x.dim() and x.shape[-1] else x,
}


def _expanded(grad: Tensor) -> Tensor:
    """One value for all, stride 0 everywhere: what sum().backward() hands down."""
    return grad.flatten()[:1].sum().expand(grad.shape)


# How the gradient of an output arrives: laid out in any way, or of stride 0.
GRADIENTS = {**LAYOUTS, "expanded": _expanded}


def upstream(y: Tensor, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """A random gradient for y, for the same seed the same values in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randn(y.shape, generator=generator).mul(32).round().clamp(-128, 128) / 32  # 8 bits: exact in bf16 too
    return GRADIENTS[layout](grad.to(y.device, y.dtype))


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, layout: str = "contiguous", seed: int = 0) -> Tensor:
    """Standard normal values on DEVICE."""
    generator = torch.Generator().manual_seed(seed)
    return LAYOUTS[layout](torch.randn(tuple(shape), generator=generator).to(DEVICE, dtype))


def examples(n: int) -> settings:
    """Decorates a @given test: n examples, the same ones in every run."""
    return settings(
        max_examples=n,
        derandomize=True,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )


# Sizes at which kernels break: none, one, around powers of two, primes.
SIZES = (0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129, 257)


@st.composite
def shapes(draw: st.DrawFn, min_dims: int = 1, max_dims: int = 4, max_elements: int = 2**10) -> tuple[int, ...]:
    shape: list[int] = []
    for _ in range(draw(st.integers(min_dims, max_dims))):
        left = max_elements
        for size in shape:
            left //= max(1, size)
        shape.append(draw(st.sampled_from([size for size in SIZES if size <= left])))
    return tuple(draw(st.permutations(shape)))


def dtypes(*among: torch.dtype) -> st.SearchStrategy[torch.dtype]:
    return st.sampled_from(among or FLOATS)


def layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(tuple(LAYOUTS))


def gradient_layouts() -> st.SearchStrategy[str]:
    return st.sampled_from(tuple(GRADIENTS))


@st.composite
def tensors(
    draw: st.DrawFn,
    shape: st.SearchStrategy[tuple[int, ...]] | None = None,
    dtype: st.SearchStrategy[torch.dtype] | None = None,
    layout: st.SearchStrategy[str] | None = None,
) -> Tensor:
    """A random tensor that requires a gradient, some of whose dimensions may be expanded from one element, at stride 0."""
    size = draw(shapes() if shape is None else shape)
    kept = [1 if n > 1 and draw(st.sampled_from((False, False, False, True))) else n for n in size]
    x = random(
        kept, draw(dtypes() if dtype is None else dtype), draw(layouts() if layout is None else layout), draw(st.integers(0, 99))
    )
    return x.expand(size).requires_grad_()
