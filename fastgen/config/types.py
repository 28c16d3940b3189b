"""Whether the values of settings are of the types that their fields say."""

import dataclasses
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fastgen.errors import expect, is_whole, lookup

_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "True or False", NoneType: "None", dict: "a mapping"}


def expect_types(settings: Any, prefix: str = "") -> None:
    """Raises ValueError, naming the field after `prefix`, for a value of a dataclass that is not of its field's type. A float may
    be an int, and a tuple a list."""
    for name, hint in _hints(type(settings)).items():  # type: ignore[arg-type]  # classes are hashable
        value = getattr(settings, name)
        if get_origin(hint) is Literal:
            lookup(prefix + name, value, dict.fromkeys(get_args(hint)))
        expect(prefix + name, value, _is_of(value, hint), _phrase(hint))


@cache
def _hints(cls: type) -> dict[str, Any]:
    known = get_type_hints(cls)
    return {field.name: known[field.name] for field in dataclasses.fields(cls)}


def _is_of(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return any(_is_of(value, one) for one in arguments)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        items = arguments[:1] * len(value) if arguments[1:] == (Ellipsis,) and isinstance(value, tuple | list) else arguments
        return isinstance(value, tuple | list) and len(value) == len(items) and all(map(_is_of, value, items))
    if hint is int:
        return is_whole(value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, origin or hint)


def _phrase(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        return " or ".join(map(_phrase, arguments))
    if origin is Literal:
        return f"one of {', '.join(arguments)}"
    if origin is tuple:
        many = "several" if arguments[1:] == (Ellipsis,) else str(len(arguments))
        return f"{many} values, each {_phrase(arguments[0])}"
    return _NAMES.get(origin or hint, hint.__name__)
