"""Judges what a call makes of bad input: a clear error, an unclear one, or none.

A clear error is a ValueError, a TypeError or a FileNotFoundError that says "argument: expected …, got …", within seconds, in a
length that can be read, without control characters. The command line says it on stderr and exits with 2; its parser of options
has a grammar of its own, which names the option, its type and what came.
"""

import contextlib
import io
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.command import FRAME

SECONDS = 60
MEMORY = 2 * 2**30  # bytes that a call may ask for beyond what the process has
LENGTH = 900  # of a message
CLEAR, UNCLEAR, SILENT = "clear", "unclear", "silent"


@dataclass(frozen=True)
class Case:
    """Bad input: a call, given a folder of its own, and the argument that the error is to name."""

    name: str
    argument: str  # a pattern: "a|b" where either may be named
    call: Callable[[Path], Any]
    prepare: Callable[[], Any] = lambda: None  # what the call needs, made once, in its own time


def bad(argument: str, function: Callable, *arguments: Any, **keywords: Any) -> Case:
    """The case of function(*arguments, **keywords), whose `argument` is bad."""
    shown = [short(each) for each in arguments] + [f"{key}={short(value)}" for key, value in keywords.items()]
    name = getattr(function, "__qualname__", type(function).__name__)
    return Case(f"{name}({', '.join(shown)})", argument, lambda _: function(*arguments, **keywords))


def short(value: Any) -> str:
    """A value in a case's name."""
    shape = getattr(value, "shape", None)
    text = type(value).__name__ + str(tuple(shape)) if shape is not None else " ".join(repr(value).split())
    text = re.sub(r"^<(?:function|class)? ?'?([\w.<>]+).*$", r"\1", text)
    return text if len(text) <= 40 else text[:37] + "..."


def verdict(case: Case, folder: Path) -> tuple[str, str]:
    """CLEAR, UNCLEAR or SILENT, and what was said."""
    case.prepare()
    try:
        with limited():
            case.call(folder)
    except (ValueError, TypeError, FileNotFoundError) as error:
        text = str(error)
        return (CLEAR if is_clear(case.argument, text) else UNCLEAR), f"{type(error).__name__}: {text}"
    except BaseException as error:  # pytrees of torch raise nearly everything
        if isinstance(error, KeyboardInterrupt):
            raise
        return UNCLEAR, f"{type(error).__name__}: {error}"
    return SILENT, "nothing"


def is_clear(argument: str, text: str) -> bool:
    """Whether an error names the argument, what was expected and what came."""
    pattern = rf"(^|[^\w])(?:{argument})\b.*: (expected .+, got .+|no such setting)"
    parser = (
        rf"(Error parsing|for argument|options:|Missing from|already holds).*({argument})|out: .run. already holds"  # tyro's own
    )
    named = re.search(pattern, text) or re.search(parser, text)
    return named is not None and len(text) <= LENGTH and all(c.isprintable() for c in text)


class Hung(BaseException):
    """A call that does not end; no OSError, which the call may take for a fault of a file."""


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Ends what takes more than SECONDS, or MEMORY where the system counts it."""

    def stop(*_: Any) -> None:
        raise Hung(f"expected an answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if Path("/proc/self/statm").exists():
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Exit(ValueError):
    """What a command said on stderr before it exited with 2."""


def command(*arguments: Any) -> None:
    """Runs `fastgen ARGUMENTS` in this process. Raises Exit for a refusal as it should be, and AssertionError for another end."""
    from fastgen.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(each) for each in arguments])
        except SystemExit as stop:
            said = err.getvalue()
            if stop.code != 2 or "Traceback" in said or said.count("\n") > 16:
                raise AssertionError(f"expected exit code 2 and a few lines, got {stop.code}: {said}") from None
            raise Exit(" ".join(FRAME.sub(" ", said).split()) if said.count("\n") > 1 else said.strip("\n")) from None


def scorecard(groups: dict[str, list[Case]], folder: Path, verbose: bool = True) -> dict[str, dict[str, int]]:
    """Counts the verdicts of each group, and prints what is not clear."""
    counts = {}
    for group, cases in groups.items():
        counts[group] = dict.fromkeys((CLEAR, UNCLEAR, SILENT), 0)
        for number, case in enumerate(cases):
            place = folder / group / f"{number:03d}"
            place.mkdir(parents=True)
            with contextlib.chdir(place):
                found, said = verdict(case, place)
            counts[group][found] += 1
            if verbose and found != CLEAR:
                print(f"{group}: {case.name} [{case.argument}]: {found}: {said[:300]}", file=sys.stderr)
    return counts
