"""The orders of convergence of the samplers, measured, and the quality of their samples against the number of steps:

    python -m benchmarks.studies.samplers

writes docs/samplers.md, a table, and docs/samplers.png, a plot, in about a minute on one core. The data are mixtures of
Gaussians, whose ideal denoiser, probability flow and distribution are known (benchmarks/studies/oracles.py).
"""

import argparse
import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness.environment import ROOT
from benchmarks.studies.oracles import DATA, IdealDenoiser, Mixture, flow, marginal
from fastgen.diffusion.samplers import SAMPLERS, karras_times
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.functional import noise_key


class Solver(NamedTuple):
    """A sampler with options under which its order is known."""

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
DOCS = ROOT / "docs"


@functools.cache
def problem(data: str, schedule: str, start: float, end: float) -> tuple[IdealDenoiser, Tensor, Tensor]:
    """An ideal denoiser, samples at t = start, and where the exact flow takes them at t = end."""
    denoise = IdealDenoiser(DATA[data], SCHEDULES[schedule]())
    x = marginal(denoise.data, denoise.schedule, 30, start)
    return denoise, x, flow(denoise.data, denoise.schedule, x, start, end)


def errors(solver: str, data: str, schedule: str, start: float, end: float, steps: Sequence[int]) -> dict[int, float]:
    """The mean distance from the exact flow at t = end, by the number of equal steps in t."""
    denoise, x, exact = problem(data, schedule, start, end)
    draw, options = SAMPLERS[SOLVERS[solver].sampler], SOLVERS[solver].options
    grids = {n: torch.linspace(start, end, n + 1, dtype=torch.float64) for n in steps}
    return {n: (draw(denoise, x, times, **options) - exact).norm(dim=1).mean().item() for n, times in grids.items()}


def order(found: dict[int, float]) -> float:
    """The slope of the errors' logarithms between the last two numbers of steps."""
    (n, first), (m, second) = list(found.items())[-2:]
    return math.log(first / second) / math.log(m / n)


def table() -> list[str]:
    """The measured orders in Markdown, a row a sampler, a column a schedule."""
    names = list(SCHEDULES)
    lines = [f"| sampler | theory | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for solver, (_, _, theory) in SOLVERS.items():
        orders = [order(errors(solver, "mixture-1", name, 0.9, 0.1, (200, 400))) for name in names]
        lines.append(f"| {solver} | {theory} | {' | '.join(f'{found:.2f}' for found in orders)} |")
    return lines


def sliced_distance(data: Mixture, x: Tensor, directions: int = 16) -> float:
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


def plot(path: Path) -> None:
    """Distance from the data against evaluations of the denoiser, a line a sampler, on three schedules."""
    from matplotlib.figure import Figure

    data, n = DATA["mixture-2"], 10_000
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    floor = sliced_distance(data, data.sample(n))
    for axes, name in zip(figure.subplots(1, 3, sharey=True), ("rectified_flow", "cosine", "edm"), strict=True):
        schedule = SCHEDULES[name]()
        denoise, x, key = IdealDenoiser(data, schedule), marginal(data, schedule, n), noise_key(0, samples=n)
        for sampler, draw in SAMPLERS.items():
            calls, distances = [], []
            for steps in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48):
                count = Counting(denoise)
                x0 = draw(count, x, karras_times(schedule, steps).double(), key=key)
                calls.append(count.calls)
                distances.append(sliced_distance(data, x0))
            axes.loglog(calls, distances, STYLES[sampler], label=sampler, markersize=4)
        axes.axhline(floor, color="grey", linestyle=":", label=f"{n:,} exact samples")
        axes.set(title=name, xlabel="evaluations of the denoiser", ylim=(floor / 2, 3))
        axes.set_xticks([2, 4, 8, 16, 32, 64], ["2", "4", "8", "16", "32", "64"], minor=False)
        axes.minorticks_off()
    axes.legend(fontsize=8)
    figure.supylabel("sliced Wasserstein-2 distance from the data")
    figure.savefig(path, dpi=110)


class Counting:
    """A denoiser that counts its evaluations."""

    def __init__(self, denoise: IdealDenoiser):
        self.denoise, self.schedule, self.calls = denoise, denoise.schedule, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.denoise(x, t)


STYLES = {
    "ddpm": "C0s-",
    "ddim": "C1o-",
    "euler": "C2x--",
    "euler_ancestral": "C3+--",
    "heun": "C4^-",
    "dpmpp_2m": "C5v-",
    "dpmpp_2m_sde": "C6D-",
    "unipc": "C7*-",
}

TEXT = """# Samplers, measured

`python -m benchmarks.studies.samplers` made this page, on data whose ideal denoiser, probability flow and distribution are known.

## Orders of convergence

The error of a sampler falls as steps^-order. Measured between 200 and 400 equal steps from t = 0.9 to t = 0.1, in fp64, on a
mixture of two Gaussians in one dimension, against the probability-flow ODE solved to 1e-11. Stochastic samplers are here without
their noise (eta 0); with it they have no order of this kind.

{table}

UniPC's predictor and corrector together are an order above the predictor's, which is what its option `order` counts (2 unless
given). At order 3 its first two steps, of lower order, allow no more than 3 in the limit; their part is still small here.

To t = 0 the samplers keep their orders on `edm`. On a chain of betas sigma rises as the root of t, so that in equal steps of t
the last few rule the error: take `karras_times` or `log_snr_times`.

## Quality against steps

![Distance from the data against evaluations](samplers.png)

The distance of 10,000 samples of a mixture of three Gaussians in the plane from their distribution, with `karras_times` from
t = 1 to t = 0. Heun evaluates the denoiser twice a step. The dotted line is what exact samples have by chance.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.samplers", description=__doc__.partition(":\n")[0])
    parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = "\n".join(table())
    print(lines)
    (DOCS / "samplers.md").write_text(TEXT.format(table=lines))
    plot(DOCS / "samplers.png")


if __name__ == "__main__":
    main()
