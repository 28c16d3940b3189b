"""What the applications share: checks of images, and going through them batch by batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastgen.diffusion.generate import in_tiles, sample_labels
from fastgen.errors import expect
from fastgen.functional import noise_key
from fastgen.runs.run import Run

Label = int | Sequence[int] | None
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def in_batches(
    run: Run, n: int, label: Label, seed: int, size: int, draw: Callable[[slice, Tensor, Tensor | None], Tensor]
) -> Tensor:
    """draw(rows, key, label) for n samples, at most `size` at a time, in the run's precision; on the CPU. Sample i has the key of
    its number and the label i of `label`, one for all or a list in turn; no label where that is None."""
    labels = None if label is None else sample_labels(n, run.num_classes, label)

    def tile(part: range) -> Tensor:
        rows = slice(part.start, part.stop)
        with run.autocast():
            return draw(
                rows, noise_key(seed, samples=part, device=run.device), None if labels is None else labels[rows].to(run.device)
            )

    return in_tiles(tile, range(n), size)


def expect_run_of_images(run: Run) -> None:
    """Raises ValueError for a run of values."""
    if run.values is not None:
        raise ValueError(f"run: expected one of images, got one of values, {str(run.path)!r}, which can be drawn from alone")


def check_images(name: str, images: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless these are uint8 (N, *shape), one at least."""
    fits = images.dtype == torch.uint8 and tuple(images.shape[1:]) == shape and len(images) > 0
    expected = ", ".join(["N", *map(str, shape)])
    expect(name, f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}", fits, f"uint8 images ({expected})")
