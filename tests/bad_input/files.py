"""Files that are damaged, hostile or of another kind, and a run to spoil."""

import io
import json
import os
import struct
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def savez(path: Path, **arrays: object) -> Path:
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})
    return path


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def picture(path: Path, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(side * side, dtype=np.uint8).reshape(side, side)).save(path)
    return path


def black(path: Path, height: int = 8, width: int = 8) -> Path:
    Image.new("L", (width, height)).save(path)
    return path


def header(path: Path, shape: str, kind: str = "|u1", length: int = 128) -> Path:
    """A .npy whose header promises a shape."""
    said = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    said = said.ljust(length - 11) + b"\n"
    return text(path, b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said + bytes(64))


def npz_of(path: Path, name: str, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path


def bomb(path: Path) -> Path:
    """A .npz of 100 KB that unpacks to 8 GB of images."""
    said = b"{'descr': '|u1', 'fortran_order': False, 'shape': (131072, 256, 256), }".ljust(117) + b"\n"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("images.npy", "w", force_zip64=True) as out,
    ):
        out.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(said)) + said)
        out.write(bytes(2**20))
    return path


def flipped(path: Path, at: float = 0.5) -> Path:
    content = bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x55
    path.write_bytes(content)
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def npy_bytes(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@cache
def trained(kind: str = "labelled") -> Path:
    """A run of a step, made once a process."""
    import atexit
    import dataclasses
    import shutil
    import tempfile

    from fastgen.training.train import train
    from tests.helpers import tiny_runs

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {"labelled": tiny_runs.LABELLED, "vae": tiny_runs.VAE}[kind]
    with tiny_runs.without_pictures():
        train(dataclasses.replace(settings, steps=2, checkpoint_every=2, batch_size=4, log_every=1), folder / "run")
    return folder / "run"


def run(to: Path, kind: str = "labelled") -> Path:
    """A copy of the run."""
    import shutil

    return shutil.copytree(trained(kind), to / "run")


def last(run: Path) -> Path:
    """The folder of its checkpoint."""
    return next(path for path in (run / "checkpoints").iterdir() if path.name.isdigit())


def resealed(run: Path) -> Path:
    """The run with the sums of its checkpoint made right again: what was edited was edited with its sums."""
    import hashlib

    folder = last(run)
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.name != "manifest.json"}
    (folder / "manifest.json").write_text(json.dumps({"sha256": sums}))
    return run


def edited(run: Path, **changes: object) -> Path:
    """The run whose checkpoint says otherwise, under right sums; "…" takes an entry away."""
    path = last(run) / "config.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        document.pop(name, None)
        if value is not ...:
            document[name] = value
    path.write_text(json.dumps(document))
    return resealed(run)
