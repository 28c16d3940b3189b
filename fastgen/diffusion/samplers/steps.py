"""What the samplers share: the schedule at their steps, the loop over steps of one evaluation, and the checks around both."""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen import noise_streams
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect
from fastgen.functional import at, fresh_key, sampler_step

Callback = Callable[[int, Tensor, Tensor], None]


class StepGrid(NamedTuple):
    """The schedule where every step begins and where it ends, fp64 (steps,).

    ratio is exp(-h), h the rise of log(alpha / sigma) in the step: 0 where a step begins with no x0 or ends with no noise, for
    which h is infinite.
    """

    alpha: Tensor
    sigma: Tensor
    alpha_next: Tensor
    sigma_next: Tensor
    ratio: Tensor


def step_grid(schedule: Schedule, times: Tensor) -> StepGrid:
    times = times.double()
    alpha, sigma = schedule.marginal(times)
    ratio = sigma[1:] / sigma[:-1] * (alpha[:-1] / alpha[1:]).nan_to_num(1.0)  # NaN: a chain's last step, cut in parts, has no x0
    return StepGrid(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], ratio.clamp(max=1))  # which rounding may pass


def ignore(i: int, x: Tensor, x0_hat: Tensor) -> None:
    """The callback of those who want none."""


def run(
    denoise,
    x: Tensor,
    times: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    s: Tensor | None = None,
    *,
    key: Tensor | None = None,
    callback: Callback = ignore,
) -> Tensor:
    """x <- a·x + b·x0_hat + c·(the last step's x0_hat) + s·noise at every step; c is 0 in the first."""
    zero = torch.zeros_like(a)
    coefficients = torch.stack([a, b, zero if c is None else c, zero if s is None else s], dim=1)
    noises = [None] * len(a) if s is None else noise_keys(key, x, len(a))
    previous = None
    for i in range(len(a)):
        x0_hat = denoise(x, times[i])
        x = sampler_step(x, x0_hat, coefficients[i], previous=None if c is None else previous, key=noises[i])
        previous = x0_hat
        callback(i, x, x0_hat)
    return x


def noise_keys(key: Tensor | None, x: Tensor, steps: int) -> list[Tensor]:
    """The key of every step's noise."""
    key = fresh_key(x.shape[0], x.device) if key is None else key
    return [at(key, stream=noise_streams.SAMPLER, step=i) for i in range(steps)]


def checked(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A sampler that raises for times which do not fall and for what comes to be NaN or infinite.

    The host reads the times before the first step and what became of each after the last, and nothing between; nothing at all
    while a CUDA graph is captured.
    """

    @functools.wraps(draw)
    def sampler(denoise, x: Tensor, times: Tensor, *, callback: Callback | None = None, **options) -> Tensor:
        expect("times", tuple(times.shape), times.dim() == 1 and len(times) > 1, "a vector of at least two numbers")
        if reads(x):
            _check_falling(times.tolist())
        finite: list[Tensor] = []

        def after(i: int, x: Tensor, x0_hat: Tensor) -> None:
            finite.append(x.isfinite().all())
            if callback is not None:
                callback(i, x, x0_hat)

        x0 = draw(denoise, x, times, callback=after, **options)
        if reads(x) and False in (each := torch.stack(finite).tolist()):
            i = each.index(False)
            place = f"step {i + 1} of {len(each)}, from t = {times[i].item():.4g}"
            raise FloatingPointError(f"denoise: expected finite numbers, got NaN or infinity in {place}")
        return x0

    return sampler


def reads(x: Tensor) -> bool:
    """Whether the host may read what is on x's device: not while a CUDA graph is captured."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def _check_falling(times: list[float]) -> None:
    for i, (t, after) in enumerate(itertools.pairwise(times)):
        if not 1 >= t > after >= 0:
            raise ValueError(f"times: expected numbers in [0, 1], each below the one before, got {t:.6g}, {after:.6g} at {i}")
