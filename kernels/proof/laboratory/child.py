"""Running what may crash in a child process."""

import faulthandler
import os
import resource
import signal
import traceback
from collections.abc import Callable


def died(fn: Callable[[], object]) -> str | None:
    """None where fn returned in a forked child, else the signal that killed it, or its exception, with the traceback."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        faulthandler.enable(write)  # a kernel that crashes in the interpreter is reported with its line
        status = 1
        try:
            fn()
            status = 0
        except BaseException:
            os.write(write, traceback.format_exc().encode())
        finally:
            os._exit(status)

    os.close(write)
    with os.fdopen(read, errors="replace") as pipe:
        report = pipe.read().split("\n\nExtension modules")[0]
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"{signal.Signals(os.WTERMSIG(status)).name}\n{report}"
    return report or None
