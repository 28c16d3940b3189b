"""Configurations as YAML: a preset, then a file over it, then options; a run keeps the resolved one as config.yaml."""

import contextlib
import dataclasses
import json
import textwrap
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from fastgen.atomic import write_text
from fastgen.config.schema import ConvVAEConfig, DiffusersConfig, DiffusionConfig, TrainConfig, UNetConfig, VAEConfig
from fastgen.errors import did_you_mean, expect, lookup
from fastgen_kernels.messages import shown

MOST_BYTES = 10_000_000  # of a file of settings

_MODEL_KINDS = {"unet": UNetConfig, "vae": VAEConfig, "conv_vae": ConvVAEConfig, "diffusers": DiffusersConfig}


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The configuration as plain lists and numbers; the model's class goes by `kind`."""
    values = plain(dataclasses.asdict(config))
    kind = next(name for name, cls in _MODEL_KINDS.items() if type(config.model) is cls)
    return values | {"model": {"kind": kind, **values["model"]}}


def from_dict(values: dict[str, Any], base: TrainConfig | None = None) -> TrainConfig:
    """`base` with `values` over it, which need not name everything. Raises ValueError for an unknown name or a value of the wrong
    type."""
    base = base or TrainConfig()
    values = dict(_mapping("config", values))
    if isinstance(values.get("model"), dict) and "kind" in values["model"]:
        model = dict(values["model"])
        kind = lookup("model.kind", str(model.pop("kind")), _MODEL_KINDS)
        values["model"] = model
        if type(base.model) is not kind:
            kept = None if isinstance(base.model, DiffusersConfig) else base.diffusion  # a scheduler's goes with its model
            diffusion = None if issubclass(kind, VAEConfig) else kept or DiffusionConfig()
            base = dataclasses.replace(base, model=kind(), diffusion=diffusion)
    return _overlay(base, values, "")


def load_yaml(path: Path, base: TrainConfig | None = None) -> TrainConfig:
    """The configuration that a YAML file describes over `base`. Raises ValueError for a file that is not there or not such."""
    name = shown(str(path))[1:-1]
    try:
        values = yaml.safe_load(_read(path))
    except OSError as error:
        raise ValueError(f"config: cannot read {name}: {error.strerror or error}: expected a YAML file, got none") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # of numbers, dates, keys
        raise ValueError(f"config: {name} is not YAML: {_first_line(error)}: expected settings, got that") from None
    try:
        _expect_small(values)
        return from_dict(values, base)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def save_yaml(config: TrainConfig, path: Path) -> None:
    """Writes what `load_yaml` gives back: the whole file or nothing. Raises OSError where the disk is full."""
    write_text(path, yaml.safe_dump(to_dict(config), sort_keys=False))


def _read(path: Path) -> bytes:
    """A file's bytes. Raises OSError for what is no file, such as a pipe, which would be waited for, and for a large one."""
    if path.exists() and not path.is_file():
        raise OSError(0, "it is no regular file")
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise OSError(0, f"it has more than {MOST_BYTES:,} bytes")
    return path.read_bytes()


def _first_line(error: BaseException) -> str:
    return textwrap.shorten(str(error), 200) or type(error).__name__


def _expect_small(values: Any) -> None:
    """Raises ValueError for values that are deep, or many once YAML's aliases are followed: a kilobyte can stand for a
    billion."""
    todo, seen = [(values, 0)], 0
    while todo:
        value, depth = todo.pop()
        inner = list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list | tuple | set) else []
        seen += len(inner)
        expect("config", value, depth <= 32 and seen <= 100_000, "at most 100,000 values, nested at most 32 deep")
        todo += [(one, depth + 1) for one in inner]


def _overlay(base: Any, values: dict[str, Any], prefix: str) -> Any:
    known = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for name, value in values.items():
        readable = isinstance(name, str) and name.isprintable() and len(name) < 100
        expect(f"{prefix}setting", name, readable, "the name of a setting")
        if name not in known:
            raise ValueError(f"{prefix}{name}: no such setting{did_you_mean(name, known)}")
        old = getattr(base, name)
        if dataclasses.is_dataclass(old) and value is not None:
            changes[name] = _overlay(old, _mapping(prefix + name, value), f"{prefix}{name}.")
        else:
            changes[name] = _typed(prefix + name, known[name], value)
    return dataclasses.replace(base, **changes)


def _typed(name: str, hint: Any, value: Any) -> Any:
    """The value that YAML gave as the type that the field has."""
    if get_origin(hint) is UnionType:
        if value is None and NoneType in get_args(hint):
            return None
        hint = next(h for h in get_args(hint) if h is not NoneType)
    if get_origin(hint) is dict:
        return _mapping(name, value)
    if get_origin(hint) is Literal:
        expect(name, value, value in get_args(hint), f"one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        item, *more = get_args(hint)
        expect(name, value, isinstance(value, list | tuple), "a list")
        expect(name, value, more == [Ellipsis] or len(value) == 1 + len(more), f"a list of {1 + len(more)}")
        return tuple(_typed(name, item, v) for v in value)
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):  # YAML reads 1e-3 as a string
        with contextlib.suppress(ValueError, OverflowError):
            value = float(value)
    expect(name, value, type(value) is hint, f"a value of type {getattr(hint, '__name__', hint)}")
    return value


def _mapping(name: str, values: Any) -> dict[str, Any]:
    expect(name, values, isinstance(values, dict), "a mapping of names to values")
    return values


def plain(value: Any) -> Any:
    """Tuples as lists, which YAML and JSON can write."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def read_json(path: Path, argument: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the argument, where there is none."""
    try:
        values = json.loads(_read(path))
    except OSError as error:
        said = error.strerror or error
        raise ValueError(f"{argument}: expected a JSON file that can be read, got {str(path)!r}: {said}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{argument}: expected JSON in {path}, got other text: {_first_line(error)}") from None
    expect(f"{argument}: {path}", values, isinstance(values, dict), "a JSON object")
    return values
