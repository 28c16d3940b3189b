"""Launches of adamw_ema."""

from collections.abc import Iterator

import torch

from fastgen_kernels import adamw_ema_triton
from proof.aot_cases.launch import BF16, FP16, FP32, Launch, empty_tensor, text


def adamw_ema() -> Iterator[Launch]:
    """Gradients and copies of each dtype, with and without averages, clipping, scaled gradients and alignment."""
    yield _step(FP32, averages=1, main=True)
    yield _step(BF16, copy=BF16, averages=1, main=True)
    yield _step(FP32, averages=2, scaled=True)
    yield _step(FP16, copy=FP16, averages=2, scaled=True)
    yield _step(FP32, clip=0.0)
    yield _step(FP32, averages=1, layout="unaligned")
    yield _step(BF16, copy=BF16, averages=1, layout="unaligned")
    yield _step(None, averages=1)


def _step(
    grad: torch.dtype | None, copy: torch.dtype | None = None, averages: int = 0, clip: float = 1.0, scaled: bool = False,
    layout: str = "contiguous", main: bool = False,
) -> Launch:  # fmt: skip
    """Of one tensor, of a few chunks and a rest."""

    def like(dtype: torch.dtype | None) -> list[torch.Tensor]:
        return [] if dtype is None else [empty_tensor(layout, (3, 16387), dtype)]

    def run() -> None:
        trained = FP32 if grad is not None else None
        states = like(FP32), like(grad), like(trained), like(trained), [torch.ones(())] * len(like(trained))
        means = [like(FP32) if i < averages else [] for i in range(2)]
        counts, lr = torch.zeros(2, dtype=torch.int64), torch.ones(1, dtype=torch.float64)
        settings, profiles = [0.9, 0.999, 1e-8, 0.01], [0.999, 9.0, 0.0] * averages
        amp = [torch.ones(()) if scaled else None] * 2
        groups = [0] * len(states[1])
        adamw_ema_triton.launch(*states, *means, like(copy), counts, lr, settings, groups, profiles, clip, *amp)

    options = f"{f' copy {text(copy)}' if copy else ''}{' clip' * (clip > 0)}{' scaled' * scaled}, {averages} averages {layout}"
    return Launch("adamw_ema", f"{text(grad) if grad else 'no'} gradient{options}", run, main=main)
