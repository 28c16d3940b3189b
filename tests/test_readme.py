"""The README's Python runs as it stands, and its commands are the command line's."""

import re
from pathlib import Path

import pytest

from fastgen.cli.main import COMMANDS
from fastgen.config.presets import PRESETS

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_the_commands_exist():
    used = re.findall(r"^fastgen (\w+)(?: ([\w-]+))?", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.MULTILINE)
    assert {command for command, _ in used} == set(COMMANDS)
    assert all(preset in PRESETS for command, preset in used if command == "train")


def test_every_preset_is_described():
    assert all(f"`{preset}`" in README for preset in PRESETS)


def test_the_map_names_files_that_exist():
    root = Path(__file__).parents[1]
    for path in re.findall(r"`((?:fastgen|kernels|benchmarks|tests)/[\w./]*)`", README):
        assert (root / path).exists() or re.search(r"[/_]x(_triton)?\.py$", path), path
