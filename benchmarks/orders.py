"""`python -m benchmarks.orders`: the orders of convergence of the samplers, measured, and their quality against steps.

Writes docs/samplers.md, a table, and docs/samplers.png, a plot, in about a minute on one core. Both are of mixtures of Gaussians,
whose ideal denoiser, probability flow and distribution are known (tests/oracles.py).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen.functional import noise_key
from fastgen.samplers import SAMPLERS, karras_times
from fastgen.schedules import SCHEDULES
from tests.oracles import MIXTURE, IdealDenoiser, Mixture, flow, marginal


class Solver(NamedTuple):
    sampler: str
    options: dict
    order: int
    """What theory says of the error at a time, against the length of steps."""


# A predictor of order p with UniC's corrector is of order p + 1 (arXiv:2302.04867, theorem 3.1).
SOLVERS = {
    "euler": Solver("euler", {}, 1),
    "ddim": Solver("ddim", {}, 1),
    "euler_ancestral, eta 0": Solver("euler_ancestral", {"eta": 0.0}, 1),
    "heun": Solver("heun", {}, 2),
    "dpmpp_2m": Solver("dpmpp_2m", {}, 2),
    "dpmpp_2m_sde, eta 0": Solver("dpmpp_2m_sde", {"eta": 0.0}, 2),
    "unipc, order 1": Solver("unipc", {"order": 1}, 2),
    "unipc": Solver("unipc", {}, 3),
    "unipc, order 3": Solver("unipc", {"order": 3}, 3),
}
DOCS = Path(__file__).parents[1] / "docs"


def errors(solver: str, data: Mixture, schedule, start: float, end: float, steps: Sequence[int]) -> dict[int, float]:
    """The mean distance from the exact flow at t = end, by the number of equal steps in t."""
    x = marginal(data, schedule, 30, start)
    exact = flow(data, schedule, x, start, end)
    draw, options = SAMPLERS[SOLVERS[solver].sampler], SOLVERS[solver].options
    denoise, found = IdealDenoiser(data, schedule), {}
    for n in steps:
        times = torch.linspace(start, end, n + 1, dtype=torch.float64)
        found[n] = (draw(denoise, x, times, **options) - exact).norm(dim=1).mean().item()
    return found


def order(found: dict[int, float]) -> float:
    """The slope of the errors' logarithms between the last two numbers of steps."""
    (n, first), (m, second) = list(found.items())[-2:]
    return math.log(first / second) / math.log(m / n)


def table() -> list[str]:
    names = list(SCHEDULES)
    lines = [f"| sampler | theory | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for solver, (_, _, theory) in SOLVERS.items():
        orders = [order(errors(solver, MIXTURE[1], SCHEDULES[name](), 0.9, 0.1, (100, 200, 400))) for name in names]
        lines.append(f"| {solver} | {theory} | {' | '.join(f'{found:.2f}' for found in orders)} |")
    return lines


def sliced_distance(data: Mixture, x: Tensor, directions: int = 32) -> float:
    """The Wasserstein-2 distance of samples (N, 2) from the mixture along a line, the root of its mean square over directions:
    sorted samples against the exact quantiles."""
    total = 0.0
    for angle in torch.arange(directions, dtype=torch.float64) / directions * math.pi:
        direction = torch.stack([angle.cos(), angle.sin()])
        means, grid = data.means @ direction, torch.linspace(-4, 4, 20_001, dtype=torch.float64)
        cdf = (data.weights * torch.special.ndtr((grid[:, None] - means) / data.stds)).sum(1)
        place = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
        quantile = grid[torch.searchsorted(cdf, place).clamp(max=len(grid) - 1)]
        total += ((x @ direction).sort().values - quantile).square().mean().item()
    return math.sqrt(total / directions)
