"""Killing a piece of work at each of the calls by which it changes files."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

from fastgen.runs import checkpoint

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"}


def killed_at(call: int, work: Callable[[], object], folder: Path) -> bool:
    """Does the work in a process that SIGKILLs itself before its call number `call`, from 0, that changes a file in `folder`: a
    file opened for writing, renamed, removed, flushed, a folder made. Returns whether it came so far, True, or ended before."""
    child = os.fork()
    if child == 0:
        try:
            _count_down(call, folder)
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the work failed with {status}"
    return status != 0


def done(work: Callable[[], object]) -> None:
    """Does the work in a process of its own, to its end."""
    assert not killed_at(sys.maxsize, work, Path("/"))


def _count_down(left: int, folder: Path) -> None:
    def change() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def watch(event: str, arguments: tuple) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in CHANGES) and str(arguments[0]).startswith(str(folder)):
            change()

    def before(call: Callable) -> Callable:
        return lambda *arguments: (change(), call(*arguments))[1]

    sys.addaudithook(watch)
    patch("os.fsync", before(os.fsync)).start()
    patch.object(checkpoint, "save_file", before(checkpoint.save_file)).start()  # written in Rust, which is not audited
