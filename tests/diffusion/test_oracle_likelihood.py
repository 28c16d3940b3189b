"""Likelihoods against those of mixtures, which are known."""

import math

import pytest
import torch

from benchmarks.studies.oracles import DATA, GAUSSIAN, IdealDenoiser, flow, marginal, mixture
from fastgen import Diffusion, UNet
from fastgen.diffusion.likelihood import bits_per_dim, log_likelihood, vlb
from fastgen.diffusion.samplers import log_snr_times
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import noise_key

CASES = [("mixture-2", schedule) for schedule in SCHEDULES] + [(data, "rectified_flow") for data in DATA if data != "mixture-2"]


def exact_log_likelihood(data, schedule, x, end):
    """log p(x) at t = end of what the flow makes of the prior N(0, sigma(1)²): the data's own, but for how far the prior is from
    the marginal at t = 1."""
    ends = torch.tensor([1.0, end], dtype=torch.float64)
    alpha, sigma = schedule.alpha(ends), schedule.sigma(ends)
    x_1 = flow(data, schedule, x, end, 1.0)
    prior = -(x_1**2).sum(1) / (2 * sigma[0] ** 2) - x.shape[1] / 2 * math.log(2 * math.pi * sigma[0] ** 2)
    return data.log_prob(x, alpha[1], sigma[1]) + prior - data.log_prob(x_1, alpha[0], sigma[0])


@pytest.mark.parametrize(("name", "schedule"), CASES)
def test_the_ode_gives_the_exact_log_likelihood_at_second_order(name, schedule):
    data, schedule, errors = DATA[name], SCHEDULES[schedule](), []
    for steps in (30, 60):
        times = log_snr_times(schedule, steps, sigma_min=0.02).double()[:-1]
        x = marginal(data, schedule, 8, times[-1].item())
        exact = exact_log_likelihood(data, schedule, x, times[-1].item())
        found = log_likelihood(IdealDenoiser(data, schedule), x, times)
        errors.append(bits_per_dim(found - exact, x).abs().mean())
    assert errors[1] < 0.02  # bits
    assert 3 < errors[0] / errors[1] < 6


def test_the_prior_is_near_the_marginal_of_every_schedule():
    """So log_likelihood is that of the data, to within this much of a bit."""
    for name, within in {"rectified_flow": 1e-6, "linear": 0.02, "cosine": 1e-3, "edm": 0.03}.items():
        data, schedule = DATA["mixture-2"], SCHEDULES[name]()
        x = marginal(data, schedule, 50, 0.3)
        t = torch.tensor(0.3, dtype=torch.float64)
        difference = exact_log_likelihood(data, schedule, x, 0.3) - data.log_prob(x, schedule.alpha(t), schedule.sigma(t))
        assert bits_per_dim(difference, x).abs().max() < within


def test_hutchinsons_divergence_is_unbiased():
    """Of 16 dimensions, with one sample 400 times: within 5 standard errors of the exact divergence's."""
    data, schedule = DATA["mixture-16"], SCHEDULES["rectified_flow"]()
    times = log_snr_times(schedule, 15, sigma_min=0.1).double()[:-1]
    denoise, x = IdealDenoiser(data, schedule), marginal(data, schedule, 1, times[-1].item())
    exact = log_likelihood(denoise, x, times)
    found = log_likelihood(denoise, x.expand(400, -1), times, divergence="hutchinson", key=noise_key(0, samples=400))
    assert found.std() > 1e-3
    assert abs(found.mean() - exact) < 5 * found.std() / 20


def gaussian_bound(std, dim, schedule, times):
    """The diffusion term in closed form: half the integral of the mean squared error over the SNR, by its left rule."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    error = dim * std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    return (((alpha / sigma) ** 2).diff() / 2 * error[:-1]).sum()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_gaussian_data_is_that_of_the_formula(schedule):
    """Each term within 5 standard errors of its mean in closed form, over 4,000 samples."""
    data, schedule = GAUSSIAN[2], SCHEDULES[schedule]()
    times = log_snr_times(schedule, 40).double()[:-1]
    x0 = data.sample(4000)
    bound = vlb(IdealDenoiser(data, schedule), x0, times, key=noise_key(1, samples=4000))
    snr = schedule.log_snr(times).exp()
    means = (
        snr[0] / 2 * 2 * (0.5**2 + 0.3**2),
        gaussian_bound(0.3, 2, schedule, times),
        1 + math.log(2 * math.pi) - snr[-1].log(),  # of x_t / alpha around x0
    )
    for term, mean in zip(bound, means, strict=True):
        assert abs(term.mean() - mean) <= 5 * term.std() / 4000**0.5  # both 0 for a prior without signal


def test_the_bound_tends_to_the_exact_likelihood():
    """With many steps the formula's bound is the entropy of the data: all that is left is the noise at its end."""
    schedule, exact = SCHEDULES["rectified_flow"](), math.log(2 * math.pi * math.e * 0.3**2)
    for steps, gap in ((2_000, 0.08), (20_000, 0.008)):
        times = log_snr_times(schedule, steps, sigma_max=1e4).double()[:-1]
        last = schedule.log_snr(times[-1])
        bound = gaussian_bound(0.3, 2, schedule, times) + 1 + math.log(2 * math.pi) - last
        assert 0 < bound - exact < gap


@pytest.mark.parametrize("name", ["mixture-1", "mixture-2", "mixture-16"])
def test_the_bound_of_a_mixture_is_above_its_likelihood_and_falls_to_it(name):
    data, schedule = DATA[name], SCHEDULES["cosine"]()
    x0, gaps = data.sample(2000), []
    for steps in (25, 50, 100):
        times = log_snr_times(schedule, steps).double()[:-1]
        bound = sum(vlb(IdealDenoiser(data, schedule), x0, times, key=noise_key(1, samples=2000)))
        gaps.append(bits_per_dim((bound + data.log_prob(x0)).mean()[None], x0).item())
    assert 0 < gaps[2] < gaps[1] / 1.7 < gaps[0] / 1.7**2  # of first order
    assert gaps[2] < 0.6


def test_the_bound_of_levels_is_on_their_probability():
    """Four of 256 levels, of known probabilities: the bound is above their entropy, and near it with many steps."""
    chosen, weights = torch.tensor([3, 80, 81, 200]), torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    places = (chosen / 127.5 - 1).double()[:, None]
    data, schedule = mixture(weights.tolist(), places.tolist(), [0.0] * 4), SCHEDULES["edm"]()
    x0 = places.repeat_interleave((1000 * weights).round().long(), 0)
    times = log_snr_times(schedule, 600, sigma_min=5e-4).double()[:-1]  # well below the distance of levels, 0.0078
    bound = vlb(IdealDenoiser(data, schedule), x0, times, levels=256, key=noise_key(1, samples=1000))
    entropy = -(weights * weights.log()).sum()
    assert entropy < sum(bound).mean() < entropy + 0.35
    assert bound.reconstruction.mean() < 0.01


def test_images_and_networks_in_fp32():
    """What a trained model gives: x of (N, C, H, W) in fp32, t in fp32."""
    schedule = SCHEDULES["rectified_flow"]()
    data = GAUSSIAN[16]

    def denoise(x, t):
        return IdealDenoiser(data, schedule)(x.flatten(1), t).view_as(x)

    denoise.schedule = schedule
    x = data.sample(8).float().view(8, 1, 4, 4)
    times = log_snr_times(schedule, 40, sigma_min=0.05)[:-1]
    t = times[-1].double()
    exact = data.log_prob(x.flatten(1).double(), schedule.alpha(t), schedule.sigma(t))
    for divergence in ("exact", "hutchinson"):
        found = log_likelihood(denoise, x, times, divergence=divergence, key=noise_key(0, samples=8))
        assert found.shape == (8,)
        assert (found - exact).abs().max() < 0.2  # the Jacobian is a multiple of the identity: both are exact
    assert all(term.shape == (8,) for term in vlb(denoise, x, times))


def test_a_networks_likelihood():
    """Of a denoiser of a UNet, also where gradients are off; the divergence is the network's."""
    torch.manual_seed(0)
    net = UNet(1, channels=8, groups=4, multipliers=(1,), blocks=1).eval()
    torch.nn.init.normal_(net.head.weight, std=0.1)
    denoise, times = Diffusion("rectified_flow").denoiser(net), torch.tensor([1.0, 0.5, 0.1])
    x = torch.rand(3, 1, 4, 4) * 2 - 1
    exact = log_likelihood(denoise, x, times)
    with torch.no_grad():
        torch.testing.assert_close(log_likelihood(denoise, x, times), exact)
        many = [log_likelihood(denoise, x, times, divergence="hutchinson", key=noise_key(i, samples=3)) for i in range(20)]
    found = torch.stack(many)
    assert ((found.mean(0) - exact).abs() < 5 * found.std(0) / 20**0.5 + 1e-4).all()


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.0], [0.5, 1.0], [1.0]])
def test_bad_times_are_named(times):
    denoise, x = IdealDenoiser(GAUSSIAN[2], SCHEDULES["cosine"]()), torch.zeros(1, 2)
    for likelihood in (log_likelihood, vlb):
        with pytest.raises(ValueError, match="times: expected falling numbers that end above 0, got"):
            likelihood(denoise, x, torch.tensor(times))


def test_an_unknown_divergence_is_named():
    denoise = IdealDenoiser(GAUSSIAN[2], SCHEDULES["cosine"]())
    with pytest.raises(ValueError, match="divergence: expected one of exact, hutchinson, got 'skilling'"):
        log_likelihood(denoise, torch.zeros(1, 2), torch.tensor([1.0, 0.5]), divergence="skilling")
