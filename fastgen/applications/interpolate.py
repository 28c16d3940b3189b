"""From one image to another through the noise that gives them (DDIM, Song et al. 2021, arXiv:2010.02502, section 5.3), or
through a VAE's codes."""

from typing import Unpack

import torch
from torch import Tensor

from fastgen.applications.batches import Label, check_images, draw_each, expect_run_of_images, expect_unguided
from fastgen.config.sampling import Sampling, SamplingOptions, with_options
from fastgen.diffusion.denoiser import Denoise
from fastgen.diffusion.samplers import Callback, coefficients, ddim, no_callback
from fastgen.diffusion.time_grids import time_grid
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
    label: Label = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    settings: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """n images from a to b, each uint8 (C, H, W): uint8 (n, C, H, W). The first and the last are a and b as DDIM reconstructs
    them: more steps reconstruct them better. A VAE decodes the arc between their codes, the means of q(z | x), whose ends are its
    reconstructions; it takes no steps and no label.

    label: the class of both, where they have the same. guide, batch_size, callback, settings, options: as for Run.sample, except
    that the sampler must be "ddim" or "euler".

    Raises ValueError for n below 2, a run of values, images of another shape or dtype, another sampler, and whatever else
    Run.sample refuses; TypeError and FloatingPointError as Run.sample does.
    """
    expect("n", n, n >= 2, "a whole number >= 2")
    expect_run_of_images(run)
    check_images("a", a[None], run.shape)
    check_images("b", b[None], run.shape)
    chosen = with_options(settings, options)
    expect("sampler", chosen.sampler, chosen.sampler in ("ddim", "euler"), "ddim, the one that is followed backwards")
    weights = torch.linspace(0, 1, n, device=run.device)
    if run.diffusion is None:
        expect_unguided(chosen, guide)
        with torch.no_grad():
            codes = run.vae.encode(torch.stack([a, b]).to(run.device))[0]

        def decode(weights: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
            return run.images_of(run.vae.decode(slerp(codes[:1], codes[1:], weights)))

        return draw_each(run, decode, label, chosen.seed, batch_size, weights)

    def noise_of(images: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
        denoise = run.denoiser(label, chosen, guide=guide)
        return invert(denoise, uint8_to_signed(images), time_grid(denoise.schedule, chosen.times, chosen.steps, run.device))

    noise = draw_each(run, noise_of, label, chosen.seed, batch_size, torch.stack([a, b])).to(run.device)

    def draw(weights: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
        denoise = run.denoiser(label, chosen, guide=guide)
        times = time_grid(denoise.schedule, chosen.times, chosen.steps, run.device)
        return signed_to_uint8(ddim(denoise, slerp(noise[:1], noise[1:], weights), times, callback=callback or no_callback))

    return draw_each(run, draw, label, chosen.seed, batch_size, weights)


def invert(denoise: Denoise, x: Tensor, times: Tensor) -> Tensor:
    """The noise at times[0] from which DDIM comes to x at times[-1] (equation 14, backwards): each step takes eps_hat, which it
    would have taken at its far end, from its near one."""
    alpha, sigma = denoise.schedule.marginal(times)
    grow = alpha[:-1] / alpha[1:]
    eps = (sigma[:-1] - grow * sigma[1:]) / sigma[:-1]  # times x - alpha · x0_hat
    rows = coefficients(grow + eps, -eps * alpha[:-1])
    for i in reversed(range(len(times) - 1)):
        x = sampler_step(x, denoise(x, times[i]), rows[i])
    return x


def slerp(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """The points at `weight` (n,) of the arc from a to b, each (1, *S): (n, *S) (Shoemake 1985). Parallel ends are a line."""
    angle = torch.acos(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1))
    weight = weight.view(-1, *[1] * (a.dim() - 1))
    arc = ((1 - weight) * angle).sin() * a + (weight * angle).sin() * b
    return torch.where(angle.sin() > 1e-6, arc / angle.sin(), torch.lerp(a, b, weight))
