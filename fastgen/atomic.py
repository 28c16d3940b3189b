"""Files that are there whole or not at all: written beside their place, flushed to disk and renamed; free of torch.

A file written so takes its mode from the umask and replaces a link instead of following it.
"""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_whole(path: Path, write: Callable[[Any], object], *, flush_to_disk: bool = False) -> None:
    """Calls write(file) with a binary file of a temporary name, which is renamed to `path` once it is complete, and removed where
    an error comes first. flush_to_disk: whether it must also survive a loss of power.

    Raises OSError of one line, with what is needed and what is free, where the disk is full."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        temporary.unlink(missing_ok=True)  # a link too, whose target is somebody's
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            write(file)
            if flush_to_disk:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if is_no_room(error):
            counter = _Counter()
            write(counter)
            raise no_room(path, counter.size) from None
        raise
    if flush_to_disk:
        flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text that must not be lost, as `write_whole` does. Raises OSError where the disk is full."""
    write_whole(path, lambda file: file.write(text.encode()), flush_to_disk=True)


def beside(path: Path) -> Path:
    """The temporary name of what becomes `path`."""
    return path.with_name(f".{path.name}.tmp")


def remove(path: Path) -> None:
    """Removes a file, a link or a folder with all in it, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_no_room(error: BaseException) -> bool:
    """Whether an error says that the disk, a quota or the largest size of a file is reached."""
    if isinstance(error, OSError):
        return error.errno in _NO_ROOM
    return any(f"(os error {number})" in str(error) for number in _NO_ROOM)  # safetensors' own error, raised in Rust


def no_room(path: Path, need: int) -> OSError:
    """The error to raise where `path`, of `need` bytes, found no room on its disk."""
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    return OSError(f"{path}: expected {need / 1e6:.1f} MB of disk space, got {free / 1e6:.1f} MB free, or a limit on files")


class _Counter(io.RawIOBase):
    """A file that only counts the bytes written to it."""

    def __init__(self) -> None:
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.size += size
        return size
