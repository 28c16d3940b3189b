"""Samplers: free functions over `denoise(x_t, t) -> x0_hat` that go from noise to data.

    sampler(denoise, x, times, *, key=None, callback=None, …) -> x0

denoise: with `denoise.schedule`, as `Diffusion.denoiser` makes it. x: (N, C, *S), the start, sigma(times[0]) · noise. times:
(steps + 1,) falling tensor on x's device, from 1 to 0 usually. key: the noise of stochastic samplers, (N, 4) as `noise_key` makes
it; drawn from torch's generator when None. callback(i, x, x0_hat) is called after every step. The coefficients of all steps are
computed in fp64 on x's device before the first, so that a step waits for nothing.

Raises ValueError for times that do not fall within [0, 1], FloatingPointError, with the step, for a result that is not finite.

`SAMPLERS` and `TIME_GRIDS` are the tables of names that the command line uses: `TIME_GRIDS[name](schedule, steps, device)` is a
grid of times.
"""

from collections.abc import Callable

from torch import Tensor

from fastgen.diffusion.samplers.dpm_solver import dpmpp_2m, dpmpp_2m_sde
from fastgen.diffusion.samplers.edm import heun
from fastgen.diffusion.samplers.first_order import ddim, ddpm, euler, euler_ancestral
from fastgen.diffusion.samplers.times import (
    TIME_GRIDS,
    karras_times,
    log_snr_times,
    quadratic_times,
    shifted_times,
    uniform_times,
)
from fastgen.diffusion.samplers.uni_pc import unipc

SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "unipc": unipc,
}

__all__ = [
    "SAMPLERS",
    "TIME_GRIDS",
    *SAMPLERS,
    "karras_times",
    "log_snr_times",
    "quadratic_times",
    "shifted_times",
    "uniform_times",
]
