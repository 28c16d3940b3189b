"""The commands that docstrings and documentation name are there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.studies.report import DOCS, RECORD

pytest.importorskip("scipy")
pytest.importorskip("sklearn")

ROOT = Path(__file__).parents[2]
TEXTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("kernels/*.md"), *ROOT.glob("benchmarks/**/*.md")]
TEXTS += [path for folder in ("benchmarks", "fastgen", "kernels") for path in (ROOT / folder).rglob("*.py")]
NAMED = {name.strip(".") for path in TEXTS for name in re.findall(r"python -m (benchmarks[\w.]+)", path.read_text())}
PROOFS = {name for path in TEXTS for name in re.findall(r"python kernels/proof ([a-z]+)", path.read_text())}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_command_of_the_benchmarks_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(name).main(["--help"])
    assert stop.value.code == 0
    assert f"python -m {name}" in capsys.readouterr().out


def test_the_commands_of_the_proofs_are_listed():
    said = subprocess.run([sys.executable, ROOT / "kernels/proof", "--help"], capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"^  (\w+)", said, re.MULTILINE)) == PROOFS


def test_what_the_study_of_training_writes_is_in_the_repository():
    assert RECORD.is_file()
    assert (DOCS / "training.md").is_file()


def test_every_record_is_described():
    described = (ROOT / "benchmarks/results/README.md").read_text()
    records = [path.name for path in (ROOT / "benchmarks/results").iterdir() if path.suffix == ".json"]
    assert all(f"`{name}`" in described for name in records)


def test_benchmarks_import_no_tests():
    for folder in ("benchmarks", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^\s*(from|import) tests\b", path.read_text(), re.MULTILINE), path
