"""Filling holes in images."""

from collections.abc import Callable
from typing import Unpack

import torch
from torch import Tensor

from fastgen import noise_streams
from fastgen.applications.batches import Label, check_images, draw_each, expect_run_of_images
from fastgen.config.sampling import Sampling, SamplingOptions, with_options
from fastgen.diffusion.conditions import Hole, with_hole
from fastgen.diffusion.denoiser import Denoise
from fastgen.diffusion.samplers import SAMPLERS, Callback
from fastgen.diffusion.schedules import Schedule
from fastgen.diffusion.time_grids import time_grid
from fastgen.errors import expect, lookup
from fastgen.functional import at, philox_normal
from fastgen.pixels import signed_to_uint8, uint8_to_signed
from fastgen.runs.run import Run


def inpaint(
    run: Run,
    images: Tensor,
    hole: Tensor,
    *,
    resample: int = 1,
    jump: int = 1,
    label: Label = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    settings: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """The images, uint8 (N, C, H, W), with the pixels inside `hole`, bool (N, 1, H, W), replaced by samples; all others are kept.

    resample: how often each stretch of `jump` steps is made, with steps back to noise between, so that the filling comes to fit
    its surroundings (RePaint). label: the class of the images, where that is known. guide, batch_size, callback, settings,
    options: as for Run.sample. The run may be one without a condition, or one trained with the condition hole.

    Raises ValueError for a run of values, images or a hole of another shape or dtype, resample or jump below 1, an unknown
    sampler, and whatever else Run.sample refuses; TypeError and FloatingPointError as Run.sample does.
    """
    expect("resample", resample, resample >= 1, "a whole number >= 1")
    expect("jump", jump, jump >= 1, "a whole number >= 1")
    expect_run_of_images(run)
    check_images("images", images, run.shape)
    expected = (len(images), 1, *run.shape[1:])
    fits = hole.dtype == torch.bool and tuple(hole.shape) == expected
    expect("hole", f"{str(hole.dtype).removeprefix('torch.')} {tuple(hole.shape)}", fits, f"bool {expected}")
    chosen = with_options(settings, options)
    sampler = lookup("sampler", chosen.sampler, SAMPLERS)

    def draw(image: Tensor, missing: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
        x0 = uint8_to_signed(image)
        beside = with_hole(x0, missing) if isinstance(run.condition, Hole) else None
        denoise = KnownElsewhere(run.denoiser(label, chosen, guide=guide, beside=beside), x0, missing)
        times = time_grid(denoise.schedule, chosen.times, chosen.steps, run.device)
        alpha, sigma = denoise.schedule.marginal(times[0])
        x = alpha * x0.masked_fill(missing, 0) + sigma * philox_normal(x0.shape, at(key, stream=noise_streams.START))
        x = repaint(sampler, denoise, x, times, key, resample=resample, jump=jump, callback=callback)
        return torch.where(missing, signed_to_uint8(x), image)

    return draw_each(run, draw, label, chosen.seed, batch_size, images, hole)


class KnownElsewhere:
    """denoise(x_t, t) that returns the known x0 (N, C, H, W) outside of the hole, bool (N, 1, H, W), and its estimate inside."""

    def __init__(self, denoise: Denoise, x0: Tensor, hole: Tensor):
        self.denoise, self.x0, self.hole = denoise, x0, hole

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the denoiser inside."""
        return self.denoise.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        x0_hat = self.denoise(x, t)
        return torch.where(self.hole, x0_hat, self.x0.to(x0_hat.dtype))


def repaint(
    sampler: Callable[..., Tensor],
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    key: Tensor,
    *,
    resample: int,
    jump: int,
    callback: Callback | None,
) -> Tensor:
    """The sampler over stretches of `jump` steps, each made `resample` times, going back to where it began between them (RePaint,
    Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1 and section 4.2). A sampler that remembers steps forgets them there."""
    jump = len(times) - 1 if resample == 1 else jump  # without going back it is the sampler as it is
    count = done = 0
    for first in range(0, len(times) - 1, jump):
        stretch = times[first : first + jump + 1]
        for again in range(resample):
            if again:
                again_key = at(key, stream=noise_streams.RESAMPLE, step=count)
                x = noised_again(denoise.schedule, x, stretch[-1:], stretch[:1], again_key)
            x = sampler(denoise, x, stretch, key=reseeded(key, count), callback=counting_on(callback, done))
            count, done = count + 1, done + len(stretch) - 1
    return x


def counting_on(callback: Callback | None, done: int) -> Callback | None:
    """The callback of a sampler that goes on after `done` steps."""
    return None if callback is None else lambda i, x, x0_hat: callback(done + i, x, x0_hat)


def noised_again(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, key: Tensor) -> Tensor:
    """A sample of q(x_t | x_s), s < t, each (1,): alpha_t / alpha_s · x_s plus noise of the variance that is missing."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.marginal(t), schedule.marginal(s)
    shrink = alpha_t / alpha_s
    deviation = (sigma_t**2 - (shrink * sigma_s) ** 2).clamp(min=0).sqrt()
    return (shrink * x + deviation * philox_normal(x.shape, key)).to(x.dtype)


def reseeded(key: Tensor, count: int) -> Tensor:
    """The key with another seed for each count: a sampler numbers the steps of every stretch from 0."""
    return torch.cat([key[:, :1] ^ (count * 0x9E3779B97F4A7C15 % 2**63), key[:, 1:]], dim=1)  # 2^64 over the golden ratio
