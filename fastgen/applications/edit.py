"""Changing images by noising them and drawing on (SDEdit, Meng et al. 2022, arXiv:2108.01073, algorithm 1)."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from fastgen import noise_streams
from fastgen.applications.batches import Callback, Label, check_images, expect_run_of_images, in_batches
from fastgen.config.sampling import Sampling
from fastgen.diffusion.generate import time_grid
from fastgen.diffusion.samplers import SAMPLERS
from fastgen.errors import expect, lookup
from fastgen.functional import at, q_sample
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
    **settings: Any,
) -> Tensor:
    """The images, uint8 (N, C, H, W), noised to t = strength in [0, 1] and drawn from there, under a label where one is given.

    strength 0 gives the images back, 1 draws new ones. The steps of the sampler that lie below strength are made. guide,
    batch_size, callback, settings: as for Run.sample. Raises ValueError for what the model cannot do.
    """
    expect_run_of_images(run)
    check_images("images", images, run.shape)
    options = Sampling(**settings)
    sampler = lookup("sampler", options.sampler, SAMPLERS)
    fewer = replace(options, steps=steps_of(strength, options.steps))

    def draw(rows: slice, key: Tensor, label: Tensor | None) -> Tensor:
        denoise = run.denoiser(label, options, guide=guide)
        if strength == 0:
            return images[rows]
        times = strength * time_grid(denoise.schedule, fewer, run.device)
        alpha, sigma = (f(times[0]).expand(len(key)) for f in (denoise.schedule.alpha, denoise.schedule.sigma))
        x0 = uint8_to_signed(images[rows].to(run.device))
        x = q_sample(x0, alpha, sigma, key=at(key, stream=noise_streams.START), target=None)
        return signed_to_uint8(sampler(denoise, x, times, key=key, callback=callback))

    return in_batches(run, len(images), label, options.seed, batch_size, draw)


def steps_of(strength: float, steps: int) -> int:
    """How many of `steps` lie below t = strength; one at least. Raises ValueError for a strength that is not in [0, 1]."""
    expect("strength", strength, 0 <= strength <= 1, "a number in [0, 1]")
    return max(1, round(strength * steps))
