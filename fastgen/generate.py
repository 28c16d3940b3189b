"""Drawing images from a trained model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastgen import streams
from fastgen.diffusion import Diffusion
from fastgen.errors import expect, lookup
from fastgen.functional import noise_key, philox_normal
from fastgen.models import VariationalAutoencoder
from fastgen.samplers import SAMPLERS, uniform_times


def sample_labels(n: int, num_classes: int | None, label: int | Sequence[int] | None = None) -> Tensor | None:
    """The labels of n samples, int64 (n,): `label` for all, or a list in turn, by default every class in turn; None for a model
    without classes. Raises ValueError for a label that the model does not have."""
    if num_classes is None:
        if label is not None:
            raise ValueError(f"label: expected none, since the model has no classes, got {label}")
        return None
    wanted = range(num_classes) if label is None else [label] if isinstance(label, int) else list(label)
    expect("label", label, len(wanted) > 0, "at least one class")
    for value in wanted:
        if not 0 <= value < num_classes:
            raise ValueError(f"label: expected a class from 0 to {num_classes - 1}, got {value}")
    return torch.tensor([wanted[i % len(wanted)] for i in range(n)])


@torch.no_grad()
def generate(
    model: nn.Module,
    diffusion: Diffusion | None,
    shape: tuple[int, ...],
    samples: range,
    *,
    label: Tensor | None = None,
    guidance: float = 1.0,
    steps: int = 25,
    sampler: str = "euler",
    seed: int = 0,
) -> Tensor:
    """Samples number `samples` of a seed, uint8 (N, *shape) on the model's device: by the sampler for a diffusion model, decoded
    from the prior for a VAE (`diffusion` None). A sample's noise depends on its number, never on its batch. label: (N,)."""
    device = next(model.parameters()).device
    times, draw = uniform_times(steps, device), lookup("sampler", sampler, SAMPLERS)
    key = noise_key(seed, streams.START, 0, samples, device)
    if isinstance(model, VariationalAutoencoder):
        return (model.sample(len(samples), key=key).float() * 255).round().to(torch.uint8).view(-1, *shape)
    assert diffusion is not None
    label = None if label is None else label.to(device)
    x = diffusion.schedule.sigma(times[0]) * philox_normal((len(samples), *shape), key)
    denoise = diffusion.denoiser(model, label=label, guidance=guidance)
    x0 = draw(denoise, x, times, key=key)
    return ((x0.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
