"""Errors that name the argument, what was expected and what was found."""

import difflib
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")


def expect(argument: str, value: Any, holds: Any, expected: str) -> None:
    """Raises ValueError, with what was expected of the argument, unless `holds`."""
    if not holds:
        raise ValueError(f"{argument}: expected {expected}, got {value!r}")


def lookup(argument: str, name: str, table: Mapping[str, T]) -> T:
    """table[name]. Raises ValueError with the table's names, and the nearest one, where there is none."""
    if name in table:
        return table[name]
    raise ValueError(f"{argument}: expected one of {', '.join(table)}, got {name!r}{did_you_mean(name, table)}")


def expect_package(package: str, what: str) -> None:
    """Raises ModuleNotFoundError, with how to install it, where `what` needs a package that is not there."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name in the working directory is found, too, and is no package
        raise ModuleNotFoundError(f"{what} needs {package}: pip install {package}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean mnist?' where a known name is near, else nothing."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
