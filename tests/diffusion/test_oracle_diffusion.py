"""The oracles themselves, and schedules, predictions and weightings against them."""

import pytest
import torch
from torch import nn

from benchmarks.studies.oracles import DATA, GAUSSIAN, MIXTURE, IdealDenoiser, flow, marginal
from fastgen import Diffusion, DiffusionObjective, noise_streams
from fastgen.diffusion.objective import TIME_DRAWS
from fastgen.diffusion.process import PREDICTIONS, WEIGHTINGS
from fastgen.diffusion.samplers import SAMPLERS, uniform_times
from fastgen.diffusion.schedules import SCHEDULES, Discrete
from fastgen.functional import at, noise_key, philox_normal, q_sample

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def allowed(schedule):
    return [p for p in PREDICTIONS if p != "eps" or not SCHEDULES[schedule]().zero_terminal_snr]


class IdealNet(nn.Module):
    """The network whose prediction is the ideal one: E[target | x_t] of a mixture, from c_in·x_t as networks read it."""

    num_classes = None

    def __init__(self, data, diffusion):
        super().__init__()
        self.data, self.diffusion = data, diffusion

    def forward(self, x, t, label=None, context=None):
        t = t.double()
        alpha, sigma = self.diffusion.schedule.alpha(t)[:, None], self.diffusion.schedule.sigma(t)[:, None]
        flat = x.flatten(1).double()
        if self.diffusion.prediction == "edm":
            flat = flat * (sigma**2 + 0.25 * alpha**2).sqrt()
        x0 = self.data.denoise(flat, alpha[:, 0], sigma[:, 0])
        eps = (flat - alpha * x0) / sigma
        level = sigma / alpha
        out = {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "flow": eps - x0}.get(self.diffusion.prediction)
        if out is None:  # EDM's table 1, where F has c_out·F = x0 - c_skip·x_t / alpha
            out = (level**2 * x0 - 0.25 * level * eps) / (level * 0.5 * (level**2 + 0.25).sqrt())
        return out.to(x.dtype).view_as(x)


# The oracles


@pytest.mark.parametrize("name", DATA)
def test_the_score_is_the_gradient_of_the_density(name):
    data, x = DATA[name], marginal(DATA[name], SCHEDULES["cosine"](), 30, 0.4).requires_grad_()
    (gradient,) = torch.autograd.grad(data.log_prob(x, 0.8, 0.6).sum(), x)
    torch.testing.assert_close(data.score(x.detach(), 0.8, 0.6), gradient)


@pytest.mark.parametrize("name", DATA)
def test_the_denoiser_and_the_score_are_tweedies(name):
    """sigma²·score = alpha·E[x0 | x_t] - x_t."""
    data, x = DATA[name], marginal(DATA[name], SCHEDULES["cosine"](), 30, 0.4)
    torch.testing.assert_close(0.6**2 * data.score(x, 0.8, 0.6), 0.8 * data.denoise(x, 0.8, 0.6) - x)


def test_the_denoiser_is_the_mean_of_bayes_rule():
    """In one dimension, by summing over x0."""
    data, x0 = MIXTURE[1], torch.linspace(-4, 4, 20_001, dtype=torch.float64)
    for x in (-1.0, 0.0, 0.3, 2.0):
        weight = (data.log_prob(x0[:, None]) - (x - 0.8 * x0) ** 2 / (2 * 0.6**2)).softmax(0)
        found = data.denoise(torch.tensor([[x]], dtype=torch.float64), 0.8, 0.6)
        assert found.item() == pytest.approx((weight * x0).sum().item(), abs=1e-9)


def test_the_density_integrates_to_one_and_its_samples_have_its_moments():
    x = torch.linspace(-6, 6, 20_001, dtype=torch.float64)
    assert torch.trapezoid(MIXTURE[1].log_prob(x[:, None], 0.8, 0.6).exp(), x).item() == pytest.approx(1, abs=1e-9)
    for data in DATA.values():
        x0 = data.sample(20_000)
        assert (x0.mean(0) - data.mean()).abs().max() < 0.02
        assert (x0.T.cov() - data.covariance()).abs().max() < 0.02


def test_the_flow_of_gaussian_data_is_the_formula():
    for name in ("linear", "rectified_flow", "edm"):
        schedule, data = SCHEDULES[name](), GAUSSIAN[2]
        x = marginal(data, schedule, 10)
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
        alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
        std = (alpha**2 * 0.3**2 + sigma**2).sqrt()
        expected = 0.5 * alpha[1] + (x - 0.5 * alpha[0]) * std[1] / std[0]
        torch.testing.assert_close(flow(data, schedule, x, 1.0, 0.0), expected, rtol=0, atol=1e-8)


# The forward process


@pytest.mark.parametrize("name", SCHEDULES)
def test_q_sample_is_its_single_steps_one_after_another(name):
    """x_t by q(x_t | x_0) with the noise that the steps q(x_t | x_s) = N(alpha_t/alpha_s·x_s, ...) add up to, and that noise is
    standard normal."""
    schedule = SCHEDULES[name]()
    t = torch.arange(0, 1000, dtype=torch.float64) / 1000  # up to the last level with signal
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if isinstance(schedule, Discrete):
        torch.testing.assert_close(alpha[1:] ** 2, (1 - schedule.betas).cumprod(0)[:-1])
    x0 = DATA["mixture-1"].sample(400)
    generator = torch.Generator().manual_seed(0)
    x, total = x0, torch.zeros_like(x0)
    for i in range(1, 1000):
        scale = alpha[i] / alpha[i - 1]
        added = (sigma[i] ** 2 - (scale * sigma[i - 1]) ** 2).clamp(min=0).sqrt()
        step = added * torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x, total = scale * x + step, scale * total + step
        if i in (1, 10, 500, 999):
            noise = total / sigma[i]
            direct = q_sample(x0, alpha[i].expand(400), sigma[i].expand(400), noise=noise, target=None)
            torch.testing.assert_close(direct, x, rtol=0, atol=1e-9)
            assert abs(noise.mean()) < 4.5 / 400**0.5
            assert abs(noise.var() - 1) < 4.5 * (2 / 400) ** 0.5


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "euler_ancestral"])
def test_the_reverse_posterior_is_the_conditional_of_the_joint_gaussian(sampler, name):
    """x_s given x_t and x_0, from the 2x2 covariance of (x_s, x_t) given x_0."""
    schedule = SCHEDULES[name]()
    generator = torch.Generator().manual_seed(0)
    x0, x = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
    key = noise_key(7, samples=20)
    noise = philox_normal((20, 3), at(key, stream=noise_streams.SAMPLER, step=0), dtype=torch.float64)

    def denoise(x_t, t):
        return x0

    denoise.schedule = schedule
    for t, s in ((0.9, 0.5), (0.5, 0.499), (0.02, 0.001), (1.0, 0.3)):
        times = torch.tensor([t, s], dtype=torch.float64)
        (a_t, a_s), (v_t, v_s) = schedule.alpha(times), schedule.sigma(times) ** 2
        covariance = a_t / a_s * v_s  # of x_s and x_t = (a_t / a_s)·x_s + noise
        mean = a_s * x0 + covariance / v_t * (x - a_t * x0)
        variance = v_s - covariance**2 / v_t
        found = SAMPLERS[sampler](denoise, x, times, key=key, **({} if sampler == "ddpm" else {"eta": 1.0}))
        torch.testing.assert_close(found, mean + variance.sqrt() * noise, rtol=0, atol=1e-9)


# Predictions


@pytest.mark.parametrize(("schedule", "prediction"), [(s, p) for s in SCHEDULES for p in allowed(s)])
def test_every_prediction_converts_to_x0_and_back(schedule, prediction):
    """The ideal network in each form gives E[x0 | x_t], and every other prediction of it, to 1e-6."""
    diffusion, data = Diffusion(schedule, prediction), MIXTURE[16]
    alpha, sigma = diffusion.schedule.alpha(T), diffusion.schedule.sigma(T)
    x = alpha[:, None] * data.sample(25) + sigma[:, None] * torch.randn(25, 16, dtype=torch.float64)
    x0 = diffusion.denoiser(IdealNet(data, diffusion))(x, T)
    torch.testing.assert_close(x0, data.denoise(x, alpha, sigma), rtol=0, atol=1e-6)
    for other in allowed(schedule):
        c_in, c_skip, c_out = Diffusion(schedule, other).preconditioning(T)
        out = (x0 - c_skip[:, None] * x) / c_out[:, None]
        x_in = x if c_in is None else c_in[:, None] * x
        torch.testing.assert_close(IdealNet(data, Diffusion(schedule, other))(x_in, T), out, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("schedule", "prediction"), [(s, p) for s in SCHEDULES for p in allowed(s)])
def test_every_prediction_draws_the_same_with_every_sampler(schedule, prediction):
    diffusion, data = Diffusion(schedule, prediction), MIXTURE[2]
    x, key = marginal(data, diffusion.schedule, 4), noise_key(0, samples=4)
    times = uniform_times(6).double()
    times[0] = 0.999  # IdealNet divides by alpha
    denoise = diffusion.denoiser(IdealNet(data, diffusion))
    for sampler in SAMPLERS.values():
        expected = sampler(IdealDenoiser(data, diffusion.schedule), x, times[:-1], key=key)
        torch.testing.assert_close(sampler(denoise, x, times[:-1], key=key), expected, rtol=1e-6, atol=1e-6)


# Weightings


@pytest.mark.parametrize("weighting", [w for w in WEIGHTINGS if w != "uniform"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_weighted_loss_is_the_same_in_every_prediction(schedule, weighting):
    """Those weightings are on the error of x0, so the objective of the ideal network in every form is one number a sample: the
    weight times its squared error of x0."""
    data, key = MIXTURE[16], noise_key(3, samples=64)
    x0 = data.sample(64).view(64, 1, 4, 4)
    plain = SCHEDULES[schedule]()
    t = TIME_DRAWS["uniform"](at(key, stream=noise_streams.TIME), None, plain).double()
    alpha, sigma = plain.alpha(t)[:, None], plain.sigma(t)[:, None]
    x_t = alpha * x0.flatten(1) + sigma * philox_normal((64, 16), at(key, stream=noise_streams.NOISE), dtype=torch.float64)
    error = ((data.denoise(x_t, alpha[:, 0], sigma[:, 0]) - x0.flatten(1)) ** 2).mean(1)
    snr = (alpha / sigma)[:, 0] ** 2
    weight = {"min_snr": snr.clamp(max=5), "p2": snr / (1 + snr), "edm": snr + 4, "vlb": plain.snr_decay(t) / 2}[weighting]
    for prediction in allowed(schedule):
        diffusion = Diffusion(schedule, prediction, weighting)
        loss = DiffusionObjective(IdealNet(data, diffusion), diffusion)(x0, key=key)
        torch.testing.assert_close(loss, weight * error, rtol=2e-3, atol=1e-6)  # t, alpha and sigma are fp32 in the objective


def test_uniform_weights_differ_by_the_known_factors():
    """|eps error|² = SNR·|x0 error|², |v error|² = (1 + SNR)·|x0 error|² with preserved variance, |flow error|² = (1 +
    sigma/alpha)²·SNR·|x0 error|²."""
    diffusion = Diffusion("cosine", "x0", "min_snr")
    snr = diffusion.schedule.log_snr(T).exp()
    on_x0 = diffusion.weight(T)
    factors = {"eps": snr, "v": 1 + snr, "flow": (1 + snr**-0.5) ** 2 * snr, "edm": snr + 4}
    for prediction, factor in factors.items():
        torch.testing.assert_close(Diffusion("cosine", prediction, "min_snr").weight(T) * factor, on_x0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_vlb_weighting_integrates_to_the_information(schedule):
    """I-MMSE: the integral of the weighted error of Gaussian data is half the log of 1 + std²·SNR (Guo et al. 2005)."""
    diffusion = Diffusion(schedule, "x0", "vlb")
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 * 0.9 + 0.05  # within the steps of a chain
    snr = diffusion.schedule.log_snr(t).exp()
    integral = (diffusion.weight(t) * 0.3**2 / (1 + 0.3**2 * snr)).mean() * 0.9
    ends = diffusion.schedule.log_snr(torch.tensor([0.05, 0.95], dtype=torch.float64)).exp()
    exact = torch.log1p(0.3**2 * ends) / 2
    torch.testing.assert_close(integral, exact[0] - exact[1], rtol=1e-5, atol=0)
