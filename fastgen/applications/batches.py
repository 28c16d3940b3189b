"""What the applications share: checks of images, and going through them batch by batch."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.config.sampling import Sampling
from fastgen.errors import expect
from fastgen.functional import noise_key
from fastgen.runs.run import Label, Run, in_batches, sample_labels

__all__ = ["Label", "check_images", "draw_each", "expect_run_of_images", "expect_unguided"]


@torch.no_grad()
def draw_each(run: Run, draw: Callable[..., Tensor], label: Label, seed: int, batch_size: int, *each: Tensor) -> Tensor:
    """draw(*rows of each, key, label) for at most `batch_size` rows at a time of each, (N, ...), on the run's device and in its
    precision: (N, ...) on the CPU. key: int64 (n, 4), the rows' own by their number. label: int64 (n,), `label` for all or its
    entries in turn; None where that is None.

    Raises ValueError for a label that the model does not have and a batch_size below 1."""
    n = len(each[0])
    labels = None if label is None else sample_labels(n, run.num_classes, label, classes=run.classes)
    key = noise_key(seed, samples=n, device=run.device)

    def draw_batch(*rows: Tensor | None) -> Tensor:
        with run.autocast():
            return draw(*(None if x is None else x.to(run.device) for x in rows))

    return in_batches(draw_batch, batch_size, *each, key, labels)


def expect_unguided(settings: Sampling, guide: Run | None) -> None:
    """Raises ValueError for what acts on a diffusion model alone, where a VAE is used."""
    expect("guidance", settings.guidance, settings.guidance == 1, "1 for a VAE, which has no classes")
    expect("guide", None if guide is None else str(guide.path), guide is None, "none for a VAE, which takes no steps")


def expect_run_of_images(run: Run) -> None:
    """Raises ValueError for a run of values."""
    if run.values is not None:
        raise ValueError(f"run: expected a run of images, got a run of values, {str(run.path)!r}; only `sample` takes one")


def check_images(name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless these are uint8 (N, *shape), one at least."""
    fits = images.dtype == torch.uint8 and tuple(images.shape[1:]) == shape and len(images) > 0
    expected = ", ".join(["N", *map(str, shape)])
    expect(name, f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}", fits, f"uint8 images ({expected})")
