"""One process at a time trains into a run's folder: a lock that the system takes back when its process ends, however it ends."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastgen.training.ranks import agreed, rank

try:
    import fcntl
except ImportError:  # Windows has no flock
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"  # the file in a run's folder that is locked, with the name of the process that holds it

_held: set[int] = set()


def _let_go_in_child() -> None:
    """A forked process, such as a reader of data, would go on holding the lock of a parent that was killed."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@contextmanager
def locked(out: Path, *, new: bool) -> Iterator[None]:
    """A context in which no other process can train into the folder `out`, which is made where it is to be `new`. The first rank
    holds the lock for all, who must all call it. A file system that has no locks is used without.

    Raises ValueError for a folder that cannot be written, or that another process trains into, with its number and host."""
    held: list[int] = []
    agreed(lambda: held.append(_acquire(out, new)))
    _held.update(held)
    try:
        yield
    finally:
        if rank() == 0:
            with suppress(OSError):
                (out / LOCK).unlink()
        for descriptor in held:
            if descriptor in _held:  # not in a child
                _held.remove(descriptor)
                os.close(descriptor)


def _acquire(out: Path, new: bool) -> int:
    path = out / LOCK
    while True:
        try:
            with suppress(FileExistsError):
                if new:
                    out.mkdir(parents=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise ValueError(f"out: expected a place that can be written, got {str(out)!r}: {error.strerror}") from None
        if not _lock(descriptor):
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(f"out: expected a run that no other process trains, got {str(out)!r}, which {holder} trains")
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # its holder ended, and removed it, after it was opened here
    with suppress(OSError):  # on a full disk the lock holds without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
    return descriptor


def _lock(descriptor: int) -> bool:
    """Whether no other process has it."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
