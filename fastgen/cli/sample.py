"""`fastgen sample RUN [OPTIONS]`"""

import dataclasses
import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from fastgen.cli.drawing import Drawing, DrawingOptions, open_run, watched
from fastgen.errors import expect

if TYPE_CHECKING:
    from fastgen.runs.run import Run


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
    """Draws samples and writes them as they come. arguments: those after `fastgen sample`. Raises ValueError for --cuda-graph
    with --preview-every, for an output that cannot be written or is another's, and as `load` and `Run.sample` do."""
    options = tyro.cli(SampleOptions, args=arguments, prog="fastgen sample")
    expect("cuda_graph", True, not (options.cuda_graph and options.preview_every), "False with preview_every")
    expect("n", options.n, options.n >= 1, "a whole number >= 1")
    expect("n", options.n, options.n < 2**32, "a number below 2^32")
    expect("batch_size", options.batch_size, options.batch_size >= 1, "a whole number >= 1")
    run, out, shared = open_run(options, "samples.png", of_values=True)
    kept = 0
    try:
        with _ended_by_sigterm():
            for kept in _write_all(options, run, out, shared):  # noqa: B007  # how many there are when it is stopped
                pass
    except (KeyboardInterrupt, SystemExit):
        print(f"stopped: {kept} of {options.n} are drawn; the same command goes on, with --out {out}", file=sys.stderr)
        raise
    print(out)


def _write_all(options: SampleOptions, run: "Run", out: Path, shared: Drawing) -> Iterator[int]:
    """Draws and writes the samples. Yields how many are kept, after each batch."""
    import torch

    from fastgen.files.images import save_images
    from fastgen.files.parts import Parts, drawn_before
    from fastgen.files.values import save_values
    from fastgen.runs.run import sample_labels

    n, first, size, in_folder = options.n, options.first, options.batch_size, out.suffix == ""
    recipe = _recipe(run, shared)
    labels = sample_labels(n, run.num_classes, shared["label"], first)

    def note(i: int) -> str:
        return json.dumps(recipe | {"number": first + i, "label": None if labels is None else int(labels[i])}, sort_keys=True)

    parts = Parts(out, recipe | {"first": first, "label": shared["label"]})
    done = [] if in_folder else parts.kept()
    kept = sum(len(x) for x, _ in done)
    if in_folder and not options.overwrite:
        kept = drawn_before(out, note, n, first)
        kept -= kept % size if kept < n else 0  # batches begin where they would have
    yield min(kept, n)

    shown = nullcontext() if options.cuda_graph else watched(options, out, max(n - kept, 0) * options.settings.steps)
    with shown as callback:
        batches = run.sample_in_batches(
            n - kept, first=first + kept, cuda_graph=options.cuda_graph, callback=callback, progress=False, **shared
        )
        for x, label in batches if kept < n else ():
            if in_folder:
                save_images(out, x, label, first=first + kept, notes=[note(kept + i) for i in range(len(x))])
            else:
                done.append((x, label))
                if n > size:
                    parts.keep(x, label)
            kept += len(x)
            yield kept
    if in_folder:
        return
    drawn = torch.cat([x for x, _ in done])[:n]
    if run.values is not None:
        save_values(out, drawn, labels, run.values)
    else:
        every_class = not options.label and labels is not None and run.num_classes is not None and run.num_classes <= 16
        save_images(out, drawn, labels, columns=run.num_classes if every_class else None)
    parts.drop()


def _recipe(run: "Run", shared: Drawing) -> dict[str, Any]:
    """All that a sample depends on but its number and label."""
    guide = shared["guide"]
    guided = {} if guide is None else {"guide": guide.fingerprint}
    return {"run": run.fingerprint, **dataclasses.asdict(shared["settings"]), **guided}


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A context in which SIGTERM raises SystemExit, as SIGINT raises KeyboardInterrupt."""

    def end(number: int, frame: object) -> None:
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
