"""Checkpoints: a folder of safetensors and JSON under a manifest of sha256 sums, there whole or not at all."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fastgen.atomic import beside, is_no_room, no_room, remove
from fastgen.atomic import flush as _flush

MANIFEST = "manifest.json"


def save(folder: Path, tensors: dict[str, dict[str, Tensor]], documents: dict[str, Any]) -> None:
    """Writes NAME.safetensors and NAME.json for each entry into `folder`, which must not exist: into a temporary folder beside it
    that is flushed to disk and renamed, so that a crash leaves either nothing or everything.

    Raises OSError of one line, with what is needed and what is free, where the disk is full; nothing is left of it then."""
    temporary = beside(folder)
    remove(temporary)
    try:
        _write(temporary, tensors, documents)
        temporary.rename(folder)
    except BaseException as error:
        remove(temporary)
        if is_no_room(error):
            raise no_room(folder, sum(x.nbytes for values in tensors.values() for x in values.values())) from None
        raise
    _flush(folder.parent)


def drop_old(checkpoints: Path, keep: int) -> None:
    """Removes all but the last `keep` checkpoints, and what a crash left half-written. What `save` did not write is left alone,
    and so is what cannot be removed."""
    stale = [beside(at_step(checkpoints, step)) for step in _unfinished(checkpoints)]
    for step in steps(checkpoints)[:-keep]:
        folder = at_step(checkpoints, step)
        if not folder.is_symlink():
            with suppress(OSError):  # renamed first: half of it must not be taken for a checkpoint
                stale.append(folder.rename(beside(folder)))
    for path in stale:
        if not path.is_symlink():
            remove(path)


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors that were saved under `name`, on the CPU. Raises ValueError where the file is missing or corrupt."""
    file = _verified(folder, f"{name}.safetensors")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: expected a safetensors file, got {error}") from None


def sha256_of(folder: Path, name: str) -> str:
    """The sum of the tensors that were saved under `name`. Raises ValueError where the manifest is missing or corrupt."""
    return _sum(folder, f"{name}.safetensors")


def load_document(folder: Path, name: str) -> Any:
    """The document that was saved under `name`. Raises ValueError where the file is missing or corrupt."""
    file = _verified(folder, f"{name}.json")
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected JSON, got other text: {error}") from None


def steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints in a folder of them, ascending. What is named otherwise than `at_step` does is skipped."""
    names = {path.name for path in checkpoints.glob("[0-9]*") if path.is_dir()}
    return sorted(int(name) for name in names if _names_a_step(name))


def at_step(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step lies, or will."""
    return checkpoints / f"{step:08d}"


def _write(folder: Path, tensors: dict[str, dict[str, Tensor]], documents: dict[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, values in tensors.items():
        save_file({k: v.detach().cpu().contiguous() for k, v in values.items()}, folder / f"{name}.safetensors")
    for name, document in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(document, indent=1))
    sums = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"sha256": sums}, indent=1))
    for name in tensors:  # safetensors lets nobody else read its files
        (folder / f"{name}.safetensors").chmod(manifest.stat().st_mode)
    for path in [*folder.iterdir(), folder]:
        _flush(path)


def _names_a_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and name == f"{int(name):08d}"


def _unfinished(checkpoints: Path) -> list[int]:
    names = [path.name[1:].removesuffix(".tmp") for path in checkpoints.glob(".[0-9]*.tmp")]
    return [int(name) for name in names if _names_a_step(name)]


def _verified(folder: Path, file: str) -> Path:
    path, expected = folder / file, _sum(folder, file)
    try:
        actual = _sha256(path)
    except OSError as error:
        raise ValueError(f"{folder}: expected a whole checkpoint, got {error}") from None
    if expected != actual:
        raise ValueError(f"{path}: expected sha256 {expected}, got {actual}: the file is corrupt")
    return path


def _sum(folder: Path, file: str) -> str:
    try:
        expected = json.loads((folder / MANIFEST).read_bytes())["sha256"][file]
    except OSError as error:
        raise ValueError(f"{folder}: expected a whole checkpoint, got {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{folder / MANIFEST}: expected the manifest of a checkpoint with {file}, got another file") from None
    return str(expected)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
