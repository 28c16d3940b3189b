"""`fastgen export`: a run's UNet as diffusers writes it."""

from pathlib import Path

from fastgen.errors import expect
from fastgen.models.diffusers_unet import DiffusersUNet
from fastgen.runs.run import load


def export(path: Path, out: Path, *, step: int | None = None) -> None:
    """Writes the averaged weights of the run in `path`, and its scheduler, into `out`: unet/ and scheduler/ for diffusers.

    step: the checkpoint's, the last one's when not given. Raises ValueError for a run of another model, and for an `out` that
    holds something or cannot be written."""
    run = load(path, step=step, device="cpu")
    model = run.model
    expect("run", type(model).__name__, isinstance(model, DiffusersUNet), "one of a UNet of diffusers, as --init-from makes")
    assert isinstance(model, DiffusersUNet)
    expect("out", str(out), not out.exists() or (out.is_dir() and not any(out.iterdir())), "a new or empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: expected a place that can be written, got {str(out)!r}: {error.strerror}") from None
    model.save_pretrained(out)
