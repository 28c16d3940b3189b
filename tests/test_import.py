"""What importing fastgen costs and leaves alone, and that help comes at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fastgen

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}


def python(code):
    """What code prints in a fresh interpreter, away from this folder; it must print nothing on stderr."""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", env=ENVIRONMENT)
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_importing_loads_neither_torch_nor_triton_and_prints_nothing():
    out = python(
        "import sys; before = set(sys.modules); import fastgen\n"
        "new = {m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)\n"
        "assert new == {'fastgen'}, new"
    )
    assert out == ""


def test_using_every_name_patches_nothing_and_loads_no_triton():
    out = python(
        "import sys, torch, torch.utils.data\n"
        "places = [torch, torch.nn, torch.nn.functional, torch.nn.Module, torch.Tensor, torch.optim, torch.utils.data]\n"
        "before = [dict(vars(p)) for p in places]\n"
        "state, threads = torch.get_rng_state(), torch.get_num_threads()\n"
        "import fastgen\n"
        "for name in fastgen.__all__: getattr(fastgen, name)\n"
        "changed = [k for p, b in zip(places, before) for k, v in b.items() if vars(p).get(k) is not v]\n"
        "assert not changed, changed\n"
        "assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads\n"
        "assert 'triton' not in sys.modules\n"
    )
    assert out == ""


@pytest.mark.parametrize("name", fastgen.__all__)
def test_every_lazy_name_is_there(name):
    value = getattr(fastgen, name)
    assert getattr(value, "__name__", "").split(".")[-1] == name
    assert value.__doc__
    assert name in dir(fastgen)


def test_dir_names_each_once():
    assert sorted(set(dir(fastgen))) == dir(fastgen)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fastgen' has no attribute 'Vae'"):
        fastgen.Vae  # noqa: B018
    with pytest.raises(ImportError):
        from fastgen import Vae  # noqa: F401


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train"], ["train", "mnist", "--help"], ["sample", "--help"]])
def test_help_loads_nothing_that_takes_long(arguments):
    """Of other packages only those that parse options and files: help then comes within half a second."""
    out = python(
        "import atexit, sys; before = set(sys.modules)\n"
        "def show(): print(*{m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names))\n"
        "atexit.register(show)\n"
        f"from fastgen.cli import main; main({arguments})"
    )
    *said, loaded = out.splitlines()
    assert len("".join(said)) > 10
    parsing = {"tyro", "docstring_parser", "typeguard", "typing_extensions", "yaml", "shtab", "rich"}
    cython = {name for name in loaded.split() if name.lstrip("_").startswith("cython")}  # of yaml
    assert set(loaded.split()) - cython <= parsing | {"fastgen", "fastgen_kernels"}
