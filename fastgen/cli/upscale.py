"""`fastgen upscale RUN IMAGE [OPTIONS]`"""

from dataclasses import dataclass

import tyro

from fastgen.cli.drawing import ImageOptions, open_run, read_fitted, save_results, watched


@dataclass(frozen=True, kw_only=True)
class UpscaleOptions(ImageOptions):
    """Enlarge an image to the size of the run's, which was trained with --diffusion.condition low_resolution."""


def main(arguments: list[str]) -> None:
    """Enlarges an image and writes the results. arguments: those after `fastgen upscale`. Raises ValueError for an image or an
    output that does not fit, and as `upscale` does."""
    options = tyro.cli(UpscaleOptions, args=arguments, prog="fastgen upscale")
    from fastgen.applications.upscale import small_shape, upscale

    run, out, shared = open_run(options, "upscaled.png")
    image = read_fitted(options, "image", options.image, small_shape(run)).repeat(options.n, 1, 1, 1)
    with watched(options, out, options.n * options.settings.steps) as callback:
        images = upscale(run, image, callback=callback, **shared)
    save_results(out, images)
