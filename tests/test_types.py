"""What type checkers see of the installed package: a user's script, read by mypy and by pyright's engine, both strict."""

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from fastgen.config import names
from fastgen.diffusion.objective import TIME_DRAWS
from fastgen.diffusion.process import PREDICTIONS, WEIGHTINGS
from fastgen.diffusion.samplers import SAMPLERS
from fastgen.diffusion.schedules import SCHEDULES
from fastgen.diffusion.time_grids import TIME_GRIDS

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "tests" / "helpers" / "user_script.py"
TABLES = {
    "ScheduleName": SCHEDULES,
    "PredictionName": PREDICTIONS,
    "WeightingName": WEIGHTINGS,
    "TimeDrawName": TIME_DRAWS,
    "SamplerName": SAMPLERS,
    "TimeGridName": TIME_GRIDS,
}


def test_the_names_that_settings_choose_from_are_those_of_the_tables():
    assert {name: list(getattr(names, name).__args__) for name in TABLES} == {name: list(t) for name, t in TABLES.items()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The Python of an environment with fastgen's wheel in it, and all else that is installed here."""
    root = tmp_path_factory.mktemp("wheel")
    for name in ("fastgen", "kernels/fastgen_kernels"):
        shutil.copytree(ROOT / name, root / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, root / "source")
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(root), str(root / "source")]
    subprocess.run(build, check=True)
    (wheel,) = root.glob("*.whl")
    environment = root / "environment"
    venv.create(environment)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    shutil.copy(SCRIPT, root)
    return root, environment / "bin" / "python"


@pytest.mark.slow
def test_a_users_script_is_right_to_mypy(installed):
    root, python = installed
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), SCRIPT.name]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_a_users_script_is_right_to_pyright(installed):
    """basedpyright is pyright with its JavaScript inside the wheel; in the mode "strict" it reports what pyright does."""
    root, python = installed
    (root / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "include": [SCRIPT.name]}))
    command = [sys.executable, "-m", "basedpyright", "--pythonpath", str(python)]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
