"""The README's Python runs as it stands, and its commands are the command line's."""

import re
from pathlib import Path

import pytest

from fastgen.cli import COMMANDS
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


ROOT = Path(__file__).parents[1]
MAP = re.findall(r"^\| ([^|]+) \| (`(?:fastgen|kernels|benchmarks|tests)/[^|]*) \|$", README, re.MULTILINE)


@pytest.mark.parametrize(("task", "place"), MAP, ids=[task for task, _ in MAP])
def test_the_map_names_a_file_and_what_is_in_it(task, place):
    """The first name in backticks is a file or folder; the names after a colon are defined in the file."""
    files, _, names = place.partition(":")
    paths = [ROOT / name for name in re.findall(r"`([\w./]+)`", files)]
    assert paths
    assert all(path.exists() for path in paths)
    for name in re.findall(r"`(\w+)`", names):
        assert re.search(rf"^ *(def|class) {name}\b|^{name}\b.* = ", paths[0].read_text(), re.MULTILINE), name


def test_the_map_has_what_a_newcomer_looks_for():
    assert len(MAP) > 20


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
