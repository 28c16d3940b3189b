"""The layout of the repository that others rely on, and which way imports go."""

import ast
import graphlib
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"fastgen": ROOT / "fastgen", "fastgen_kernels": ROOT / "kernels" / "fastgen_kernels"}

# The rooms of fastgen/, from the ground up, and what each may import beside what all may: the ops, `errors`, and what lies at the
# top of fastgen/. A room imports only rooms above it in this list.
ALL = {"fastgen_kernels", "errors", "atomic", "functional", "noise_streams", "pixels", "device", "cuda_graph", "progress_bar"}
ROOMS: dict[str, set[str]] = {
    "config": set(),
    "data": {"config"},
    "dropin": set(),
    "optim": set(),
    "diffusion": {"config"},
    "models": {"config", "diffusion", "dropin"},
    "runs": {"config", "data", "diffusion", "models"},
    "interchange": {"config", "models", "runs"},
    "files": {"data"},
    "applications": {"config", "diffusion", "runs"},
    "training": {"config", "data", "diffusion", "files", "interchange", "models", "optim", "runs"},
    "cli": {"config", "data", "files", "interchange", "applications", "training", "runs"},
}
PUBLIC = {"samplers", "schedules", "likelihood"}  # at the top under their public names; nothing of ours imports them there
OPS = sorted((ROOT / "kernels" / "fastgen_kernels").glob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def modules():
    """Every module of the two packages by its dotted name."""
    found = {}
    for folder in PACKAGES.values():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name):
    """The modules of ours that a module imports, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            named = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in named if {name, node.module} & set(MODULES))


def room(name):
    """ "models" of fastgen.models.unet, "errors" of fastgen.errors, "fastgen_kernels" of every op."""
    package, *inside = name.split(".")
    return inside[0] if package == "fastgen" and inside else package


def test_each_room_imports_what_it_may():
    for name in MODULES:
        if room(name) in ROOMS:
            allowed = ALL | ROOMS[room(name)] | {room(name)} | ({"fastgen"} if room(name) == "cli" else set())
            used = {room(other) for other in imports_of(name)}
            assert used <= allowed, f"{name} imports {used - allowed}"


def test_rooms_are_listed_from_the_ground_up():
    below = set()
    for name, allowed in ROOMS.items():
        assert allowed <= below, name
        below.add(name)
    folders = {path.name for path in (ROOT / "fastgen").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)


def test_what_all_may_import_imports_no_room():
    for name in MODULES:
        if room(name) in ALL:
            assert {room(other) for other in imports_of(name)} <= ALL, name


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: {other for other in imports_of(name) if other != name} for name in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the modules of a circle


def test_the_public_modules_are_those_of_diffusion():
    import fastgen

    for name in PUBLIC:
        public, own = getattr(fastgen, name), importlib.import_module(f"fastgen.diffusion.{name}")
        assert all(getattr(public, each) is getattr(own, each) for each in own.__all__)
        assert set(public.__all__) == set(own.__all__)


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
