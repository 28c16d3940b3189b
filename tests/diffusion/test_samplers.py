"""What every sampler does alike: batches, callbacks, dtypes, end points, bad input. test_oracle_samplers.py: what they draw."""

import math
from itertools import product

import pytest
import torch

from benchmarks.studies.oracles import DATA, IdealDenoiser, marginal
from fastgen import Diffusion, noise_streams, samplers
from fastgen.config.sampling import Sampling
from fastgen.diffusion.likelihood import log_likelihood, vlb
from fastgen.diffusion.samplers import SAMPLERS, TIME_GRIDS, generate, uniform_times
from fastgen.diffusion.schedules import SCHEDULES, Discrete, cosine, linear, zero_terminal_snr
from fastgen.functional import at, noise_key, philox_normal

STOCHASTIC = {"ddpm": {}, "ddim": {"eta": 0.7}, "euler_ancestral": {"eta": 0.7}, "heun": {"churn": 4.0}, "dpmpp_2m_sde": {}}


def ideal(schedule="cosine", data="mixture-2"):
    return IdealDenoiser(DATA[data], SCHEDULES[schedule]())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sample_does_not_depend_on_its_batch(sampler):
    denoise, options = ideal(), STOCHASTIC.get(sampler, {})
    x, key = torch.randn(8, 2), noise_key(5, samples=8)
    whole = SAMPLERS[sampler](denoise, x, uniform_times(10), key=key, **options)
    alone = SAMPLERS[sampler](denoise, x[5:6], uniform_times(10), key=key[5:6], **options)
    torch.testing.assert_close(alone, whole[5:6])


@pytest.mark.parametrize("sampler", STOCHASTIC)
def test_the_key_alone_makes_the_noise(sampler):
    def draw(**key):
        return SAMPLERS[sampler](ideal(), x, uniform_times(10), **STOCHASTIC[sampler], **key)

    x, key = torch.randn(4, 2), noise_key(5, samples=4)
    assert torch.equal(draw(key=key), draw(key=key))
    assert not torch.allclose(draw(key=key), draw(key=noise_key(6, samples=4)), atol=1e-2)
    torch.manual_seed(1)
    first = draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_callback_sees_every_step_and_the_last_is_the_result(sampler):
    seen = []
    x0 = SAMPLERS[sampler](
        ideal(), torch.randn(2, 2), uniform_times(5), callback=lambda i, x, x0_hat: seen.append((i, x, x0_hat))
    )
    assert [i for i, _, _ in seen] == list(range(5))
    assert torch.equal(seen[-1][1], x0)
    assert all(x0_hat.abs().max() < 3 for _, _, x0_hat in seen)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_from_end_to_end_every_coefficient_is_finite(sampler, schedule):
    """sigma = 0 at t = 0, and no signal at t = 1 of some: one step is the ideal denoiser itself."""
    denoise = ideal(schedule)
    x = marginal(denoise.data, denoise.schedule, 16)
    for steps, times in product((1, 3), TIME_GRIDS.values()):
        x0 = SAMPLERS[sampler](denoise, x, times(denoise.schedule, steps), **STOCHASTIC.get(sampler, {}))
        assert x0.isfinite().all()
        assert x0.abs().max() < 2.5 or sampler == "heun"  # whose mean of two slopes overshoots in long steps
        if steps == 1 and sampler != "heun":  # which churns
            torch.testing.assert_close(x0, denoise(x, torch.ones(())))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_steps_that_change_no_noise_change_nothing(sampler):
    """A chain with a beta of 0, or with more steps than it has levels."""
    schedule = Discrete(torch.tensor([0.1, 0.0, 0.3, 0.999]), stepwise=True)
    denoise = IdealDenoiser(DATA["mixture-2"], schedule)
    x, once = torch.randn(4, 2, dtype=torch.float64), torch.tensor([1.0, 0.75, 0.25, 0.0])
    more = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0])
    options = {"eta": 0.0} if sampler == "dpmpp_2m_sde" else {}
    result = SAMPLERS[sampler](denoise, x, more, key=noise_key(0, samples=4), **options)
    assert result.isfinite().all()
    if sampler in ("euler", "ddim", "heun"):
        torch.testing.assert_close(result, SAMPLERS[sampler](denoise, x, once, **options))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_last_step_without_signal_may_be_cut(sampler):
    schedule = Discrete(torch.tensor([0.1, 0.5, 1.0]))
    denoise = IdealDenoiser(DATA["mixture-2"], schedule)
    assert SAMPLERS[sampler](denoise, torch.randn(4, 2), uniform_times(9)).isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_bf16_samples_stay_bf16(sampler):
    x = SAMPLERS[sampler](ideal("rectified_flow"), torch.randn(4, 2, dtype=torch.bfloat16), uniform_times(4))
    assert x.dtype == torch.bfloat16


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
    noise = philox_normal(x.shape, at(key, stream=noise_streams.SAMPLER, step=0), dtype=torch.float64)
    expected = mean + variance.sqrt() * noise
    torch.testing.assert_close(samplers.ddpm(denoise, x, times, key=key), expected, rtol=1e-9, atol=1e-12)


def test_churn_goes_back_as_the_paper_says():
    """The first evaluation of a step is at sigma_hat = (1 + gamma)·sigma, on x with noise of that deviation."""
    seen = []
    schedule = SCHEDULES["edm"]()

    def denoise(x, t):
        seen.append((x, schedule.sigma(t.double()).item()))
        return torch.zeros_like(x)

    denoise.schedule = schedule
    times = schedule.time(-2 * torch.tensor([10.0, 2.0, 0.5], dtype=torch.float64).log())
    x = torch.zeros(50_000, 1, dtype=torch.float64)
    samplers.heun(denoise, x, times, churn=0.5, churn_min=1.0, churn_max=5.0, churn_noise=0.9, key=noise_key(0, samples=50_000))
    levels = [level for _, level in seen]
    assert levels == pytest.approx([10, 2, 2.5, 0.5])
    assert seen[2][0].std().item() == pytest.approx(0.9 * math.sqrt(2.5**2 - 2**2), rel=0.02)
    seen.clear()
    samplers.heun(denoise, x, times, churn=100.0)
    assert seen[2][1] == pytest.approx(2 * math.sqrt(2))  # gamma is at most sqrt(2) - 1


def test_heun_takes_two_evaluations_but_for_the_last_step():
    calls = []
    denoise = ideal("edm")

    def counting(x, t):
        calls.append(t)
        return denoise(x, t)

    counting.schedule = denoise.schedule
    samplers.heun(counting, torch.randn(2, 2), uniform_times(9))
    assert len(calls) == 17


# The time grids


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", TIME_GRIDS)
def test_grids_fall_from_one_to_zero(name, schedule):
    for steps in (1, 2, 25, 100):
        times = TIME_GRIDS[name](SCHEDULES[schedule](), steps)
        assert times.shape == (steps + 1,)
        assert times.dtype == torch.float32
        assert (times[0], times[-1]) == (1, 0)
        assert (times.diff() < 0).all()


def test_quadratic_and_shifted_follow_their_formulas():
    u = 1 - torch.arange(6) / 5
    torch.testing.assert_close(samplers.quadratic_times(5), u**2)
    torch.testing.assert_close(samplers.shifted_times(5), 3 * u / (1 + 2 * u))
    torch.testing.assert_close(samplers.shifted_times(5, shift=1.0), u)


def test_karras_times_are_the_papers_on_edm():
    schedule, i = SCHEDULES["edm"](), torch.arange(18, dtype=torch.float64)
    papers = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(schedule.sigma(samplers.karras_times(schedule, 18)[:-1].double()), papers, rtol=1e-4, atol=0)


def test_log_snr_times_are_equal_steps_of_log_snr():
    for name in ("edm", "linear"):
        schedule = SCHEDULES[name]()
        rises = schedule.log_snr(samplers.log_snr_times(schedule, 20, sigma_max=1e4)[:-1].double()).diff()
        torch.testing.assert_close(rises, rises.mean().expand(19), rtol=1e-2, atol=0)


# Bad input


@pytest.mark.parametrize("steps", [0, -5, 1.5])
@pytest.mark.parametrize("grid", TIME_GRIDS)
def test_steps_that_are_none_are_named(grid, steps):
    with pytest.raises(ValueError, match=f"^steps: expected a whole number >= 1, got {steps}$"):
        TIME_GRIDS[grid](SCHEDULES["cosine"](), steps)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("ddim", {"eta": 2}, r"eta: expected a number in \[0, 1\], got 2"),
        ("ddim", {"eta": -0.1}, r"eta: expected a number in \[0, 1\], got -0.1"),
        ("ddim", {"eta": math.nan}, r"eta: expected a number in \[0, 1\], got nan"),
        ("euler_ancestral", {"eta": -1}, "eta: expected a finite number >= 0, got -1"),
        ("dpmpp_2m_sde", {"eta": -1}, "eta: expected a finite number >= 0, got -1"),
        ("unipc", {"order": 4}, "order: expected 1, 2 or 3, got 4"),
        ("heun", {"churn": -1}, "churn: expected a finite number >= 0, got -1"),
        ("heun", {"churn_min": -1}, r"churn_min, churn_max: expected numbers >= 0, got \(-1, inf\)"),
        ("heun", {"churn_noise": math.nan}, "churn_noise: expected a finite number >= 0, got nan"),
    ],
)
def test_bad_options_are_named(sampler, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        SAMPLERS[sampler](ideal(), torch.randn(1, 2), uniform_times(2), **options)


FALLING = "numbers in [0, 1], each below the one before, got"
TIMES = [
    ([1.0, 0.3, 0.4, 0.0], f"{FALLING} 0.3, 0.4 at 1"),
    ([1.0, 0.5, 0.5, 0.0], f"{FALLING} 0.5, 0.5 at 1"),
    ([0.0, 0.5, 1.0], f"{FALLING} 0, 0.5 at 0"),
    ([2.0, 0.5, 0.0], f"{FALLING} 2, 0.5 at 0"),
    ([1.0, 0.5, -0.1], f"{FALLING} 0.5, -0.1 at 1"),
    ([1.0, math.nan, 0.0], f"{FALLING} 1, nan at 0"),
    ([1.0], "a vector of at least two numbers, got (1,)"),
    ([[1.0, 0.0]], "a vector of at least two numbers, got (1, 2)"),
]


@pytest.mark.parametrize(
    ("sampler", "times", "message"),
    [("ddim", *case) for case in TIMES] + [(name, *TIMES[0]) for name in SAMPLERS if name != "ddim"],
)
def test_times_that_do_not_fall_are_named(sampler, times, message):
    with pytest.raises(ValueError, match=r"^times: expected") as error:
        SAMPLERS[sampler](ideal(), torch.randn(1, 2), torch.tensor(times))
    assert str(error.value) == f"times: expected {message}"


@pytest.mark.parametrize(("sampler", "value"), [(name, math.nan) for name in SAMPLERS] + [("euler", math.inf)])
def test_what_a_model_breaks_is_named_with_its_step(sampler, value):
    denoise = ideal()

    def breaking(x, t):
        x0 = denoise(x, t)
        x0[1, 0] = torch.where(t < 0.35, value, x0[1, 0])  # first evaluated in step 8 of 10, by heun in the second half of 7
        return x0

    breaking.schedule = denoise.schedule
    place = "7 of 10, from t = 0.4" if sampler == "heun" else "8 of 10, from t = 0.3"
    with pytest.raises(FloatingPointError, match=f"^denoise: expected finite numbers, got NaN or infinity in step {place}$"):
        SAMPLERS[sampler](breaking, torch.randn(2, 2), uniform_times(10))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_step_waits_for_the_host(sampler, monkeypatch):
    """From the first evaluation to the last step no tensor is read by item, tolist, bool, int, float or a copy to the CPU."""
    inside, read = [False], []

    def spied(name, method):
        def spy(self, *arguments, **options):
            if inside[0]:
                read.append(name)
            return method(self, *arguments, **options)

        return spy

    monkeypatch.setattr("fastgen_kernels.checks.has_values", lambda x: False)  # as on a GPU
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "cpu"):
        monkeypatch.setattr(torch.Tensor, name, spied(name, getattr(torch.Tensor, name)))
    schedule, calls = SCHEDULES["edm"](), []

    def denoise(x, t):
        inside[0] = True
        calls.append(t)
        return x / 2

    denoise.schedule = schedule

    def callback(i, x, x0_hat):
        inside[0] = i < 9

    SAMPLERS[sampler](denoise, torch.randn(2, 2), uniform_times(10), callback=callback)
    assert len(calls) >= 10
    assert read == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_heun_draws_the_same_where_the_host_may_not_read(schedule, monkeypatch):
    """While a CUDA graph is captured it cannot leave out second stages: they have no weight."""
    denoise, x = ideal(schedule), torch.randn(4, 2, dtype=torch.float64)
    expected = samplers.heun(denoise, x, uniform_times(8))
    monkeypatch.setattr("fastgen.diffusion.samplers.host_may_read", lambda x: False)
    torch.testing.assert_close(samplers.heun(denoise, x, uniform_times(8)), expected)


class Net(torch.nn.Module):
    def forward(self, x, t):
        return x


@pytest.mark.parametrize(("denoise", "found"), [(lambda x, t: x, "function .*<lambda>"), (Net(), "Net"), (3, "int")])
def test_what_is_no_denoise_is_named(denoise, found):
    x, settings = torch.zeros(1, 1, 2, 2), Sampling(steps=2)
    expected = rf"^denoise: expected a callable with a \.schedule, as Diffusion\.denoiser makes it, got {found}$"
    for call in (
        lambda: samplers.euler(denoise, x, uniform_times(2)),
        lambda: generate(denoise, (1, 2, 2), noise_key(0, samples=1), settings),
        lambda: log_likelihood(denoise, x, uniform_times(2)[:-1]),
        lambda: vlb(denoise, x, uniform_times(2)[:-1]),
    ):
        with pytest.raises(TypeError, match=expected):
            call()


def test_denoiser_and_sampler_fit_together():
    class Zero(torch.nn.Module):
        num_classes = None

        def forward(self, x, t, label=None, context=None):
            assert t.shape == (len(x),)
            return torch.zeros_like(x)

    diffusion = Diffusion("rectified_flow", "x0")
    assert (samplers.euler(diffusion.denoiser(Zero()), torch.randn(3, 1, 4, 4), uniform_times(3)) == 0).all()


@pytest.mark.parametrize("grid", ["karras", "log_snr"])
@pytest.mark.parametrize(
    "chain", [linear(3), linear(10), linear(100), cosine(100), cosine()], ids=lambda chain: str(len(chain.betas))
)
def test_grids_fall_on_short_chains_with_zero_terminal_snr(chain, grid):
    """Beyond the last level with any signal, all noise is at t = 1."""
    for steps in (1, 2, 20, 100):
        times = TIME_GRIDS[grid](zero_terminal_snr(chain), steps)
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()
