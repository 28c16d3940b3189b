"""A run's UNet as diffusers writes it."""

from pathlib import Path

from fastgen.errors import expect
from fastgen.models.diffusers_unet import DiffusersUNet
from fastgen.runs.run import load


def export(path: Path, out: Path, *, step: int | None = None) -> None:
    """Writes the averaged weights of a run and its scheduler into `out`, as unet/ and scheduler/ that diffusers loads.

    Raises ValueError for a run of another model, and for a folder that holds something."""
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
