"""Errors that name the argument, what was expected and what was found."""

import difflib
import math
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from numbers import Integral, Real  # as numpy's numbers are, too
from typing import Any, TypeVar

from fastgen_kernels.messages import shown

T = TypeVar("T")


def expect(argument: str, value: Any, holds: Any, expected: str) -> None:
    """Raises ValueError, with what was expected of the argument, unless `holds`."""
    if not holds:
        raise ValueError(f"{argument}: expected {expected}, got {shown(value)}")


def lookup(argument: str, name: str, table: Mapping[str, T]) -> T:
    """table[name]. Raises ValueError with the table's names, and the nearest one, where there is none."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = did_you_mean(name, table) if isinstance(name, str) else ""
    raise ValueError(f"{argument}: expected one of {', '.join(table)}, got {shown(name)}{near}")


def is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is a finite number from low to high: an int or a float, of numpy too, no bool, no tensor."""
    return isinstance(value, Real) and not isinstance(value, bool) and low <= float(value) <= high and math.isfinite(value)


def is_whole(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """Whether a value is an integer from low to high, of numpy too, no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high


def expect_package(package: str, what: str, extra: str | None = None) -> None:
    """Raises ModuleNotFoundError, with how to install it, alone or as an extra of fastgen, where `what` needs a package that is
    not there."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:  # a folder of that name in the working directory is found, too, and is no package
        wanted = package if extra is None else f'"fastgen-torch[{extra}]"'
        raise ModuleNotFoundError(f"{what} needs {package}: pip install {wanted}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean mnist?' where a known name is near, else nothing."""
    near = difflib.get_close_matches(name.lower()[:64], list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
