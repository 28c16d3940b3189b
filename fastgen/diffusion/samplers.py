"""Samplers: free functions over `denoise(x_t, t) -> x0_hat` that go from noise to data.

    sampler(denoise, x, times, *, key=None, callback=None, …) -> x0

denoise: a `Denoise`, with `denoise.schedule`, as `Diffusion.denoiser` makes it. x: (N, C, *S) floating, the start,
sigma(times[0]) · noise. times: (steps + 1,) floating, falling within [0, 1], on x's device: from 1 to 0 usually. key: the noise
of stochastic samplers, int64 (N, 4) as `noise_key` makes it; drawn from torch's generator when None. callback(i, x, x0_hat) is
called after every step. Returned is x0, of x's shape and dtype. The coefficients of all steps are computed in fp64 on x's device
before the first, so that a step waits for nothing.

Raises TypeError for a denoise without a schedule and for x or times that are not floating tensors, ValueError for an x that is
not finite, on a CPU, and for times that do not fall within [0, 1], FloatingPointError, with the step, for a result that is not
finite.

`SAMPLERS` and `TIME_GRIDS` are the tables of names that the command line uses: `TIME_GRIDS[name](schedule, steps, device)` is a
grid of times.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from fastgen import noise_streams
from fastgen.config.sampling import Sampling
from fastgen.device import host_may_read
from fastgen.diffusion.denoiser import Denoise, expect_denoise
from fastgen.diffusion.schedules import Schedule
from fastgen.diffusion.time_grids import (
    TIME_GRIDS,
    karras_times,
    log_snr_times,
    quadratic_times,
    shifted_times,
    time_grid,
    uniform_times,
)
from fastgen.errors import expect, lookup
from fastgen.functional import at, fresh_key, philox_normal, sampler_step
from fastgen_kernels.checks import check_batched, check_finite_values, check_float

__all__ = [
    "SAMPLERS",
    "TIME_GRIDS",
    "ddim",
    "ddpm",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "euler",
    "euler_ancestral",
    "heun",
    "karras_times",
    "log_snr_times",
    "quadratic_times",
    "shifted_times",
    "uniform_times",
    "unipc",
]

Callback = Callable[[int, Tensor, Tensor], None]


# What the samplers share


class StepGrid(NamedTuple):
    """The schedule where every step begins and where it ends, fp64 (steps,).

    ratio is exp(-h), h the rise of log(alpha / sigma) in the step: 0 where a step begins with no x0 or ends with no noise, for
    which h is infinite.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor
    ratio: Tensor


def step_grid(schedule: Schedule, times: Tensor) -> StepGrid:
    """The steps between times (steps + 1,)."""
    alpha, sigma = schedule.marginal(times.double())
    ratio = sigma[1:] / sigma[:-1] * (alpha[:-1] / alpha[1:]).nan_to_num(1.0)  # NaN: a chain's last step, cut in parts, has no x0
    return StepGrid(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], ratio.clamp(max=1))  # which rounding may pass


def coefficients(a: Tensor, b: Tensor, c: Tensor | None = None, s: Tensor | None = None) -> Tensor:
    """A row for sampler_step for every step, (steps, 4): x_next = a·x + b·x0_hat + c·previous + s·noise; each (steps,)."""
    zero = torch.zeros_like(a)
    return torch.stack([a, b, zero if c is None else c, zero if s is None else s], dim=1)


def noise_keys(key: Tensor | None, x: Tensor, steps: int) -> list[Tensor]:
    """The key of every step's noise, int64 (N, 4) each; from torch's generator where `key` is None."""
    key = fresh_key(x.shape[0], x.device) if key is None else key
    return [at(key, stream=noise_streams.SAMPLER, step=i) for i in range(steps)]


def no_callback(i: int, x: Tensor, x0_hat: Tensor) -> None:
    """The callback of those who want none."""


def one_evaluation_a_step(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    s: Tensor | None = None,
    *,
    key: Tensor | None = None,
    callback: Callback = no_callback,
) -> Tensor:
    """x <- a·x + b·x0_hat + c·(the last step's x0_hat) + s·noise at every step; a, b, c, s: (steps,), c is 0 in the first."""
    table = coefficients(a, b, c, s)
    keys = [None] * len(a) if s is None else noise_keys(key, x, len(a))
    previous = None
    for i in range(len(a)):
        x0_hat = denoise(x, times[i])
        x = sampler_step(x, x0_hat, table[i], previous=None if c is None else previous, key=keys[i])
        previous = x0_hat
        callback(i, x, x0_hat)
    return x


Draw = TypeVar("Draw", bound=Callable[..., Tensor])


def checked(draw: Draw) -> Draw:
    """The sampler with checks: it raises for an invalid denoise, for times that do not fall and for NaN or infinite results.

    The host reads the times before the first step and what became of each after the last, and nothing between; nothing at all
    while a CUDA graph is captured.
    """

    @functools.wraps(draw)
    def sampler(denoise: Denoise, x: Tensor, times: Tensor, *, callback: Callback | None = None, **options) -> Tensor:
        expect_denoise(denoise)
        check_float(x=x, times=times)
        check_batched(x=x)
        check_finite_values(x=x)
        expect("callback", callback, callback is None or callable(callback), "None or a function of i, x and x0_hat")
        expect("times", tuple(times.shape), times.dim() == 1 and len(times) > 1, "a vector of at least two numbers")
        if host_may_read(x):
            for i, (t, after) in enumerate(itertools.pairwise(times.tolist())):
                if not 1 >= t > after >= 0:
                    expected = "numbers in [0, 1], each below the one before"
                    raise ValueError(f"times: expected {expected}, got {t:.6g}, {after:.6g} at {i}")
        finite: list[Tensor] = []

        def after_step(i: int, x: Tensor, x0_hat: Tensor) -> None:
            finite.append(x.isfinite().all())
            if callback is not None:
                callback(i, x, x0_hat)

        x0 = draw(denoise, x, times, callback=after_step, **options)
        if host_may_read(x) and False in (each := torch.stack(finite).tolist()):
            i = each.index(False)
            where = f"step {i + 1} of {len(each)}, from t = {times[i].item():.4g}"
            raise FloatingPointError(f"denoise: expected finite numbers, got NaN or infinity in {where}")
        return x0

    return cast(Draw, sampler)


# First order, an evaluation a step


@checked
def euler(
    denoise: Denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = no_callback
) -> Tensor:
    """Euler steps of the probability-flow ODE d(x/alpha) = eps_hat · d(sigma/alpha) (Karras et al. 2022, arXiv:2206.00364,
    eq. 4; on rectified_flow it is x + (s - t) · flow). Deterministic: key is not used."""
    step = step_grid(denoise.schedule, times)
    a = step.sigma_next / step.sigma
    return one_evaluation_a_step(denoise, x, times, a, step.alpha_next - a * step.alpha, callback=callback)


@checked
def ddim(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    key: Tensor | None = None,
    callback: Callback = no_callback,
) -> Tensor:
    """DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16): eta = 0 is deterministic, eta = 1 is DDPM.

    Raises ValueError for eta outside [0, 1]."""
    expect("eta", eta, 0 <= eta <= 1, "a number in [0, 1]")
    step = step_grid(denoise.schedule, times)
    s = eta * step.sigma_next * (1 - step.ratio**2).sqrt()
    a = (step.sigma_next**2 - s**2).sqrt() / step.sigma
    b = step.alpha_next - a * step.alpha
    return one_evaluation_a_step(denoise, x, times, a, b, s=s if eta > 0 else None, key=key, callback=callback)


@checked
def ddpm(
    denoise: Denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = no_callback
) -> Tensor:
    """Ancestral sampling from the posterior q(x_s | x_t, x0_hat) (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7)."""
    step = step_grid(denoise.schedule, times)
    a = step.ratio * step.sigma_next / step.sigma
    b = step.alpha_next * (1 - step.ratio**2)
    s = step.sigma_next * (1 - step.ratio**2).sqrt()
    return one_evaluation_a_step(denoise, x, times, a, b, s=s, key=key, callback=callback)


@checked
def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    key: Tensor | None = None,
    callback: Callback = no_callback,
) -> Tensor:
    """k-diffusion's: Euler in x/alpha down to sigma_down, then noise of deviation sigma_up, where sigma_down² + sigma_up² is the
    next sigma² (Song et al. 2021, arXiv:2011.13456, appendix F). For eta up to 1 this is ddim's step.

    Raises ValueError for eta that is not a finite number >= 0."""
    expect("eta", eta, 0 <= eta < math.inf, "a finite number >= 0")
    step = step_grid(denoise.schedule, times)
    up = step.sigma_next * (eta * (1 - step.ratio**2).sqrt()).clamp(max=1)
    down = (step.sigma_next**2 - up**2).sqrt()
    a = down / step.sigma
    b = step.alpha_next - a * step.alpha
    return one_evaluation_a_step(denoise, x, times, a, b, s=up if eta > 0 else None, key=key, callback=callback)


# DPM-Solver++(2M) and its SDE: multistep solvers of second order in the log-SNR, an evaluation a step


@checked
def dpmpp_2m(
    denoise: Denoise, x: Tensor, times: Tensor, *, key: Tensor | None = None, callback: Callback = no_callback
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2). Deterministic: key is not used."""
    step = step_grid(denoise.schedule, times)
    a = step.sigma_next / step.sigma
    b = step.alpha_next * (1 - step.ratio)
    c = -b * _extrapolation(step.ratio)
    return one_evaluation_a_step(denoise, x, times, a, b - c, c, callback=callback)


@checked
def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    key: Tensor | None = None,
    callback: Callback = no_callback,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, section 5); eta scales its noise as k-diffusion has it, eta = 0 is
    dpmpp_2m.

    Raises ValueError for eta that is not a finite number >= 0."""
    expect("eta", eta, 0 <= eta < math.inf, "a finite number >= 0")
    step = step_grid(denoise.schedule, times)
    kept = step.ratio**eta  # exp(-eta·h)
    a = step.sigma_next / step.sigma * kept
    b = step.alpha_next * (1 - step.ratio * kept)
    c = -b * _extrapolation(step.ratio)
    s = step.sigma_next * (1 - kept**2).sqrt()
    return one_evaluation_a_step(denoise, x, times, a, b - c, c, s if eta > 0 else None, key=key, callback=callback)


def _extrapolation(ratio: Tensor) -> Tensor:
    """h_i / (2·h_(i-1)), the weight of x0_hat_i - x0_hat_(i-1) in each step; 0, first order, in the first step, in one whose h is
    infinite, and after one whose h is infinite or nil."""
    h = -ratio.log()
    last = torch.cat([torch.full_like(h[:1], float("inf")), h[:-1]])
    return torch.where(h.isfinite() & (last > 0), h / (2 * last), 0.0)


# Heun's method as EDM has it: second order, two evaluations a step


@checked
def heun(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    key: Tensor | None = None,
    callback: Callback = no_callback,
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
    step = step_grid(schedule, times)
    alpha, sigma, times_hat = step.alpha, step.sigma, times[:-1]
    if churn > 0:  # back to sigma_hat = (1 + gamma)·sigma at t_hat
        gamma = min(churn / steps, math.sqrt(2) - 1)
        churned = (sigma / alpha >= churn_min) & (sigma / alpha <= churn_max)
        noisier = schedule.time(schedule.log_snr(times[:-1].double()) - 2 * math.log1p(gamma)).to(times.dtype)
        times_hat = torch.where(churned, torch.maximum(noisier, times_hat), times_hat)
        alpha, sigma = schedule.marginal(times_hat.double())
        scale = (alpha / step.alpha).nan_to_num(1.0)
        s = churn_noise * (sigma**2 - (scale * step.sigma) ** 2).clamp(min=0).sqrt()
        to_hat, keys = coefficients(scale, torch.zeros_like(s), s=s), noise_keys(key, x, steps)

    # Euler: x_e = x_hat + (sigma_next - sigma_hat)·d, here in x instead of x/alpha.
    a = step.sigma_next / sigma
    euler_stage = coefficients(a, step.alpha_next - a * alpha)
    # Heun: x_next = x_e/2 + (x_hat + (sigma_next - sigma_hat)·d')/2 with d' = (x_e - x0_hat')/sigma_next.
    rise = (sigma / alpha) / (step.sigma_next / step.alpha_next)
    # Where next to no signal is left, as at t = 1 of a cosine schedule, sigma/alpha falls too fast for the mean of two slopes.
    corrected = rise.isfinite() & (sigma < 1000 * alpha)
    heun_stage = coefficients(step.alpha_next / alpha / 2, 1 - rise / 2, step.alpha_next * (rise - 1) / 2)
    keep = coefficients(torch.zeros_like(a), torch.ones_like(a))
    heun_stage = torch.where(corrected[:, None], heun_stage, keep)
    two_stages = corrected.tolist() if host_may_read(x) else [True] * steps  # unread, an Euler step's second stage weighs 0

    for i in range(steps):
        x_hat = sampler_step(x, x, to_hat[i], key=keys[i]) if churn > 0 else x
        x0_hat = denoise(x_hat, times_hat[i])
        x = sampler_step(x_hat, x0_hat, euler_stage[i])
        if two_stages[i]:
            x = sampler_step(x_hat, x, heun_stage[i], previous=denoise(x, times[i + 1]))
        callback(i, x, x0_hat)
    return x


# UniPC: a predictor and a corrector in the log-SNR that share their evaluations, one a step


@checked
def unipc(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    *,
    order: int = 2,
    key: Tensor | None = None,
    callback: Callback = no_callback,
) -> Tensor:
    """UniPC of order 1, 2 or 3 for data prediction, with B(h) = e^h - 1, "bh2" (Zhao et al. 2023, arXiv:2302.04867, algorithms 1
    and 2). Its first steps are of lower order, and so are its last ones where they end without noise. Deterministic: key is not
    used.

    Raises ValueError for another order.
    """
    expect("order", order, order in (1, 2, 3), "1, 2 or 3")
    predictor, corrector = _unipc_coefficients(denoise.schedule, times, order)
    start = x  # where the last step began
    x0_hats: list[Tensor] = []  # the latest, the newest first
    for i in range(len(times) - 1):
        x0_hat = denoise(x, times[i])
        if i > 0:  # the step that led here, again with what it led to
            x = _weighted_sum(start, [x0_hat, *x0_hats], corrector[i - 1])
        start, x0_hats = x, [x0_hat, *x0_hats][:order]
        x = _weighted_sum(start, x0_hats, predictor[i])
        callback(i, x, x0_hat)
    return x


def _weighted_sum(x: Tensor, x0_hats: list[Tensor], weights: Tensor) -> Tensor:
    """The weighted sum of x and the estimates, two of which one sampler_step takes; weights: (2, 4), a row for each two."""
    for j in range(0, len(x0_hats), 2):
        x = sampler_step(x, x0_hats[j], weights[j // 2], previous=x0_hats[j + 1] if j + 1 < len(x0_hats) else None)
    return x


def _unipc_coefficients(schedule: Schedule, times: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Weights for _weighted_sum, (steps, 2, 4) each: of the predictor, on the latest x0_hats, and of the corrector, on the x0_hat
    at the step's end and those.

    A step is x_next = sigma_next/sigma·x + alpha_next·(1 - e^-h)·(m_0 + sum of c_k·(m_k - m_0)), m_0 the latest x0_hat and r_k
    the positions of the others in log(alpha/sigma), in steps: m_0 lies at 0, the step's end at 1.
    """
    step = step_grid(schedule, times)
    steps = len(step.ratio)
    half_log_snr = schedule.log_snr(times.double()) / 2
    h = half_log_snr.diff()
    earlier = [torch.cat([h.new_full((k,), torch.nan), half_log_snr[: steps - k]])[:steps] for k in (1, 2)]
    r_1, r_2 = ((position - half_log_snr[:-1]) / h for position in earlier)
    end = torch.ones_like(h)

    usable = 1 + (r_1.isfinite() & (r_1 < 0)).long() * (1 + (r_2.isfinite() & (r_2 < r_1)).long())
    left = torch.arange(steps, 0, -1, device=h.device)
    order_of = torch.where(h[-1].isinf(), torch.minimum(usable, left), usable).clamp(max=order)
    order_of = torch.where(h.isfinite(), order_of, 1)

    def weights(by_order: list[list[Tensor]], newest: int) -> Tensor:
        """From c for orders 1, 2 and 3; m_0 stands at index `newest` among the x0_hats."""
        zero = torch.zeros_like(h)
        padded = ([*c, *[zero] * (3 - len(c))] for c in by_order)
        c = [torch.where(order_of == 1, c_1, torch.where(order_of == 2, c_2, c_3)) for c_1, c_2, c_3 in zip(*padded, strict=True)]
        c.insert(newest, 1 - torch.stack(c).sum(0))
        w = [step.alpha_next * (1 - step.ratio) * c_k for c_k in c]
        two, more = coefficients(step.sigma_next / step.sigma, w[0], w[1]), coefficients(torch.ones_like(h), w[2], w[3])
        return torch.stack([two, more], dim=1)

    predictor = weights([_solve_moments(r, h) for r in ([], [r_1], [r_1, r_2])], 0)
    corrector = weights([_solve_moments(r, h) for r in ([end], [end, r_1], [end, r_1, r_2])], 1)
    return predictor, corrector


def _solve_moments(nodes: list[Tensor], h: Tensor) -> list[Tensor]:
    """c with sum of c_i·r_i^k = k!·phi_(k+1)(-h) / phi_1(-h) for k = 1 to len(nodes), which integrates polynomials exactly; 1/2
    for a single node at 1 and 1/2 / r for one at r, as the paper has it for every h."""
    if len(nodes) == 1:
        return [0.5 / nodes[0]]
    moments, value = [], torch.expm1(-h)
    for factorial in (1, 2, 6):
        value = value / -h - 1 / factorial
        moments.append(value * factorial / torch.expm1(-h))
    weights = []
    for i, r in enumerate(nodes):  # the functional of Lagrange's polynomial: 1 at r, 0 at 0 and at the other nodes
        others = [other for j, other in enumerate(nodes) if j != i]
        polynomial, scale = [torch.ones_like(r)], r  # of r, over r
        for other in others:
            zero = torch.zeros_like(r)
            polynomial = [up - other * down for up, down in zip([zero, *polynomial], [*polynomial, zero], strict=True)]
            scale = scale * (r - other)
        weights.append(sum(p * m for p, m in zip(polynomial, moments, strict=False)) / scale)
    return weights


SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}


@torch.no_grad()
def generate(
    denoise: Denoise, shape: tuple[int, ...], key: Tensor, settings: Sampling, callback: Callback | None = None
) -> Tensor:
    """One sample of `shape` for each row of the key, int64 (N, 4), from noise by the sampler: x0, fp32 (N, *shape). Nothing in it
    waits for the device. callback(i, x, x0_hat): after each step.

    Raises TypeError for a denoise without a schedule, ValueError for a sampler or times that are in no table, and what the
    sampler raises."""
    expect_denoise(denoise)
    sampler = lookup("sampler", settings.sampler, SAMPLERS)
    times = time_grid(denoise.schedule, settings.times, settings.steps, key.device)
    _, sigma = denoise.schedule.marginal(times[0])
    x = sigma * philox_normal((key.shape[0], *shape), at(key, stream=noise_streams.START))
    return sampler(denoise, x, times, key=key, callback=callback)
