"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, with t in [0, 1], 0 clean and 1 noise.

A schedule has `alpha(t)`, `sigma(t)` and `log_snr(t)` = log(alpha²/sigma²), each taking a floating tensor of any shape and
returning one of the same shape, and `zero_terminal_snr`: whether nothing of x0 is left at t = 1. The arithmetic is fp32, or
fp64 where t is; a table in bf16 would give zero noise at small t.

`SCHEDULES` is the table of names that configurations use.
"""

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Schedule(Protocol):
    zero_terminal_snr: bool

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...
    def log_snr(self, t: Tensor) -> Tensor: ...


class RectifiedFlow:
    """alpha = 1 - sigma: straight lines from data to noise (Liu et al. 2023, arXiv:2209.03003, eq. 1).

    sigma = t; with a shift it is shift·t / (1 + (shift - 1)·t), which spends more of [0, 1] on noise (Stable Diffusion 3, Esser
    et al. 2024, arXiv:2403.03206, eq. 23).
    """

    zero_terminal_snr = True

    def __init__(self, shift: float = 1.0):
        if not 0 < shift < math.inf:
            raise ValueError(f"shift: expected a finite number > 0, got {shift}")
        self.shift = shift

    def alpha(self, t: Tensor) -> Tensor:
        t = _at_least_fp32(t)
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        t = _at_least_fp32(t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def log_snr(self, t: Tensor) -> Tensor:
        return 2 * (self.alpha(t).log() - self.sigma(t).log())


class Discrete:
    """The variance-preserving chain of T betas (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 4).

    Index i lies at t = (i + 1) / T, where alpha² is exactly prod(1 - betas[: i + 1]). Between the grid's points log(alpha²) is
    linear in t, that is, beta is piecewise constant; `stepwise`, all of (i / T, (i + 1) / T] has the noise of index i, as a
    network that was trained on the T indices alone has seen it.
    """

    def __init__(self, betas: Tensor, *, stepwise: bool = False):
        if betas.dim() != 1 or len(betas) == 0 or not bool(((betas >= 0) & (betas <= 1)).all()):
            raise ValueError(f"betas: expected a vector of numbers in [0, 1], got shape {tuple(betas.shape)}")
        self.betas, self.stepwise = betas.double().cpu(), stepwise
        self.zero_terminal_snr = bool((self.betas == 1).any())
        self._log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0)])
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def alpha(self, t: Tensor) -> Tensor:
        return (self._lookup(t) / 2).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(self._lookup(t))).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha_bar = self._lookup(t)
        return log_alpha_bar - (-torch.expm1(log_alpha_bar)).log()

    def level(self, t: Tensor) -> Tensor:
        """How many betas have been applied by t, int64: i + 1 in (i / T, (i + 1) / T], 0 at t = 0."""
        steps = len(self.betas)
        # Less what rounding in fp32 may have added: a t that is meant to lie on the grid stays below its point.
        return (_at_least_fp32(t) * steps - steps * 2**-22).ceil().long().clamp(0, steps)

    def _lookup(self, t: Tensor) -> Tensor:
        """log(alpha²) at t."""
        t = _at_least_fp32(t)
        table = self._table(t.device, t.dtype)
        if self.stepwise:
            return table[self.level(t)]
        position = t * len(self.betas)
        # (i + 1) / T · T may miss i + 1 by the rounding of fp32; on the grid the schedule is exact.
        nearest = position.round()
        position = torch.where((position - nearest).abs() <= nearest * 2**-22, nearest, position)
        index = position.long().clamp(0, len(self.betas) - 1)
        fraction = position - index
        left, right = table[index], table[index + 1]
        # The last step of a zero-terminal-SNR chain goes to -inf, where lerp's 0 · inf would be NaN.
        between = torch.where(fraction == 0, left, left + fraction * (right - left))
        return torch.where(fraction == 1, right, between)

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self._tables:  # copied to a device once: a copy on every step would wait for the host
            self._tables[device, dtype] = self._log_alpha_bar.to(device, dtype)
        return self._tables[device, dtype]


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """Betas from beta_start to beta_end in equal steps (DDPM, Ho et al. 2020, section 4)."""
    return Discrete(torch.linspace(beta_start, beta_end, _positive(steps), dtype=torch.float64))


def cosine(steps: int = 1000, offset: float = 0.008) -> Discrete:
    """alpha² = cos²((t + s) / (1 + s) · π/2), betas capped at 0.999 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17)."""
    return Discrete(_betas_of(lambda t: torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, steps))


def sigmoid(steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Discrete:
    """alpha² falls as a sigmoid from `start` to `end`, betas capped at 0.999 (Jabri et al. 2023, arXiv:2212.11972, alg. 1)."""
    low, high = (torch.tensor(v / tau, dtype=torch.float64).sigmoid() for v in (start, end))
    return Discrete(_betas_of(lambda t: (high - ((t * (end - start) + start) / tau).sigmoid()) / (high - low), steps))


def rectified_flow() -> RectifiedFlow:
    """alpha = 1 - t, sigma = t."""
    return RectifiedFlow()


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "rectified_flow": rectified_flow,
}


def _betas_of(alpha_bar: Callable[[Tensor], Tensor], steps: int, cap: float = 0.999) -> Tensor:
    values = alpha_bar(torch.linspace(0, 1, _positive(steps) + 1, dtype=torch.float64))
    return (1 - values[1:] / values[:-1]).clamp(max=cap)


def _positive(steps: int) -> int:
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return steps


def _at_least_fp32(t: Tensor) -> Tensor:
    return t if t.dtype == torch.float64 else t.float()
