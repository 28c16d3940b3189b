"""Checkpoints: a folder of safetensors and JSON under a manifest of sha256 sums, there whole or not at all."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

MANIFEST = "manifest.json"


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], documents: dict[str, Any]) -> None:
    """Writes NAME.safetensors and NAME.json for each entry into `folder`, which must not exist: into a temporary folder beside it
    that is flushed to disk and renamed, so that a crash leaves either nothing or everything."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for name, values in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, temporary / f"{name}.safetensors")
    for name, document in documents.items():
        (temporary / f"{name}.json").write_text(json.dumps(document, indent=1))
    sums = {file.name: _sha256(file) for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"sha256": sums}, indent=1))
    for path in [*temporary.iterdir(), temporary]:
        _flush(path)
    temporary.rename(folder)
    _flush(folder.parent)


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors that were saved under `name`, on the CPU. Raises ValueError where the file is missing or corrupt."""
    file = _verified(folder, f"{name}.safetensors")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: expected a safetensors file, got {error}") from None


def load_document(folder: Path, name: str) -> Any:
    """The document that was saved under `name`. Raises ValueError where the file is missing or corrupt."""
    return json.loads(_verified(folder, f"{name}.json").read_bytes())


def steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints in a folder of them, ascending. Names that are not numbers are skipped."""
    return sorted(int(path.name) for path in checkpoints.glob("[0-9]*") if path.name.isdigit())


def at_step(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, or will."""
    return checkpoints / f"{step:08d}"


def _verified(folder: Path, file: str) -> Path:
    path = folder / file
    try:
        expected = json.loads((folder / MANIFEST).read_bytes())["sha256"][file]
        actual = _sha256(path)
    except OSError as error:
        raise ValueError(f"{folder}: expected a whole checkpoint, got {error}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{folder / MANIFEST}: expected the manifest of a checkpoint with {file}, got another file") from None
    if expected != actual:
        raise ValueError(f"{path}: expected sha256 {expected}, got {actual}: the file is corrupt")
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
