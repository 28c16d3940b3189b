"""`fastgen edit RUN IMAGE --strength S [OPTIONS]`"""

from dataclasses import dataclass

import tyro

from fastgen.cli.drawing import ImageOptions, open_run, save_results, watched


@dataclass(frozen=True, kw_only=True)
class EditOptions(ImageOptions):
    """Change an image: noise it, and draw on from there."""

    strength: float = 0.5
    """How much: 0 gives the image back, 1 draws a new one."""


def main(arguments: list[str]) -> None:
    options = tyro.cli(EditOptions, args=arguments, prog="fastgen edit")
    from fastgen.applications.edit import edit, steps_of
    from fastgen.files.images import read_image

    run, out, shared = open_run(options, "edited.png")
    image = read_image("image", options.image, run.shape).repeat(options.n, 1, 1, 1)
    with watched(options, out, options.n * steps_of(options.strength, options.settings.steps)) as callback:
        images = edit(run, image, options.strength, callback=callback, **shared)
    save_results(out, images)
