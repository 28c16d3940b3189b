"""A test suite on many versions of one module, each in a fork of this process; the module's file on disk is not touched.

What the tests import from outside the repository is imported here once, torch above all. What they import of the repository is
imported in each fork anew, the version under test in the place of the module. Processes that tests start do not see it.
"""

import contextlib
import importlib
import importlib.abc
import importlib.util
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

MEMORY_LIMIT = 3 * 2**30  # bytes in use; a limit of addresses would fail the tests of those over 2^31
NO_TESTS, NOT_IMPORTED, TIME, MEMORY = 5, 86, 124, 125  # exit codes: pytest's, and our own


@dataclass(frozen=True)
class Suite:
    root: Path
    module: str
    tests: list[Path]
    folder: Path  # for the mutants and what their tests print


def run(suite: Suite, sources: dict[int, str], selection: list[str], limit: float) -> Iterator[tuple[int, int]]:
    """The exit code of the tests on each source, negative for a signal, as they end; one process for each core at a time."""
    fork = multiprocessing.get_context("fork")
    waiting, running = list(sources), {}
    try:
        while waiting or running:
            while waiting and len(running) < len(os.sched_getaffinity(0)):
                number = waiting.pop(0)
                process = fork.Process(target=_test, args=(suite, number, sources[number], selection))
                process.start()
                running[number] = process, time.monotonic() + limit
            wait([process.sentinel for process, _ in running.values()], timeout=0.25)
            for number, (process, end) in list(running.items()):
                code = process.exitcode
                if code is None and time.monotonic() > end:
                    code = TIME
                elif code is None and _memory(process.pid) > MEMORY_LIMIT:
                    code = MEMORY
                if code is not None:
                    _kill(process)
                    del running[number]
                    yield number, code
    finally:
        for process, _ in running.values():
            _kill(process)


def _memory(session: int) -> int:
    """Bytes in use by a test process and those that its tests have started; what these share is counted for each."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            fields = stat.read_text().rpartition(")")[2].split()
            pages += int(fields[21]) if int(fields[3]) == session else 0
    return pages * resource.getpagesize()


def _kill(process: multiprocessing.Process) -> None:
    """Unless it has ended; with the processes that its tests have started."""
    if process.exitcode is None:
        with contextlib.suppress(ProcessLookupError):  # not yet at the head of a session
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
    process.join()


def _test(suite: Suite, number: int, source: str, selection: list[str]) -> None:
    """The tests on one source, in this process, which ends with their exit code."""
    os.setsid()
    with open(suite.folder / f"{number}.out", "w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    file = suite.folder / str(number) / f"{suite.module.split('.')[-1]}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text(source)
    sys.meta_path.insert(0, MutantFinder(suite.module, file))
    os.chdir(suite.root)

    import hypothesis
    import pytest

    # The same examples for every mutant, and no time spent on the simplest one that fails.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutate", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutate")
    code = int(
        pytest.main(
            ["-x", "-q", "--tb=short", "--disable-warnings", "-p", "no:cacheprovider", *selection, *map(str, suite.tests)]
        )
    )
    if code == 0 and getattr(sys.modules.get(suite.module), "__file__", None) != str(file):
        code = NOT_IMPORTED
    if number == 0:
        (suite.folder / "imports").write_text("\n".join(_imported_from_outside(suite)))
    sys.stdout.flush()
    os._exit(code)


class MutantFinder(importlib.abc.MetaPathFinder):
    """Imports `module` from `file`, where inspect, and so triton.jit, reads the source as well."""

    def __init__(self, module: str, file: Path):
        self.module, self.file = module, file

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.file) if name == self.module else None


def _imported_from_outside(suite: Suite) -> Iterator[str]:
    """The modules that this process has imported from files which are neither the repository's own nor the version under test."""
    for name, module in list(sys.modules.items()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.name == name and spec.has_location:
            file = Path(spec.origin)
            if "site-packages" in file.parts or not (file.is_relative_to(suite.root) or file.is_relative_to(suite.folder)):
                yield name
