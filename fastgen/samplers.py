"""Samplers: free functions over `denoise(x_t, t) -> x0_hat` that go from noise to data.

    sampler(denoise, x, times, *, key=None, callback=None) -> x0

x: (N, C, *S), the start, sigma(times[0]) · noise. times: (steps + 1,) falling tensor on x's device, from 1 to 0 usually. key: the
noise of stochastic samplers, (N, 4) as `noise_key` makes it; drawn from torch's generator when None. callback(i, x, x0_hat) is
called after every step. The coefficients of all steps are computed before the first, so that a step waits for nothing.

`SAMPLERS` is the table of names that the command line uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen import streams
from fastgen.functional import at, fresh_key, sampler_step
from fastgen.schedules import Schedule

Callback = Callable[[int, Tensor, Tensor], None]


def uniform_times(steps: int, device: torch.device | str | None = None) -> Tensor:
    """1 to 0 in `steps` equal steps: (steps + 1,) fp32."""
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    return torch.linspace(1, 0, steps + 1, device=device)


def euler(denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback | None = None) -> Tensor:
    """Euler steps of the probability-flow ODE d(x/alpha) = eps_hat · d(sigma/alpha) (Karras et al. 2022, arXiv:2206.00364,
    eq. 4; on rectified_flow it is x + (s - t) · flow). Deterministic: key is not used."""
    alpha, sigma, alpha_next, sigma_next = _grid(denoise.schedule, times)
    a = sigma_next / sigma
    return _run(denoise, x, times, a, alpha_next - a * alpha, callback=callback)


def ddim(
    denoise, x: Tensor, times: Tensor, *, eta: float = 0.0, key: Tensor | None = None, callback: Callback | None = None
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 is DDPM.

    Raises ValueError for eta outside [0, 1]."""
    if not 0 <= eta <= 1:
        raise ValueError(f"eta: expected a number in [0, 1], got {eta}")
    alpha, sigma, alpha_next, sigma_next = _grid(denoise.schedule, times)
    s = eta * sigma_next / sigma * _transition(alpha, sigma, alpha_next, sigma_next)
    a = (sigma_next**2 - s**2).clamp(min=0).sqrt() / sigma
    return _run(denoise, x, times, a, alpha_next - a * alpha, s if eta > 0 else None, key, callback)


def ddpm(denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback | None = None) -> Tensor:
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7)."""
    alpha, sigma, alpha_next, sigma_next = _grid(denoise.schedule, times)
    between = _transition(alpha, sigma, alpha_next, sigma_next)
    a = alpha / alpha_next * (sigma_next / sigma) ** 2
    b = alpha_next * (between / sigma) ** 2
    return _run(denoise, x, times, a, b, sigma_next / sigma * between, key, callback)


SAMPLERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "ddim": ddim, "ddpm": ddpm}


def _grid(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha and sigma where each step begins, and where it ends."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    return alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]


def _transition(alpha: Tensor, sigma: Tensor, alpha_next: Tensor, sigma_next: Tensor) -> Tensor:
    """The deviation of q(x_t | x_s), s the step's end."""
    return (sigma**2 - (alpha / alpha_next * sigma_next) ** 2).clamp(min=0).sqrt()


def _run(
    denoise,
    x: Tensor,
    times: Tensor,
    a: Tensor,
    b: Tensor,
    s: Tensor | None = None,
    key: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """x <- a·x + b·x0_hat + s·noise at every step."""
    zero = torch.zeros_like(a)
    coefficients = torch.stack([a, b, zero, zero if s is None else s], dim=1)
    if s is not None:
        key = fresh_key(x.shape[0], x.device) if key is None else key
    for i in range(len(times) - 1):
        x0_hat = denoise(x, times[i])
        noise = None if s is None or key is None else at(key, stream=streams.SAMPLER, step=i)
        x = sampler_step(x, x0_hat, coefficients[i], key=noise)
        if callback is not None:
            callback(i, x, x0_hat)
    return x
