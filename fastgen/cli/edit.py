"""`fastgen edit RUN IMAGE --strength S [OPTIONS]`"""

from dataclasses import dataclass

import tyro

from fastgen.cli.drawing import ImageOptions, open_run, read_fitted, save_results, watched


@dataclass(frozen=True, kw_only=True)
class EditOptions(ImageOptions):
    """Change an image: add noise to it, and denoise it again (SDEdit); of a run of a VAE, to its code, and decode it."""

    strength: float = 0.5
    """How much noise: 0 gives the image back, 1 draws a new one."""


def main(arguments: list[str]) -> None:
    """Edits an image and writes the results. arguments: those after `fastgen edit`. Raises ValueError for an image or an output
    that does not fit, and as `edit` does."""
    options = tyro.cli(EditOptions, args=arguments, prog="fastgen edit")
    from fastgen.applications.edit import edit, steps_below

    run, out, shared = open_run(options, "edited.png")
    image = read_fitted(options, "image", options.image, run.shape).repeat(options.n, 1, 1, 1)
    with watched(options, out, options.n * steps_below(options.strength, options.settings.steps)) as callback:
        images = edit(run, image, options.strength, callback=callback, **shared)
    save_results(out, images)
