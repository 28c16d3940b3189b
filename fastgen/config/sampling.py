"""Settings of drawing from a run: frozen dataclasses, free of torch, so that the command line answers at once."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypedDict, get_args

from fastgen.config import names
from fastgen.config.types import expect_types
from fastgen.errors import expect, lookup

if TYPE_CHECKING:
    from fastgen.config.names import SamplerName, TimeGridName
else:  # the command line takes any name, and Sampling says which one is near
    SamplerName = TimeGridName = str


@dataclass(frozen=True)
class Guidance:
    """How strongly guidance acts, and where. Raises ValueError for numbers out of range."""

    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Guidance acts at LOW < t <= HIGH alone; t is 0 for images and 1 for noise."""
    rescale: float = 0.0
    """How much of the contrast that guidance adds is taken back, from 0 to 1."""

    def __post_init__(self):
        expect_types(self)
        expect("guidance", self.guidance, math.isfinite(self.guidance), "a finite number")
        low, high = self.interval
        expect("interval", self.interval, 0 <= low < high <= 1, "two numbers with 0 <= low < high <= 1")
        expect("rescale", self.rescale, 0 <= self.rescale <= 1, "a number in [0, 1]")


@dataclass(frozen=True)
class Sampling(Guidance):
    """How a run is drawn from. Raises ValueError for numbers out of range."""

    negative: str | int | None = None
    """The negative class of classifier-free guidance, by name or number; the unconditional model when not given."""
    steps: int = 25
    """Steps of the sampler."""
    sampler: SamplerName = "euler"
    """ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde or unipc."""
    times: TimeGridName = "uniform"
    """The sampler's time grid: uniform, quadratic, karras, log_snr or shifted."""
    seed: int = 0
    """Image i depends on the seed and i alone."""

    def __post_init__(self):
        super().__post_init__()
        expect("steps", self.steps, self.steps >= 1, "a whole number >= 1")
        expect("steps", self.steps, self.steps <= 1_000_000, "a number up to 1,000,000")
        lookup("sampler", self.sampler, dict.fromkeys(get_args(names.SamplerName)))
        lookup("times", self.times, dict.fromkeys(get_args(names.TimeGridName)))
        expect("seed", self.seed, 0 <= self.seed < 2**63, "a whole number >= 0")


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keywords of the functions that draw."""

    guidance: float
    interval: tuple[float, float]
    rescale: float
    negative: str | int | None
    steps: int
    sampler: SamplerName
    times: TimeGridName
    seed: int


def with_options(settings: Sampling | None, options: SamplingOptions) -> Sampling:
    """The settings, the defaults when None, with the options over them. Raises ValueError for numbers out of range, TypeError for
    an option that there is not."""
    settings = Sampling() if settings is None else settings
    return replace(settings, **options) if options else settings
