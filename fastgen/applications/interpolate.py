"""From one image to another through the noise that gives them (DDIM, Song et al. 2021, arXiv:2010.02502, section 5.3)."""

from typing import Any

import torch
from torch import Tensor

from fastgen.applications.batches import Callback, check_images, expect_run_of_images, in_batches
from fastgen.config.sampling import Sampling
from fastgen.diffusion.denoiser import Denoiser
from fastgen.diffusion.generate import time_grid
from fastgen.diffusion.samplers import ddim
from fastgen.errors import expect
from fastgen.functional import sampler_step
from fastgen.pixels import signed_to_uint8, uint8_to_signed
from fastgen.runs.run import Run


def interpolate(
    run: Run,
    a: Tensor,
    b: Tensor,
    n: int = 8,
    *,
    label: int | None = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """n images from a to b, each uint8 (C, H, W): uint8 (n, C, H, W). The first and the last are a and b as the model gives them
    back, the nearer the more steps are made.

    label: of both, where they have the same. guide, batch_size, callback, settings: as for Run.sample, but for the sampler, which
    is DDIM. Raises ValueError for what the model cannot do.
    """
    expect("n", n, n >= 2, "a whole number >= 2")
    expect_run_of_images(run)
    check_images("a", a[None], run.shape)
    check_images("b", b[None], run.shape)
    options = Sampling(**settings)
    expect("sampler", options.sampler, options.sampler in ("ddim", "euler"), "ddim, the one that is followed backwards")
    weights = torch.linspace(0, 1, n, device=run.device)

    def ends(rows: slice, key: Tensor, label: Tensor | None) -> Tensor:
        x0 = uint8_to_signed(torch.stack([a, b])[rows].to(run.device))
        denoise = run.denoiser(label, options, guide=guide)
        return invert(denoise, x0, time_grid(denoise.schedule, options, run.device))

    noise = in_batches(run, 2, label, options.seed, batch_size, ends).to(run.device)

    def draw(rows: slice, key: Tensor, label: Tensor | None) -> Tensor:
        x = slerp(noise[:1], noise[1:], weights[rows])
        denoise = run.denoiser(label, options, guide=guide)
        return signed_to_uint8(ddim(denoise, x, time_grid(denoise.schedule, options, run.device), callback=callback))

    return in_batches(run, n, label, options.seed, batch_size, draw)


def invert(denoise: Denoiser, x: Tensor, times: Tensor) -> Tensor:
    """The noise at times[0] from which DDIM comes to x at times[-1] (equation 14, backwards): each step takes eps_hat, which it
    would have taken at its far end, from its near one."""
    alpha, sigma = denoise.schedule.marginal(times)
    grow = alpha[:-1] / alpha[1:]
    eps = (sigma[:-1] - grow * sigma[1:]) / sigma[:-1]  # times x - alpha · x0_hat
    zero = torch.zeros_like(eps)
    coefficients = torch.stack([grow + eps, -eps * alpha[:-1], zero, zero], dim=1)
    for i in reversed(range(len(times) - 1)):
        x = sampler_step(x, denoise(x, times[i]), coefficients[i])
    return x


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The points at `weight` (n,) of the arc from a to b, each (1, *S): (n, *S) (Shoemake 1985). Parallel ends are a line."""
    angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1))
    weight = weight.view(-1, *[1] * (a.dim() - 1))
    arc = ((1 - weight) * angle).sin() * a + (weight * angle).sin() * b
    return torch.where(angle.sin() > 1e-6, arc / angle.sin(), torch.lerp(a, b, weight))
