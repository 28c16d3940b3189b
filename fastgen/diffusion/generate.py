"""Drawing from a trained model, tile by tile, so that what is drawn depends neither on the batch nor on the memory."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgen import noise_streams
from fastgen.config.sampling import Sampling
from fastgen.diffusion.denoiser import Denoiser
from fastgen.diffusion.samplers import SAMPLERS, TIME_GRIDS
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect, lookup
from fastgen.functional import at, philox_normal
from fastgen.pixels import signed_to_uint8


def sample_labels(n: int, num_classes: int | None, label: int | Sequence[int] | None = None, first: int = 0) -> Tensor | None:
    """The labels of samples number `first` onward, int64 (n,): `label` for all, or a list in turn, by default every class in
    turn; None for a model without classes. Raises ValueError for a label that the model does not have."""
    if num_classes is None:
        if label is not None:
            raise ValueError(f"label: expected none, since the model has no classes, got {label}")
        return None
    wanted = range(num_classes) if label is None else [label] if isinstance(label, int) else list(label)
    expect("label", label, len(wanted) > 0, "at least one class")
    for value in wanted:
        if not 0 <= value < num_classes:
            raise ValueError(f"label: expected a class from 0 to {num_classes - 1}, got {value}")
    return torch.tensor([wanted[i % len(wanted)] for i in range(first, first + n)])


@torch.no_grad()
def generate(
    denoise: Denoiser,
    shape: tuple[int, ...],
    key: Tensor,
    settings: Sampling,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    decode: Callable[[Tensor], Tensor] = signed_to_uint8,
) -> Tensor:
    """One sample of `shape` for each row of the key, from noise by the sampler, as `decode` gives it back: uint8 (N, *shape) for
    images. Nothing in it waits for the device. callback(i, x, x0_hat): after each step."""
    draw = lookup("sampler", settings.sampler, SAMPLERS)
    times = time_grid(denoise.schedule, settings, key.device)
    noise = philox_normal((key.shape[0], *shape), at(key, stream=noise_streams.START))
    x = denoise.schedule.sigma(times[0]) * noise
    return decode(draw(denoise, x, times, key=key, callback=callback))


def time_grid(schedule: Schedule, settings: Sampling, device: torch.device) -> Tensor:
    """The times of the sampler's steps, from 1 to 0: (steps + 1,)."""
    return lookup("times", settings.times, TIME_GRIDS)(schedule, settings.steps, device)


def in_tiles(draw: Callable[[range], Tensor], samples: range, size: int) -> Tensor:
    """draw(part) for parts of `samples` of at most `size`, one after another, on the CPU. A part that the device's memory has no
    room for is halved, and those after it too."""
    expect("batch_size", size, size >= 1, "a whole number >= 1")
    tiles: list[Tensor] = []
    start = samples.start
    while start < samples.stop:
        part = range(start, min(samples.stop, start + size))
        try:
            tiles.append(draw(part).cpu())
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            size = len(part) // 2
            continue
        start = part.stop
    return torch.cat(tiles)
