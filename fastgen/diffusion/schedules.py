"""Noise schedules: x_t = alpha(t)·x0 + sigma(t)·eps, with t in [0, 1], 0 clean and 1 noise.

The arithmetic is fp32, or fp64 where t is; a table in bf16 would give zero noise at small t.

`SCHEDULES` is the table of names that configurations use.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.errors import expect, is_number, is_whole
from fastgen_kernels.checks import check_float, check_range

__all__ = ["EDM", "SCHEDULES", "Discrete", "RectifiedFlow", "Schedule", "cosine", "linear", "sigmoid", "zero_terminal_snr"]


ROUNDING = 1e-6  # by which sums of times in fp32 may leave [0, 1]


class Schedule(ABC):
    """alpha and sigma of x_t = alpha(t)·x0 + sigma(t)·eps. t: floating, of any shape, in [0, 1]; results have its
    shape, in fp32, or fp64 where t is. On a CPU, where nothing waits for it, a t outside of [0, 1] is a ValueError."""

    zero_terminal_snr: bool
    """Whether nothing of x0 is left at t = 1."""

    @abstractmethod
    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t."""

    def alpha(self, t: Tensor) -> Tensor:
        """The signal's factor, 1 at t = 0."""
        return self.marginal(t)[0]

    def sigma(self, t: Tensor) -> Tensor:
        """The noise's deviation, 0 at t = 0."""
        return self.marginal(t)[1]

    @abstractmethod
    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha²/sigma²)."""

    @abstractmethod
    def snr_decay(self, t: Tensor) -> Tensor:
        """-d SNR / dt."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """The t in [0, 1] that is nearest to having that log-SNR."""


class RectifiedFlow(Schedule):
    """alpha = 1 - sigma: straight lines from data to noise (Liu et al. 2023, arXiv:2209.03003, eq. 1).

    sigma = t; with a shift it is shift·t / (1 + (shift - 1)·t), which spends more of [0, 1] on noise (Stable Diffusion 3, Esser
    et al. 2024, arXiv:2403.03206, eq. 23). Raises ValueError for a shift that is not a finite number > 0.
    """

    zero_terminal_snr = True

    def __init__(self, shift: float = 1.0):
        expect("shift", shift, is_number(shift, 0) and shift > 0, "a finite number > 0")
        self.shift = shift

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = _time(t)
        if self.shift == 1:
            return 1 - t, t
        total = 1 + (self.shift - 1) * t
        return (1 - t) / total, self.shift * t / total

    def log_snr(self, t: Tensor) -> Tensor:
        alpha, sigma = self.marginal(t)
        return 2 * (alpha.log() - sigma.log())

    def snr_decay(self, t: Tensor) -> Tensor:
        t = _time(t)
        return 2 * (1 - t) / (self.shift**2 * t**3)

    def time(self, log_snr: Tensor) -> Tensor:
        return (-_log_snr(log_snr) / 2 - math.log(self.shift)).sigmoid()


class EDM(Schedule):
    """alpha = 1, sigma from 0 to sigma_max (Karras et al. 2022, arXiv:2206.00364, table 1).

    sigma(t) = sigma_min · ((1 + r·t)^rho - 1), with r such that sigma(1) = sigma_max: the paper's curve of time steps (eq. 5)
    less its sigma_min, so that t = 0 is clean and the curve is smooth and has an inverse from end to end. Uniform times are then
    nearly the paper's grid (`time_grids.karras_times` is that grid itself), and a network reads t for the paper's log(sigma) / 4.

    Raises ValueError unless 0 < sigma_min < sigma_max < inf and 0 < rho < inf.
    """

    zero_terminal_snr = False

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        expect_range("sigma_min", sigma_min, "sigma_max", sigma_max)
        expect("rho", rho, is_number(rho, 0) and rho > 0, "a finite number > 0")
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.rate = math.expm1(math.log1p(sigma_max / sigma_min) / rho)

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.sigma_min * torch.expm1(self.rho * torch.log1p(self.rate * _time(t)))
        return torch.ones_like(sigma), sigma

    def log_snr(self, t: Tensor) -> Tensor:
        return -2 * self.sigma(t).log()

    def snr_decay(self, t: Tensor) -> Tensor:
        t = _time(t)
        slope = self.sigma_min * self.rho * self.rate * (1 + self.rate * t) ** (self.rho - 1)
        return 2 * slope / self.sigma(t) ** 3

    def time(self, log_snr: Tensor) -> Tensor:
        sigma = (-_log_snr(log_snr) / 2).exp()
        return (torch.expm1(torch.log1p(sigma / self.sigma_min) / self.rho) / self.rate).clamp(max=1)


class Discrete(Schedule):
    """The variance-preserving chain of T betas (DDPM, Ho et al. 2020, arXiv:2006.11239, eq. 4).

    Index i lies at t = (i + 1) / T, where alpha² is exactly prod(1 - betas[: i + 1]). Between the grid's points log(alpha²) is
    linear in t, that is, beta is piecewise constant; `stepwise`, all of (i / T, (i + 1) / T] has the noise of index i, as a
    network that was trained on the T indices alone has seen it.

    betas: (T,) in [0, 1], kept in fp64 on the CPU. Raises ValueError for other shapes and values.
    """

    def __init__(self, betas: Tensor, *, stepwise: bool = False):
        check_float(betas=betas)
        expect("betas", tuple(betas.shape), betas.dim() == 1 and len(betas) > 0, "a vector of numbers in [0, 1]")
        inside = bool(((betas >= 0) & (betas <= 1)).all()) and bool((betas > 0).any())
        expect("betas", betas.aminmax() if betas.numel() > 6 else betas.tolist(), inside, "numbers in [0, 1], not all 0")
        self.betas, self.stepwise = betas.double().cpu(), stepwise
        self.zero_terminal_snr = bool((self.betas == 1).any())
        self._log_alpha_bar = torch.cat([torch.zeros(1, dtype=torch.float64), torch.log1p(-self.betas).cumsum(0)])
        self._tables: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha_bar = self._lookup(t)
        return (log_alpha_bar / 2).exp(), (-torch.expm1(log_alpha_bar)).sqrt()

    def log_snr(self, t: Tensor) -> Tensor:
        log_alpha_bar = self._lookup(t)
        return log_alpha_bar - (-torch.expm1(log_alpha_bar)).log()

    def snr_decay(self, t: Tensor) -> Tensor:
        """Of the chain whose log(alpha²) is linear between the grid's points, also where it is `stepwise`; 0 where no x0 is
        left."""
        log_alpha_bar, table = self._lookup(t), self._table(t.device, _time(t).dtype)
        fall = len(self.betas) * -table.diff().take((self.level(t) - 1).clamp(min=0))
        fall = torch.where(fall == math.inf, 0.0, fall)
        return fall * log_alpha_bar.exp() / torch.expm1(log_alpha_bar) ** 2

    def time(self, log_snr: Tensor) -> Tensor:
        log_alpha_bar = F.logsigmoid(_log_snr(log_snr))
        table = self._table(log_alpha_bar.device, log_alpha_bar.dtype)
        index = (torch.searchsorted(-table, -log_alpha_bar) - 1).clamp(0, len(self.betas) - 1)
        left, right = table.take(index), table.take(index + 1)
        fraction = ((left - log_alpha_bar) / (left - right)).nan_to_num(1.0).clamp(0, 1)  # NaN: beta = 0, or -inf on either side
        return (index + fraction) / len(self.betas)

    def level(self, t: Tensor) -> Tensor:
        """How many betas have been applied by t, int64: i + 1 in (i / T, (i + 1) / T], 0 at t = 0."""
        steps = len(self.betas)
        # Less what rounding in fp32 may have added: a t that is meant to lie on the grid stays below its point.
        return (_time(t) * steps - steps * 2**-22).ceil().long().clamp(0, steps)

    def _lookup(self, t: Tensor) -> Tensor:
        """log(alpha²) at t."""
        t = _time(t)
        table = self._table(t.device, t.dtype)
        if self.stepwise:
            return table.take(self.level(t))
        position = t * len(self.betas)
        # (i + 1) / T · T may miss i + 1 by the rounding of fp32; on the grid the schedule is exact.
        nearest = position.round()
        position = torch.where((position - nearest).abs() <= nearest * 2**-22, nearest, position)
        index = position.long().clamp(0, len(self.betas) - 1)
        fraction = position - index
        left, right = table.take(index), table.take(index + 1)  # table[index] would wait for a single index
        # The last step of a zero-terminal-SNR chain goes to -inf, where lerp's 0 · inf would be NaN.
        between = torch.where(fraction == 0, left, left + fraction * (right - left))
        return torch.where(fraction == 1, right, between)

    def _table(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self._tables:  # copied to a device once: a copy on every step would wait for the host
            self._tables[device, dtype] = self._log_alpha_bar.to(device, dtype)
        return self._tables[device, dtype]


def linear(steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Discrete:
    """Betas from beta_start to beta_end in equal steps (DDPM, Ho et al. 2020, section 4). Raises ValueError for steps below 1 and
    unless 0 <= beta_start <= beta_end <= 1."""
    for name, value in (("beta_start", beta_start), ("beta_end", beta_end)):
        expect(name, value, is_number(value, 0, 1), "a number in [0, 1]")
    expect("beta_start, beta_end", (beta_start, beta_end), beta_start <= beta_end, "beta_start <= beta_end")
    return Discrete(torch.linspace(beta_start, beta_end, _positive(steps), dtype=torch.float64))


def cosine(steps: int = 1000, offset: float = 0.008) -> Discrete:
    """alpha² = cos²((t + s) / (1 + s) · π/2), betas capped at 0.999 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17). Raises
    ValueError for steps below 1 and an offset that is not a finite number >= 0."""
    expect("offset", offset, is_number(offset, 0), "a finite number >= 0")
    return Discrete(_betas_of(lambda t: torch.cos((t + offset) / (1 + offset) * math.pi / 2) ** 2, steps))


def sigmoid(steps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Discrete:
    """alpha² falls as a sigmoid from `start` to `end`, betas capped at 0.999 (Jabri et al. 2023, arXiv:2212.11972, alg. 1).
    Raises ValueError for steps below 1 and unless start < end and tau > 0, all finite."""
    ordered = is_number(start) and is_number(end) and start < end
    expect("start, end", (start, end), ordered, "two finite numbers, start < end")
    expect("tau", tau, is_number(tau, 0) and tau > 0, "a finite number > 0")
    low, high = (torch.tensor(v / tau, dtype=torch.float64).sigmoid() for v in (start, end))
    return Discrete(_betas_of(lambda t: (high - ((t * (end - start) + start) / tau).sigmoid()) / (high - low), steps))


def zero_terminal_snr(chain: Discrete) -> Discrete:
    """The chain with its alphas shifted and scaled so that nothing of x0 is left at t = 1, and the first one is as it was (Lin et
    al. 2023, arXiv:2305.08891, algorithm 1). Raises ValueError for what is no chain, or one of a single level of noise."""
    levels = len(chain.betas[1:].nonzero()) if isinstance(chain, Discrete) else 0
    expect("chain", type(chain).__name__, levels > 0, "a Discrete of two levels of noise or more")
    alpha = (1 - chain.betas).cumprod(0).sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    alpha_bar = alpha**2
    return Discrete(1 - torch.cat([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]]), stepwise=chain.stepwise)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "linear_zero_snr": lambda: zero_terminal_snr(linear()),
    "cosine": cosine,
    "cosine_zero_snr": lambda: zero_terminal_snr(cosine()),
    "sigmoid": sigmoid,
    "rectified_flow": RectifiedFlow,
    "edm": EDM,
}


def _betas_of(alpha_bar: Callable[[Tensor], Tensor], steps: int, cap: float = 0.999) -> Tensor:
    values = alpha_bar(torch.linspace(0, 1, _positive(steps) + 1, dtype=torch.float64))
    return (1 - values[1:] / values[:-1]).clamp(max=cap)


def _positive(steps: int) -> int:
    expect_steps(steps)
    return steps


def expect_steps(steps: int) -> None:
    """Raises ValueError for steps that are not a whole number from 1 to a million: a mistyped one is refused before it fills the
    memory."""
    expect("steps", steps, is_whole(steps, 1), "a whole number >= 1")
    expect("steps", steps, steps <= 10**6, "a number up to 1,000,000")


def expect_range(low_name: str, low: float, high_name: str, high: float) -> None:
    """Raises ValueError unless 0 < low < high < inf."""
    for name, value in ((low_name, low), (high_name, high)):
        expect(name, value, is_number(value, 0) and value > 0, "a finite number > 0")
    if not low < high:
        raise ValueError(f"{low_name}, {high_name}: expected 0 < {low_name} < {high_name}, got {low}, {high}")


def _time(t: Tensor) -> Tensor:
    """t in fp32 or fp64. Its range is checked on a CPU alone: a GPU would wait."""
    check_float(t=t)
    check_range("t", t, -ROUNDING, 1 + ROUNDING)
    return t if t.dtype == torch.float64 else t.float()


def _log_snr(log_snr: Tensor) -> Tensor:
    """log_snr in fp32 or fp64."""
    check_float(log_snr=log_snr)
    check_range("log_snr", log_snr, -math.inf, math.inf)  # no NaN
    return log_snr if log_snr.dtype == torch.float64 else log_snr.float()
