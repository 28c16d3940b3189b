"""Changing images by noising them and drawing on (SDEdit, Meng et al. 2022, arXiv:2108.01073, algorithm 1), or their codes."""

import math
from typing import Unpack

from torch import Tensor

from fastgen import noise_streams
from fastgen.applications.batches import Label, check_images, draw_each, expect_run_of_images, expect_unguided
from fastgen.config.sampling import Sampling, SamplingOptions, with_options
from fastgen.diffusion.samplers import SAMPLERS, Callback
from fastgen.diffusion.time_grids import time_grid
from fastgen.errors import expect, lookup
from fastgen.functional import at, philox_normal, q_sample
from fastgen.pixels import signed_to_uint8, uint8_to_signed
from fastgen.runs.run import Run


def edit(
    run: Run,
    images: Tensor,
    strength: float,
    *,
    label: Label = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    settings: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """The images, uint8 (N, C, H, W), noised to t = strength in [0, 1] and denoised from there, under a label where one is given.

    strength 0 gives the images back, 1 draws new ones. Only the sampler's steps below t = strength are made. A VAE decodes
    sqrt(1 - strength²)·mu + strength·eps in place of each image's code mu: strength 0 gives its reconstruction, 1 a draw from the
    prior; it takes no steps and no label. guide, batch_size, callback, settings, options: as for Run.sample.

    Raises ValueError for a run of values, images of another shape or dtype, a strength outside of [0, 1], an unknown sampler, and
    whatever else Run.sample refuses; TypeError and FloatingPointError as Run.sample does.
    """
    expect_run_of_images(run)
    check_images("images", images, run.shape)
    chosen = with_options(settings, options)
    sampler = lookup("sampler", chosen.sampler, SAMPLERS)
    steps = steps_below(strength, chosen.steps)
    if run.diffusion is None:
        expect_unguided(chosen, guide)

        def change(images: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
            mu, _ = run.vae.encode(images)
            eps = philox_normal(mu.shape, at(key, stream=noise_streams.START))
            return run.images_of(run.vae.decode(math.sqrt(1 - strength**2) * mu + strength * eps))

        return draw_each(run, change, label, chosen.seed, batch_size, images)

    def draw(images: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
        denoise = run.denoiser(label, chosen, guide=guide)
        if strength == 0:
            return images
        times = strength * time_grid(denoise.schedule, chosen.times, steps, run.device)
        alpha, sigma = (level.expand(len(key)) for level in denoise.schedule.marginal(times[0]))
        x = q_sample(uint8_to_signed(images), alpha, sigma, key=at(key, stream=noise_streams.START), target=None)
        return signed_to_uint8(sampler(denoise, x, times, key=key, callback=callback))

    return draw_each(run, draw, label, chosen.seed, batch_size, images)


def steps_below(strength: float, steps: int) -> int:
    """How many of `steps` lie below t = strength; one at least. Raises ValueError for a strength that is not in [0, 1]."""
    expect("strength", strength, 0 <= strength <= 1, "a number in [0, 1]")
    return max(1, round(strength * steps))
