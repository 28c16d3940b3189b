"""`fastgen sample RUN [OPTIONS]`"""

from contextlib import nullcontext
from dataclasses import dataclass

import tyro

from fastgen.cli.drawing import DrawingOptions, open_run, watched
from fastgen.errors import expect


@dataclass(frozen=True, kw_only=True)
class SampleOptions(DrawingOptions):
    """Draw images from a trained run; of a run of values, rows of a table or signals in their own units."""

    n: int = 64
    """How many."""
    first: int = 0
    """Number of the first: --first 17 --n 1 draws number 17 again."""
    cuda_graph: bool = False
    """Record the work of a batch once and replay it; on a GPU, without previews."""


def main(arguments: list[str]) -> None:
    """Draws samples and writes them. arguments: those after `fastgen sample`. Raises ValueError for --cuda-graph with
    --preview-every, for an output that cannot be written, and as `load` and `Run.sample` do."""
    options = tyro.cli(SampleOptions, args=arguments, prog="fastgen sample")
    expect("cuda_graph", True, not (options.cuda_graph and options.preview_every), "False with preview_every")
    from fastgen.files.images import save_images
    from fastgen.files.values import save_values

    run, out, shared = open_run(options, "samples.png", of_values=True)
    shown = nullcontext() if options.cuda_graph else watched(options, out, options.n * options.settings.steps)
    with shown as callback:
        drawn, labels = run.sample(options.n, first=options.first, cuda_graph=options.cuda_graph, callback=callback, **shared)
    if run.values is None:
        every_class = not options.label and labels is not None and run.num_classes is not None and run.num_classes <= 16
        save_images(out, drawn, labels, columns=run.num_classes if every_class else None)
    else:
        save_values(out, drawn, labels, run.values)
    print(out)
