"""Each sampler against diffusers' scheduler and against the rules of the papers in k-diffusion's form, on the same network."""

import importlib
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

diffusers = pytest.importorskip("diffusers")

from benchmarks.studies.oracles import MIXTURE, IdealDenoiser  # noqa: E402
from fastgen import (  # noqa: E402
    Diffusion,
    noise_streams,
    samplers,
)
from fastgen.diffusion.schedules import EDM  # noqa: E402
from fastgen.functional import at, noise_key, philox_normal  # noqa: E402
from tests.helpers.all_pairs import all_pairs  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # their numpy of a tensor

KEY = noise_key(3, samples=8)
START = philox_normal((8, 4), noise_key(4, samples=8), dtype=torch.float64)
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def noise(i, shape=(8, 4)):
    return philox_normal(shape, at(KEY, stream=noise_streams.SAMPLER, step=i), dtype=torch.float64)


class Net(nn.Module):
    """A smooth network in fp64, of x and of where its noise level lies in [0, 1]."""

    num_classes = None

    def __init__(self, level):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 4, generator=generator, dtype=torch.float64)
        self.level = level

    def forward(self, x, t, label=None, context=None):
        return self.out(x, self.level(t).double()[:, None])

    def out(self, x, level):
        return torch.tanh(x @ self.weight + level) + 0.3 * x * level


def chain(cls, steps, **options):
    """A scheduler whose tables are in fp64, the same diffusion here, and its times; theirs are fp32."""
    scheduler = cls(**{"timestep_spacing": "trailing", **options})
    schedule = Diffusion.from_scheduler(scheduler).schedule
    scheduler.alphas_cumprod = schedule.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000) ** 2
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "sigmas"):
        exact = torch.cat([torch.zeros(1), ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()])
        scheduler.sigmas = exact[(exact - scheduler.sigmas[:, None]).abs().argmin(1)]
    denoise = Diffusion.from_scheduler(scheduler).denoiser(Net(lambda t: (schedule.level(t) - 1) / 1000))
    indices = scheduler.timesteps.double().unique().flip(0)
    return scheduler, denoise, torch.cat([(indices + 1) / 1000, torch.zeros(1)]).double()


def drawn_by_diffusers(scheduler, denoise, x, monkeypatch, **options):
    """Their loop, on x / alpha where their scheduler works in that; the noise of step i is ours."""
    net = denoise.net
    made = iter(range(1000))
    module = importlib.import_module(type(scheduler).__module__)
    if hasattr(module, "randn_tensor"):
        monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: noise(next(made)))
    scaled = "Discrete" in type(scheduler).__name__
    x = x / scheduler.alphas_cumprod[int(scheduler.timesteps[0])].sqrt() if scaled else x
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(net.out(x_in, t.double() / 1000), t, x, **options).prev_sample
    return x


def same(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


CASES = [
    ("ddpm", {}, diffusers.DDPMScheduler, {"clip_sample": False}),
    ("ddim", {}, diffusers.DDIMScheduler, {"clip_sample": False}),
    ("euler", {}, diffusers.EulerDiscreteScheduler, {}),
    ("euler_ancestral", {}, diffusers.EulerAncestralDiscreteScheduler, {}),
    ("heun", {}, diffusers.HeunDiscreteScheduler, {}),
    ("dpmpp_2m", {}, diffusers.DPMSolverMultistepScheduler, {}),
    ("dpmpp_2m_sde", {}, diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    ("unipc", {"order": 1}, diffusers.UniPCMultistepScheduler, {"solver_order": 1}),
    ("unipc", {"order": 2}, diffusers.UniPCMultistepScheduler, {"solver_order": 2}),
    ("unipc", {"order": 3}, diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
]


DIFFUSIONS = {
    "eps-linear": {},
    "eps-scaled_linear": STABLE,
    "v-linear": {"prediction_type": "v_prediction"},
    "v-cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
}


def same_step(case, diffusion, steps):
    """Where sigma/alpha is above 1000 our heun takes Euler's step."""
    return (case[0], diffusion) != ("heun", "v-cosine")


@pytest.mark.parametrize(
    ("case", "diffusion", "steps"),
    [
        pytest.param(*found, id=f"{found[0][0]}{found[0][1].get('order', '')}-{found[1]}-{found[2]}")
        for found in all_pairs(CASES, list(DIFFUSIONS), [1, 2, 5, 20], allowed=same_step)
    ],
)
def test_a_chain_is_sampled_as_by_diffusers(case, diffusion, steps, monkeypatch):
    sampler, options, cls, theirs = case
    scheduler, denoise, times = chain(cls, steps, **theirs, **DIFFUSIONS[diffusion])
    ours = samplers.SAMPLERS[sampler](denoise, START, times, key=KEY, **options)
    same(ours, drawn_by_diffusers(scheduler, denoise, START, monkeypatch))


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_is_that_of_diffusers(eta):
    scheduler, denoise, times = chain(diffusers.DDIMScheduler, 20, clip_sample=False)
    x = START
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoise.net.out(x, t.double() / 1000), t, x, eta=eta, variance_noise=noise(i)).prev_sample
    same(samplers.ddim(denoise, START, times, eta=eta, key=KEY), x)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc"])
def test_a_grid_that_ends_with_noise_is_sampled_as_by_diffusers(sampler, monkeypatch):
    cls = {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler, "unipc": diffusers.UniPCMultistepScheduler}[sampler]
    options = {"final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler, denoise, times = chain(cls, 10, **options)
    times[-1] = 1 / 1000
    alpha = denoise.schedule.alpha(times[-1])
    theirs = drawn_by_diffusers(scheduler, denoise, START, monkeypatch)
    assert 0 < alpha < 1
    same(samplers.SAMPLERS[sampler](denoise, START, times), theirs)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_is_sampled_as_by_diffusers(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.05, 20))
    diffusion = Diffusion.from_scheduler(scheduler)
    denoise, times = diffusion.denoiser(Net(diffusion.schedule.sigma)), samplers.uniform_times(20).double()
    torch.testing.assert_close(scheduler.sigmas.double(), diffusion.schedule.sigma(times), rtol=0, atol=1e-6)
    scheduler.sigmas, x = diffusion.schedule.sigma(times), START
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(denoise.net.out(x, scheduler.sigmas[i]), t, x).prev_sample
    same(samplers.euler(denoise, START, times), x)


# The rules of k-diffusion, in its sigma (alpha = 1), written from the papers' equations.

SIGMAS = (80 ** (1 / 7) + torch.linspace(0, 1, 12, dtype=torch.float64) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
LEVELS = [*SIGMAS.tolist(), 0.0]


def k_euler(D, x):
    for s, n in pairwise(LEVELS):
        x = x + (n - s) * (x - D(x, s)) / s
    return x


def k_heun(D, x, churn=0.0, low=0.0, high=float("inf"), s_noise=1.0):
    """Karras et al. 2022, algorithm 2."""
    for i, (s, n) in enumerate(pairwise(LEVELS)):
        gamma = min(churn / (len(LEVELS) - 1), 2**0.5 - 1) if low <= s <= high else 0.0
        hat = s * (1 + gamma)
        x = x + (hat**2 - s**2) ** 0.5 * s_noise * noise(i, x.shape)
        d = (x - D(x, hat)) / hat
        x_next = x + (n - hat) * d
        if n > 0:
            x_next = x + (n - hat) * (d + (x_next - D(x_next, n)) / n) / 2
        x = x_next
    return x


def k_euler_ancestral(D, x, eta=1.0):
    for i, (s, n) in enumerate(pairwise(LEVELS)):
        up = min(n, eta * (n**2 * (s**2 - n**2) / s**2) ** 0.5)
        down = (n**2 - up**2) ** 0.5
        x = x + (down - s) * (x - D(x, s)) / s + up * noise(i, x.shape)
    return x


def k_dpmpp_2m(D, x):
    """Lu et al. 2022b, algorithm 2, with t = -ln(sigma)."""
    old, h_last = None, None
    for s, n in pairwise(LEVELS):
        x0 = D(x, s)
        if n == 0:
            return x0
        h = np.log(s / n)
        mixed = x0 if old is None else (1 + h / (2 * h_last)) * x0 - h / (2 * h_last) * old
        x, old, h_last = n / s * x - np.expm1(-h) * mixed, x0, h
    return x


def k_dpmpp_2m_sde(D, x, eta=1.0):
    old, h_last = None, None
    for i, (s, n) in enumerate(pairwise(LEVELS)):
        x0 = D(x, s)
        if n == 0:
            return x0
        h = np.log(s / n)
        x = n / s * np.exp(-eta * h) * x - np.expm1(-h - eta * h) * x0
        if old is not None:
            x = x - 0.5 * np.expm1(-h - eta * h) * h / h_last * (x0 - old)
        x = x + n * (-np.expm1(-2 * eta * h)) ** 0.5 * noise(i, x.shape)
        old, h_last = x0, h
    return x


K_CASES = [
    ("euler", k_euler, {}, {}),
    ("heun", k_heun, {}, {}),
    (
        "heun",
        k_heun,
        {"churn": 3.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003},
        {"churn": 3.0, "low": 0.05, "high": 50.0, "s_noise": 1.003},
    ),
    ("euler_ancestral", k_euler_ancestral, {}, {}),
    ("euler_ancestral", k_euler_ancestral, {"eta": 0.5}, {"eta": 0.5}),
    ("euler_ancestral", k_euler_ancestral, {"eta": 1.5}, {"eta": 1.5}),
    ("dpmpp_2m", k_dpmpp_2m, {}, {}),
    ("dpmpp_2m_sde", k_dpmpp_2m_sde, {}, {}),
    ("dpmpp_2m_sde", k_dpmpp_2m_sde, {"eta": 0.4}, {"eta": 0.4}),
]


@pytest.mark.parametrize(("sampler", "rule", "options", "theirs"), K_CASES)
def test_the_rules_of_k_diffusion(sampler, rule, options, theirs):
    schedule, data, x = EDM(), MIXTURE[2], 80 * START[:, :2]
    times = torch.cat([schedule.time(-2 * SIGMAS.log()), torch.zeros(1)])
    ours = samplers.SAMPLERS[sampler](IdealDenoiser(data, schedule), x, times, key=KEY, **options)
    same(ours, rule(lambda x, s: data.denoise(x, 1.0, s), x, **theirs))
