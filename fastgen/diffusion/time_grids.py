"""Time grids for the samplers: (steps + 1,) falling fp32 tensors from 1 to 0, on `device`.

Each raises ValueError for steps that are not a whole number >= 1. `TIME_GRIDS` is the table of names that `Sampling.times` uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.diffusion.schedules import Discrete, RectifiedFlow, Schedule, expect_range, expect_steps
from fastgen.errors import expect, is_number, lookup

Device = torch.device | str | None


def uniform_times(steps: int, device: Device = None) -> Tensor:
    """1 to 0 in equal steps. Raises ValueError for steps that are not a whole number >= 1."""
    expect_steps(steps)
    return torch.linspace(1, 0, steps + 1, device=device)


def quadratic_times(steps: int, device: Device = None) -> Tensor:
    """t = (1 - i / steps)²: finer towards the data (DDIM, Song et al. 2021, arXiv:2010.02502, appendix D.2)."""
    return uniform_times(steps, device) ** 2


def shifted_times(steps: int, device: Device = None, *, shift: float = 3.0) -> Tensor:
    """shift·u / (1 + (shift - 1)·u) of uniform u: finer towards the noise, for large images of a flow (Stable Diffusion 3, Esser
    et al. 2024, arXiv:2403.03206, eq. 23). Raises ValueError for a shift that is not a finite number > 0."""
    return RectifiedFlow(shift).sigma(uniform_times(steps, device))


def karras_times(
    schedule: Schedule, steps: int, device: Device = None, *, rho: float = 7.0, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """sigma / alpha = (sigma_max^(1/rho) + u·(sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, u from 0 to 1, then 0 (Karras et al.
    2022, arXiv:2206.00364, eq. 5). sigma_min and sigma_max hold where the schedule goes so far, and t = 1 is always the first.

    Raises ValueError for rho that is not a finite number > 0, and unless 0 < sigma_min < sigma_max."""
    expect("rho", rho, is_number(rho, 0) and rho > 0, "a finite number > 0")
    low, high = _range(schedule, steps, device, sigma_min, sigma_max)
    roots = torch.lerp(high ** (1 / rho), low ** (1 / rho), _fractions(steps, device))
    return _from_sigmas(schedule, roots**rho)


def log_snr_times(
    schedule: Schedule, steps: int, device: Device = None, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> Tensor:
    """Equal steps of log(sigma / alpha), then 0 (DPM-Solver, Lu et al. 2022, arXiv:2206.00927). sigma_min and sigma_max hold
    where the schedule goes so far, and t = 1 is always the first. Raises ValueError unless 0 < sigma_min < sigma_max."""
    low, high = _range(schedule, steps, device, sigma_min, sigma_max)
    return _from_sigmas(schedule, torch.lerp(high.log(), low.log(), _fractions(steps, device)).exp())


TIME_GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": lambda schedule, steps, device=None: uniform_times(steps, device),
    "quadratic": lambda schedule, steps, device=None: quadratic_times(steps, device),
    "karras": karras_times,
    "log_snr": log_snr_times,
    "shifted": lambda schedule, steps, device=None: shifted_times(steps, device),
}


def time_grid(schedule: Schedule, name: str, steps: int, device: Device = None) -> Tensor:
    """The grid of that name in `TIME_GRIDS`. Raises ValueError for another name."""
    return lookup("times", name, TIME_GRIDS)(schedule, steps, device)


def _range(schedule: Schedule, steps: int, device: Device, sigma_min: float, sigma_max: float) -> tuple[Tensor, Tensor]:
    """The least and the largest sigma / alpha of a grid's steps, fp64."""
    expect_steps(steps)
    expect("schedule", schedule, isinstance(schedule, Schedule), "a schedule of fastgen.schedules")
    expect_range("sigma_min", sigma_min, "sigma_max", sigma_max)
    # t = 1 / 1000 is the first level of the usual chains: there is nothing between it and the data. Between the last two levels
    # of a chain with zero terminal SNR there is no time for a sigma: its log-SNR falls to -inf at once.
    last_finite = 1 - 1 / len(schedule.betas) if isinstance(schedule, Discrete) and schedule.zero_terminal_snr else 1.0
    # Filled on the device: a CUDA graph cannot hold a copy of numbers of the host.
    ends = torch.full((2,), last_finite, dtype=torch.float64, device=device)
    ends[:1].fill_(min(1e-3, last_finite / 2))
    first, last = (-schedule.log_snr(ends) / 2).exp().unbind()
    return first.clamp(min=sigma_min), last.clamp(max=sigma_max)


def _fractions(steps: int, device: Device) -> Tensor:
    return torch.linspace(0, 1, steps, dtype=torch.float64, device=device)


def _from_sigmas(schedule: Schedule, sigmas: Tensor) -> Tensor:
    """The times of all sigma / alpha, the first moved to 1, and 0."""
    times = schedule.time(-2 * sigmas.log())
    return torch.cat([torch.ones_like(times[:1]), times[1:], torch.zeros_like(times[:1])]).float()
