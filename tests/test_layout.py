"""The layout of the repository that others rely on, and which way imports go."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPS = sorted((ROOT / "kernels" / "fastgen_kernels").glob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def test_kernels_is_a_folder_and_no_package():
    # A package `kernels` of ours would shadow Hugging Face's, which diffusers and transformers import.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("path", [p for p in OPS if not p.stem.endswith("_triton")], ids=lambda p: p.stem)
def test_references_import_nothing_of_fastgen_or_triton(path):
    assert not {name.split(".")[0] for name in imported(path)} & {"fastgen", "triton"}


def test_importing_every_op_loads_neither_fastgen_nor_triton_kernels():
    modules = [f"fastgen_kernels.{p.stem}" for p in OPS if not p.stem.endswith("_triton")]
    code = f"import sys, {', '.join(modules)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "kernels")
    assert not {"fastgen", "triton"} & set(run.stdout.split())
    assert "fastgen_kernels" in run.stdout.split()


def test_functional_has_the_ops_of_the_design():
    import fastgen.functional as functional

    for name in functional.__all__:
        assert getattr(functional, name).__doc__, name


@pytest.mark.parametrize("folder", [".", "kernels"])
def test_a_wheel_has_every_file_that_is_read(folder):
    """What is no module is listed in pyproject.toml."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    (package,) = {"fastgen", "fastgen_kernels"} & {path.name for path in (ROOT / folder).iterdir()}
    files = {path.relative_to(ROOT / folder / package) for path in (ROOT / folder / package).rglob("*") if path.is_file()}
    assert {str(path) for path in files if path.suffix not in (".py", ".pyc")} == set(listed[package])
