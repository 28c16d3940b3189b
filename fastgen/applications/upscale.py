"""Enlarging images with a model that sees the small image beside its noise (SR3, Saharia et al. 2021, arXiv:2104.07636)."""

from typing import Any

from torch import Tensor

from fastgen.applications.batches import Callback, Label, check_images, expect_run_of_images, in_batches
from fastgen.config.sampling import Sampling
from fastgen.diffusion.conditions import LowResolution, enlarged
from fastgen.diffusion.generate import generate
from fastgen.pixels import uint8_to_signed
from fastgen.runs.run import Run


def upscale(
    run: Run,
    images: Tensor,
    *,
    label: Label = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    **settings: Any,
) -> Tensor:
    """uint8 (N, C, h, w) as uint8 (N, C, H, W), the size of the run's images, its factor times h by w.

    label: what the images are of, where that is known. guide, batch_size, callback, settings: as for Run.sample. Raises
    ValueError for a run that was not trained with the condition low_resolution, and for images of another size.
    """
    expect_run_of_images(run)
    check_images("images", images, small_shape(run))
    factor = run.shape[1] // images.shape[2]
    options = Sampling(**settings)

    def draw(rows: slice, key: Tensor, label: Tensor | None) -> Tensor:
        small = uint8_to_signed(images[rows].to(run.device))
        denoise = run.denoiser(label, options, guide=guide, beside=enlarged(small, factor))
        return generate(denoise, run.shape, key, options, callback)

    return in_batches(run, len(images), label, options.seed, batch_size, draw)


def small_shape(run: Run) -> tuple[int, int, int]:
    """The shape of the images that the run enlarges. Raises ValueError for a run that does not."""
    condition = run.condition
    if not isinstance(condition, LowResolution):
        raise ValueError(f"run: expected one trained with diffusion.condition low_resolution, got {str(run.path)!r}")
    channels, height, width = run.shape
    return channels, height // condition.factor, width // condition.factor
