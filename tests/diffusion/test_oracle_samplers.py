"""What the samplers draw, against exact flows and marginals: their orders of convergence, and their distributions."""

import math

import pytest
import torch

from benchmarks.studies.oracles import DATA, IdealDenoiser, marginal
from benchmarks.studies.samplers import SOLVERS, errors, order, problem
from fastgen.diffusion.samplers import SAMPLERS, karras_times, uniform_times
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import noise_key

SOLVERS_AND_SCHEDULES = [  # each solver on three schedules, each schedule with three solvers or more
    (solver, schedule)
    for i, solver in enumerate(SOLVERS)
    for j, schedule in enumerate(SCHEDULES)
    if (j - 2 * i) % len(SCHEDULES) in (0, 1, 3)
]


@pytest.mark.parametrize(("solver", "schedule"), SOLVERS_AND_SCHEDULES)
def test_the_order_of_convergence_is_the_theorys(solver, schedule):
    """Within the grid, on t from 0.9 to 0.1, where every derivative is finite."""
    found = order(errors(solver, "mixture-1", schedule, 0.9, 0.1, (100, 200)))
    assert found > SOLVERS[solver].order - 0.15
    if SOLVERS[solver].order <= 2:  # UniPC's error may change sign, and its order seem higher
        assert found < SOLVERS[solver].order + 0.25


@pytest.mark.parametrize(("solver", "least"), [("euler", 0.9), ("ddim", 0.9), ("heun", 1.9), ("dpmpp_2m", 1.9), ("unipc", 2.7)])
def test_the_order_holds_from_end_to_end_on_edm(solver, least):
    assert order(errors(solver, "mixture-2", "edm", 1.0, 0.0, (75, 150))) > least


@pytest.mark.parametrize(("solver", "schedule"), SOLVERS_AND_SCHEDULES)
def test_from_end_to_end_many_steps_come_to_the_exact_flow(solver, schedule):
    denoise, x, exact = problem("mixture-2", schedule, 1.0, 0.0)
    sampler, options = SAMPLERS[SOLVERS[solver].sampler], SOLVERS[solver].options
    drawn = sampler(denoise, x, karras_times(denoise.schedule, 100).double(), **options)
    assert (drawn - exact).abs().max() < (0.15 if SOLVERS[solver].order == 1 else 0.03)


# Stochastic samplers


def cdf(data, x, direction, alpha, sigma):
    """The distribution function of x_t along a direction."""
    means, stds = alpha * data.means @ direction, (alpha**2 * data.stds**2 + sigma**2).sqrt()
    return (data.weights * torch.special.ndtr((x[:, None] - means) / stds)).sum(1)


def largest_difference(data, x, alpha, sigma):
    """Of Kolmogorov and Smirnov, the largest over some directions."""
    n, found = len(x), []
    for angle in (0.0, 0.25, 0.5, 0.75):
        direction = torch.tensor([math.cos(angle * math.pi), math.sin(angle * math.pi)], dtype=torch.float64)
        exact = cdf(data, (x @ direction).sort().values, direction, alpha, sigma)
        place = torch.arange(n + 1, dtype=torch.float64) / n
        found.append(max((exact - place[:-1]).max(), (place[1:] - exact).max()).item())
    return max(found)


STOCHASTIC = [
    ("ddpm", {}),
    ("ddim", {"eta": 0.5}),
    ("ddim", {"eta": 1.0}),
    ("euler_ancestral", {}),
    ("heun", {"churn": 20.0}),
    ("dpmpp_2m_sde", {}),
    ("dpmpp_2m_sde", {"eta": 0.5}),
]


@pytest.mark.parametrize("schedule", ["linear", "rectified_flow", "edm"])
@pytest.mark.parametrize(("sampler", "options"), STOCHASTIC)
def test_noise_keeps_the_marginals(sampler, options, schedule):
    """At a third and two thirds of the way and at the end, along four directions: by Dvoretzky, Kiefer and Wolfowitz an exact
    sampler is further off than sqrt(log(2 / p) / 2n) with probability p < 1e-7, 0.041 for n = 5,000; the steps may add 0.02."""
    data, schedule, n = DATA["mixture-2"], SCHEDULES[schedule](), 5000
    times, seen = karras_times(schedule, 60).double(), []
    bound = math.sqrt(math.log(2 / 1e-7) / (2 * n)) + 0.02

    def look(i, x, x0_hat):
        if i in (19, 39, 59):
            alpha, sigma = schedule.alpha(times[i + 1]), schedule.sigma(times[i + 1])
            seen.append(largest_difference(data, x, alpha, sigma))

    x, key = marginal(data, schedule, n), noise_key(2, samples=n)
    SAMPLERS[sampler](IdealDenoiser(data, schedule), x, times, key=key, callback=look, **options)
    assert len(seen) == 3
    assert max(seen) < bound


def test_the_bound_on_marginals_would_notice():
    """Noise 0.35 for 0.5, or a mean a seventh of a deviation off."""
    data, n = DATA["mixture-2"], 5000
    x = marginal(data, SCHEDULES["rectified_flow"](), n, 0.5)
    bound = math.sqrt(math.log(2 / 1e-7) / (2 * n))
    assert largest_difference(data, x, 0.5, 0.5) < bound
    assert largest_difference(data, x, 0.5, 0.35) > bound + 0.02
    assert largest_difference(data, x + 0.08, 0.5, 0.5) > bound + 0.02


@pytest.mark.parametrize("sampler", ["ddpm", "euler_ancestral", "dpmpp_2m_sde"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_noise_keeps_the_datas_moments_on_every_schedule(sampler, schedule):
    data, n = DATA["gaussian-1"], 2000
    schedule = SCHEDULES[schedule]()
    x0 = SAMPLERS[sampler](
        IdealDenoiser(data, schedule), marginal(data, schedule, n), uniform_times(60).double(), key=noise_key(2, samples=n)
    )
    assert abs(x0.mean() - 0.5) < 0.035  # five standard errors
    assert abs(x0.std() - 0.3) < 0.025 + 0.015  # and what the steps add
