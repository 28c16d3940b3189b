"""What lies in folders that diffusers or fastgen wrote; free of torch."""

import json
from pathlib import Path
from typing import Any

from fastgen.config_file import plain
from fastgen.errors import expect


def read_json(path: Path, argument: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError, naming the argument, where there is none."""
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{argument}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{argument}: {path} is not JSON: {error}") from None
    expect(f"{argument}: {path}", values, isinstance(values, dict), "a JSON object")
    return values


def read_config(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration of diffusers as plain lists and numbers, without where it came from."""
    arrays = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in config.items()}
    return {key: value for key, value in plain(arrays).items() if key not in ("_use_default_values", "_name_or_path")}


def read_unet(path: Path) -> tuple[dict[str, Any], Path]:
    """The configuration of the UNet that diffusers wrote into a folder, a pipeline's or a model's own, and where it lies."""
    for folder in (path / "unet", path):
        if (folder / "config.json").is_file():
            return read_config(read_json(folder / "config.json", "unet")), folder
    raise ValueError(f"unet: expected a folder that diffusers wrote, with config.json or unet/config.json, got {str(path)!r}")
