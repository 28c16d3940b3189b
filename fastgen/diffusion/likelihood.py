"""How likely a diffusion model finds data: by the probability-flow ODE, and as a variational bound.

Both take a `Denoise` and a falling grid of `times`, (steps + 1,), as the samplers do, here ending before t = 0, where noise is
left, such as `time_grids.log_snr_times(schedule, steps)[:-1]`. The prior is where samplers start, N(0, sigma(times[0])²).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen import noise_streams
from fastgen.diffusion.denoiser import Denoise, expect_denoise
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import lookup
from fastgen.functional import at, fresh_key, philox_normal, q_sample
from fastgen_kernels.checks import check_float

__all__ = ["VLB", "bits_per_dim", "log_likelihood", "vlb"]


def log_likelihood(
    denoise: Denoise, x: Tensor, times: Tensor, *, divergence: str = "exact", key: Tensor | None = None
) -> Tensor:
    """log p(x) of the density at t = times[-1], (N,) nats, fp64 (Song et al. 2021, arXiv:2011.13456, eq. 39).

    The ODE is solved by Heun's method on the grid's points in the angle phi = atan(sigma / alpha), where it is
    d(x/r) / dphi = v_hat, with r² = alpha² + sigma² (Salimans & Ho 2022, arXiv:2202.00512, appendix D): finite from end to end.
    x: (N, ...) floating. divergence: "exact", a backward pass for each element of a sample, or "hutchinson", one for all, with
    random signs from `key` (eq. 40), unbiased. key: int64 (N, 4), from torch's generator when None.

    Raises TypeError for a denoise without a schedule, ValueError for another divergence and for times that end at 0.
    """
    expect_denoise(denoise)
    check_float(x=x, times=times)
    divergence_of = lookup("divergence", divergence, _DIVERGENCES)
    alpha, sigma = _noise_levels(denoise.schedule, times)
    scale, angle = torch.hypot(alpha, sigma).flip(0), torch.atan2(sigma, alpha).flip(0)
    times, key = times.flip(0), fresh_key(x.shape[0], x.device) if key is None else key
    probe = philox_normal(x.shape, at(key, stream=noise_streams.NOISE)).sign().to(x.dtype)

    def slope(y: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """v_hat at y, and its divergence."""
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            v = (angle[i].cos() * y - denoise(scale[i] * y, times[i])) / angle[i].sin()
            spread = divergence_of(v, y, probe)
        return v.detach(), spread.double()

    y, spread = x / scale[0], torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
    for i in range(len(times) - 1):
        step = angle[i + 1] - angle[i]
        v, rate = slope(y, i)
        v_next, rate_next = slope(y + step * v, i + 1)
        y = y + step / 2 * (v + v_next)
        spread = spread + step / 2 * (rate + rate_next)

    std, size = angle[-1].sin(), x[0].numel()
    prior = -(y.double().flatten(1) ** 2).sum(1) / (2 * std**2) - size / 2 * (2 * math.pi * std**2).log()
    return prior + spread - size * scale[0].log()


class VLB(NamedTuple):
    """The terms of the bound, nats, (N,) fp64; their sum is at least -log p(x0) in the mean over noise."""

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor


@torch.no_grad()
def vlb(denoise: Denoise, x0: Tensor, times: Tensor, *, levels: int | None = None, key: Tensor | None = None) -> VLB:
    """The variational bound of a chain on the grid's points, with one draw of noise for each (Kingma et al. 2021,
    arXiv:2107.00630, eq. 11 to 14).

    x0: (N, ...) in [-1, 1]. levels: how many values an element may have, evenly in [-1, 1], 256 for images: the bound is then on
    their probability; on the density where None.

    Raises TypeError for a denoise without a schedule, ValueError for times that end at 0.
    """
    expect_denoise(denoise)
    check_float(x0=x0, times=times)
    alpha, sigma = _noise_levels(denoise.schedule, times)
    snr = (alpha / sigma) ** 2
    key = fresh_key(x0.shape[0], x0.device) if key is None else key

    def noised(i: int) -> tuple[Tensor, Tensor]:
        noise = philox_normal(x0.shape, at(key, stream=noise_streams.NOISE, step=i), dtype=x0.dtype)
        n = x0.shape[:1]
        return q_sample(x0, alpha[i].expand(n), sigma[i].expand(n), noise=noise, target=None), noise

    prior = snr[0] / 2 * _square(x0)
    diffusion = torch.zeros_like(prior)
    for i in range(len(times) - 1):
        x_t, _ = noised(i)
        diffusion = diffusion + (snr[i + 1] - snr[i]) / 2 * _square(x0 - denoise(x_t, times[i]))

    x_t, noise = noised(len(times) - 1)
    if levels is None:  # N(x0; x_t / alpha, (sigma / alpha)²)
        reconstruction = _square(noise) / 2 - x0[0].numel() / 2 * (snr[-1] / (2 * math.pi)).log()
    else:  # the same over the levels alone
        values = torch.linspace(-1, 1, levels, dtype=torch.float64, device=x0.device)
        logits = -snr[-1] / 2 * (x_t.double().flatten(1)[..., None] / alpha[-1] - values) ** 2
        chosen = ((x0.double().flatten(1) + 1) / 2 * (levels - 1)).round().long()
        reconstruction = -logits.log_softmax(2).gather(2, chosen[..., None]).sum((1, 2))
    return VLB(prior, diffusion, reconstruction)


def bits_per_dim(nats: Tensor, x: Tensor) -> Tensor:
    """Nats of each sample, (N,), as bits for each of the elements of a sample of x, (N, ...): (N,)."""
    return nats / (x[0].numel() * math.log(2))


def _noise_levels(schedule: Schedule, times: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.marginal(times.double())
    if times.dim() != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not bool(sigma[-1] > 0):
        raise ValueError(
            f"times: expected falling numbers that end above 0, got {[round(t, 6) for t in times.flatten().tolist()]}"
        )
    return alpha, sigma


def _square(x: Tensor) -> Tensor:
    return (x.double().flatten(1) ** 2).sum(1)


def _exact(v: Tensor, y: Tensor, probe: Tensor) -> Tensor:
    flat = v.flatten(1)
    rows = (torch.autograd.grad(flat[:, j].sum(), y, retain_graph=True)[0].flatten(1)[:, j] for j in range(flat.shape[1]))
    return torch.stack(list(rows)).sum(0)


def _hutchinson(v: Tensor, y: Tensor, probe: Tensor) -> Tensor:
    (product,) = torch.autograd.grad(v, y, probe)
    return (product * probe).flatten(1).sum(1)


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"exact": _exact, "hutchinson": _hutchinson}
