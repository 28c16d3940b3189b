"""DPM-Solver++(2M) and its SDE: multistep solvers of second order in the log-SNR, an evaluation a step."""

import math

import torch
from torch import Tensor

from fastgen.diffusion.samplers.steps import Callback, checked, ignore, run, step_grid
from fastgen.errors import expect


@checked
def dpmpp_2m(denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = ignore) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Deterministic: key is not used."""
    g = step_grid(denoise.schedule, times)
    b = g.alpha_next * (1 - g.ratio)
    c = -b * _extrapolation(g.ratio)
    return run(denoise, x, times, g.sigma_next / g.sigma, b - c, c, callback=callback)


@checked
def dpmpp_2m_sde(
    denoise, x: Tensor, times: Tensor, *, eta: float = 1.0, key: Tensor | None = None, callback: Callback = ignore
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5); eta scales its noise as k-diffusion has it, eta = 0 is
    dpmpp_2m.

    Raises ValueError for eta that is not a finite number >= 0."""
    expect("eta", eta, 0 <= eta < math.inf, "a finite number >= 0")
    g = step_grid(denoise.schedule, times)
    kept = g.ratio**eta  # exp(-eta·h)
    b = g.alpha_next * (1 - g.ratio * kept)
    c = -b * _extrapolation(g.ratio)
    s = g.sigma_next * (1 - kept**2).sqrt()
    return run(denoise, x, times, g.sigma_next / g.sigma * kept, b - c, c, s if eta > 0 else None, key=key, callback=callback)


def _extrapolation(ratio: Tensor) -> Tensor:
    """h_i / (2·h_(i-1)), the weight of x0_hat_i - x0_hat_(i-1) in each step; 0, first order, in the first step, in one whose h is
    infinite, and after one whose h is infinite or nil."""
    h = -ratio.log()
    last = torch.cat([torch.full_like(h[:1], float("inf")), h[:-1]])
    return torch.where(h.isfinite() & (last > 0), h / (2 * last), 0.0)
