"""Settings of drawing from a run: a frozen dataclass, free of torch, so that the command line answers at once."""

import math
from dataclasses import dataclass

from fastgen.errors import expect


@dataclass(frozen=True)
class Sampling:
    guidance: float = 1.0
    """Weight of guidance by the label; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts at LOW < t <= HIGH alone; t is 0 for images and 1 for noise."""
    rescale: float = 0.0
    """How much of the contrast that guidance adds is taken back, from 0 to 1."""
    negative: int | None = None
    """A class to guide away from; no class when not given."""
    steps: int = 25
    """Steps of the sampler."""
    sampler: str = "euler"
    """ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde or unipc."""
    times: str = "uniform"
    """Where the steps lie: uniform, quadratic, karras, log_snr or shifted."""
    seed: int = 0
    """Image i depends on the seed and i alone."""

    def __post_init__(self):
        expect("guidance", self.guidance, math.isfinite(self.guidance), "a finite number")
        low, high = self.interval
        expect("interval", self.interval, 0 <= low < high <= 1, "two numbers with 0 <= low < high <= 1")
        expect("rescale", self.rescale, 0 <= self.rescale <= 1, "a number in [0, 1]")
        expect("steps", self.steps, self.steps >= 1, "a whole number >= 1")
        expect("seed", self.seed, 0 <= self.seed < 2**63, "a whole number >= 0")
