"""Samplers of first order, an evaluation a step."""

import math

from torch import Tensor

from fastgen.diffusion.samplers.steps import Callback, checked, ignore, run, step_grid
from fastgen.errors import expect


@checked
def euler(denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = ignore) -> Tensor:
    """Euler steps of the probability-flow ODE d(x/alpha) = eps_hat · d(sigma/alpha) (Karras et al. 2022, arXiv:2206.00364,
    eq. 4; on rectified_flow it is x + (s - t) · flow). Deterministic: key is not used."""
    g = step_grid(denoise.schedule, times)
    a = g.sigma_next / g.sigma
    return run(denoise, x, times, a, g.alpha_next - a * g.alpha, callback=callback)


@checked
def ddim(
    denoise, x: Tensor, times: Tensor, *, eta: float = 0.0, key: Tensor | None = None, callback: Callback = ignore
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 is DDPM.

    Raises ValueError for eta outside [0, 1]."""
    expect("eta", eta, 0 <= eta <= 1, "a number in [0, 1]")
    g = step_grid(denoise.schedule, times)
    s = eta * g.sigma_next * (1 - g.ratio**2).sqrt()
    a = (g.sigma_next**2 - s**2).sqrt() / g.sigma
    return run(denoise, x, times, a, g.alpha_next - a * g.alpha, s=s if eta > 0 else None, key=key, callback=callback)


@checked
def ddpm(denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = ignore) -> Tensor:
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7)."""
    g = step_grid(denoise.schedule, times)
    a = g.ratio * g.sigma_next / g.sigma
    b = g.alpha_next * (1 - g.ratio**2)
    s = g.sigma_next * (1 - g.ratio**2).sqrt()
    return run(denoise, x, times, a, b, s=s, key=key, callback=callback)


@checked
def euler_ancestral(
    denoise, x: Tensor, times: Tensor, *, eta: float = 1.0, key: Tensor | None = None, callback: Callback = ignore
) -> Tensor:
    """k-diffusion's: Euler in x/alpha down to sigma_down, then noise of deviation sigma_up, where sigma_down² + sigma_up² is the
    next sigma² (Song et al. 2021, arXiv:2011.13456, appendix F). For eta up to 1 this is ddim's step.

    Raises ValueError for eta that is not a finite number >= 0."""
    expect("eta", eta, 0 <= eta < math.inf, "a finite number >= 0")
    g = step_grid(denoise.schedule, times)
    up = g.sigma_next * (eta * (1 - g.ratio**2).sqrt()).clamp(max=1)
    down = (g.sigma_next**2 - up**2).sqrt()
    a = down / g.sigma
    return run(denoise, x, times, a, g.alpha_next - a * g.alpha, s=up if eta > 0 else None, key=key, callback=callback)
