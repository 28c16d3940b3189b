"""Samplers against data whose ideal denoiser is known: N(mean, std²) per element."""

import pytest
import torch

from fastgen import Diffusion, samplers
from fastgen.functional import noise_key, philox_normal
from fastgen.schedules import SCHEDULES

MEAN, STD = 0.5, 0.3


class GaussianDenoiser:
    """E[x0 | x_t] for x0 ~ N(MEAN, STD²)."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, t):
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * MEAN)


def start(schedule, n, dtype=torch.float64):
    noise = philox_normal((n, 1), noise_key(0, samples=n), dtype=dtype)
    alpha, sigma = (f(torch.ones((), dtype=torch.float64)) for f in (schedule.alpha, schedule.sigma))
    return alpha * (MEAN + STD * philox_normal((n, 1), noise_key(1, samples=n), dtype=dtype)) + sigma * noise


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_samples_have_the_datas_moments(sampler, schedule):
    denoise = GaussianDenoiser(SCHEDULES[schedule]())
    n = 10_000
    x0 = samplers.SAMPLERS[sampler](
        denoise, start(denoise.schedule, n), samplers.uniform_times(300).double(), key=noise_key(2, samples=n)
    )
    assert abs(x0.mean() - MEAN) < 0.02
    assert abs(x0.std() - STD) < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_euler_follows_the_exact_flow_at_first_order(schedule):
    """The probability-flow ODE of Gaussian data has a closed form; halving the step halves the error."""
    denoise = GaussianDenoiser(SCHEDULES[schedule]())
    alpha, sigma = (f(torch.ones((), dtype=torch.float64)) for f in (denoise.schedule.alpha, denoise.schedule.sigma))
    x = start(denoise.schedule, 200)
    exact = MEAN + (x - alpha * MEAN) * STD / (alpha**2 * STD**2 + sigma**2).sqrt()
    errors = [(samplers.euler(denoise, x, samplers.uniform_times(steps).double()) - exact).abs().mean() for steps in (200, 400)]
    assert 1.8 < errors[0] / errors[1] < 2.3


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddim_is_euler_at_eta_0_and_ddpm_at_eta_1(schedule):
    denoise, times = GaussianDenoiser(SCHEDULES[schedule]()), samplers.uniform_times(20).double()
    x, key = start(denoise.schedule, 50), noise_key(5, samples=50)
    torch.testing.assert_close(samplers.ddim(denoise, x, times), samplers.euler(denoise, x, times))
    torch.testing.assert_close(samplers.ddim(denoise, x, times, eta=1.0, key=key), samplers.ddpm(denoise, x, times, key=key))
    assert not torch.allclose(samplers.ddpm(denoise, x, times, key=key), samplers.euler(denoise, x, times), atol=1e-2)


def test_a_ddpm_step_is_the_posterior_of_the_paper():
    """q(x_{t-1} | x_t, x0), equations 6 and 7 of arXiv:2006.11239, in their betas."""
    schedule = SCHEDULES["linear"]()
    i = 600
    bar = (1 - schedule.betas).cumprod(0)
    beta, bar_t, bar_s = schedule.betas[i], bar[i], bar[i - 1]
    x, x0 = torch.randn(2, 1000, 1, dtype=torch.float64)
    mean = (bar_s.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - bar_s) * x) / (1 - bar_t)
    variance = (1 - bar_s) / (1 - bar_t) * beta

    def denoise(x_t, t):
        return x0

    denoise.schedule = schedule
    times, key = torch.tensor([(i + 1) / 1000, i / 1000], dtype=torch.float64), noise_key(0, samples=1000)
    step = samplers.ddpm(denoise, x, times, key=key)
    noise = (step - mean) / variance.sqrt()
    assert abs(noise.mean()) < 0.12
    assert abs(noise.std() - 1) < 0.08
    without = samplers._run(denoise, x, times, *_ddpm_mean(schedule, times))
    torch.testing.assert_close(without, mean, rtol=1e-5, atol=1e-7)


def _ddpm_mean(schedule, times):
    alpha, sigma, alpha_next, sigma_next = samplers._grid(schedule, times)
    between = samplers._transition(alpha, sigma, alpha_next, sigma_next)
    return alpha / alpha_next * (sigma_next / sigma) ** 2, alpha_next * (between / sigma) ** 2


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    denoise, times = GaussianDenoiser(SCHEDULES["cosine"]()), samplers.uniform_times(10)
    x, key = torch.randn(8, 3, 4, 4), noise_key(5, samples=8)
    whole = samplers.SAMPLERS[sampler](denoise, x, times, key=key)
    alone = samplers.SAMPLERS[sampler](denoise, x[5:6], times, key=key[5:6])
    torch.testing.assert_close(alone, whole[5:6])


def test_the_callback_sees_every_step_and_the_last_is_the_result():
    denoise, seen = GaussianDenoiser(SCHEDULES["cosine"]()), []
    x0 = samplers.euler(denoise, torch.randn(2, 1), samplers.uniform_times(5), callback=lambda i, x, x0_hat: seen.append((i, x)))
    assert [i for i, _ in seen] == list(range(5))
    assert torch.equal(seen[-1][1], x0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        samplers.uniform_times(0)
    with pytest.raises(ValueError, match=r"eta: expected a number in \[0, 1\], got 2"):
        samplers.ddim(GaussianDenoiser(SCHEDULES["cosine"]()), torch.randn(1, 1), samplers.uniform_times(2), eta=2)


def test_bf16_samples_stay_bf16():
    denoise = GaussianDenoiser(SCHEDULES["rectified_flow"]())
    x = samplers.euler(lambda_with_schedule(denoise), torch.randn(4, 1, dtype=torch.bfloat16), samplers.uniform_times(4))
    assert x.dtype == torch.bfloat16


def lambda_with_schedule(denoise):
    def wrapped(x, t):
        return denoise(x.float(), t).to(x.dtype)

    wrapped.schedule = denoise.schedule
    return wrapped


def test_denoiser_and_sampler_fit_together():
    class Zero(torch.nn.Module):
        num_classes = None

        def forward(self, x, t, label=None, context=None):
            assert t.shape == (len(x),)
            return torch.zeros_like(x)

    diffusion = Diffusion("rectified_flow", "x0")
    assert (samplers.euler(diffusion.denoiser(Zero()), torch.randn(3, 1, 4, 4), samplers.uniform_times(3)) == 0).all()
