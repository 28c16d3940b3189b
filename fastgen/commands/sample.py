"""`fastgen sample RUN [OPTIONS]`"""

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class SampleOptions:
    """Draw images from a trained run."""

    run: tyro.conf.Positional[Path]
    """The folder of a training run."""
    n: int = 64
    """How many images."""
    label: tuple[int, ...] = ()
    """Their classes, one for all or several in turn; every class in turn when not given."""
    guidance: float = 1.0
    """Weight of classifier-free guidance; 1 is none."""
    steps: int = 25
    """Steps of the sampler."""
    sampler: str = "euler"
    """ddpm, ddim, euler, euler_ancestral, heun, dpmpp_2m, dpmpp_2m_sde or unipc."""
    seed: int = 0
    """Image i depends on the seed and i alone."""
    out: Path | None = None
    """A .png for a grid, a .npz for arrays, or a folder for a PNG each; RUN/samples.png when not given."""
    batch_size: int = 64
    """Images that are drawn at once."""
    step: int | None = None
    """The checkpoint; the last one when not given."""
    device: str = "auto"
    """auto: cuda where there is one, else cpu."""


def main(arguments: list[str]) -> None:
    options = tyro.cli(SampleOptions, args=arguments, prog="fastgen sample")
    from fastgen.images import check_out, save_images
    from fastgen.run import load

    out = options.out or options.run / "samples.png"
    run = load(options.run, step=options.step, device=options.device)
    check_out(out)
    images, labels = run.sample(
        options.n,
        label=options.label or None,
        guidance=options.guidance,
        steps=options.steps,
        sampler=options.sampler,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    every_class = not options.label and labels is not None and run.num_classes is not None and run.num_classes <= 16
    save_images(out, images, labels, columns=run.num_classes if every_class else None)
    print(out)
