"""Enlarging images with a model that sees the small image beside its noise (SR3, Saharia et al. 2021, arXiv:2104.07636)."""

from typing import Unpack

from torch import Tensor

from fastgen.applications.batches import Label, check_images, draw_each, expect_run_of_images
from fastgen.config.sampling import Sampling, SamplingOptions, with_options
from fastgen.diffusion.conditions import LowResolution, enlarged
from fastgen.diffusion.samplers import Callback, generate
from fastgen.pixels import signed_to_uint8, uint8_to_signed
from fastgen.runs.run import Run


def upscale(
    run: Run,
    images: Tensor,
    *,
    label: Label = None,
    guide: Run | None = None,
    batch_size: int = 64,
    callback: Callback | None = None,
    settings: Sampling | None = None,
    **options: Unpack[SamplingOptions],
) -> Tensor:
    """uint8 (N, C, h, w) as uint8 (N, C, H, W), the size of the run's images, its factor times h by w.

    label: the class of the images, where that is known. guide, batch_size, callback, settings, options: as for Run.sample,
    and so are the errors; ValueError, too, for a run that was not trained with the condition low_resolution, and for images of
    another size.
    """
    expect_run_of_images(run)
    check_images("images", images, small_shape(run))
    factor = run.shape[1] // images.shape[2]
    chosen = with_options(settings, options)

    def draw(images: Tensor, key: Tensor, label: Tensor | None) -> Tensor:
        denoise = run.denoiser(label, chosen, guide=guide, beside=enlarged(uint8_to_signed(images), factor))
        return signed_to_uint8(generate(denoise, run.shape, key, chosen, callback))

    return draw_each(run, draw, label, chosen.seed, batch_size, images)


def small_shape(run: Run) -> tuple[int, int, int]:
    """The shape of the images that the run enlarges. Raises ValueError for a run that does not."""
    condition = run.condition
    if not isinstance(condition, LowResolution):
        raise ValueError(f"run: expected one trained with diffusion.condition low_resolution, got {str(run.path)!r}")
    channels, height, width = run.shape
    return channels, height // condition.factor, width // condition.factor
