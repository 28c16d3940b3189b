"""Heun's method as EDM has it: second order, two evaluations a step."""

import math

import torch
from torch import Tensor

from fastgen.diffusion.samplers.steps import Callback, checked, ignore, noise_keys, reads, step_grid
from fastgen.errors import expect
from fastgen.functional import sampler_step


@checked
def heun(
    denoise,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    key: Tensor | None = None,
    callback: Callback = ignore,
) -> Tensor:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 1, and with churn > 0 algorithm 2, in x/alpha, where the paper's sigma is
    sigma/alpha. churn, churn_min, churn_max and churn_noise are S_churn, S_tmin, S_tmax and S_noise. A step goes back no further
    than to t = 1. A step to no noise, or from sigma/alpha above 1000, is Euler's and has one evaluation.

    Raises ValueError for numbers below 0 and for churn and churn_noise that are not finite.
    """
    expect("churn", churn, 0 <= churn < math.inf, "a finite number >= 0")
    expect("churn_min, churn_max", (churn_min, churn_max), churn_min >= 0 and churn_max >= 0, "numbers >= 0")
    expect("churn_noise", churn_noise, 0 <= churn_noise < math.inf, "a finite number >= 0")
    schedule, steps = denoise.schedule, len(times) - 1
    g = step_grid(schedule, times)
    alpha, sigma, times_hat = g.alpha, g.sigma, times[:-1]
    if churn > 0:  # back to sigma_hat = (1 + gamma)·sigma at t_hat
        gamma = min(churn / steps, math.sqrt(2) - 1)
        churned = (sigma / alpha >= churn_min) & (sigma / alpha <= churn_max)
        noisier = schedule.time(schedule.log_snr(times[:-1].double()) - 2 * math.log1p(gamma)).to(times.dtype)
        times_hat = torch.where(churned, torch.maximum(noisier, times_hat), times_hat)
        alpha, sigma = schedule.marginal(times_hat.double())
        scale = (alpha / g.alpha).nan_to_num(1.0)
        s = churn_noise * (sigma**2 - (scale * g.sigma) ** 2).clamp(min=0).sqrt()
        zero = torch.zeros_like(s)
        back, noises = torch.stack([scale, zero, zero, s], dim=1), noise_keys(key, x, steps)

    # Euler: x_e = x_hat + (sigma_next - sigma_hat)·d, here in x instead of x/alpha.
    a = g.sigma_next / sigma
    zero = torch.zeros_like(a)
    first = torch.stack([a, g.alpha_next - a * alpha, zero, zero], dim=1)
    # Heun: x_next = x_e/2 + (x_hat + (sigma_next - sigma_hat)·d')/2 with d' = (x_e - x0_hat')/sigma_next.
    rise = (sigma / alpha) / (g.sigma_next / g.alpha_next)
    # Where next to no signal is left, as at t = 1 of a cosine schedule, sigma/alpha falls too fast for the mean of two slopes.
    corrected = rise.isfinite() & (sigma < 1000 * alpha)
    second = torch.stack([g.alpha_next / alpha / 2, 1 - rise / 2, g.alpha_next * (rise - 1) / 2, zero], dim=1)
    second = torch.where(corrected[:, None], second, torch.stack([zero, zero + 1, zero, zero], dim=1))
    two_stages = corrected.tolist() if reads(x) else [True] * steps  # unread, a step of Euler's has a second stage of no weight

    for i in range(steps):
        x_hat = sampler_step(x, x, back[i], key=noises[i]) if churn > 0 else x
        x0_hat = denoise(x_hat, times_hat[i])
        x = sampler_step(x_hat, x0_hat, first[i])
        if two_stages[i]:
            x = sampler_step(x_hat, x, second[i], previous=denoise(x, times[i + 1]))
        callback(i, x, x0_hat)
    return x
