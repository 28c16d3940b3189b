"""One thread for every test and every process that a test starts: the tensors are small, sums then come out the same on every
machine, and threads of more processes than cores would wait for one another. Where there is no GPU, Triton interprets kernels."""

import os
import re
import shutil
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch
from filelock import FileLock  # torch needs it too

from tests.helpers.command import FRAME

torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

    if find_spec("triton"):
        from proof.interpreter import quicken, round_as_on_a_gpu, round_products_once

        quicken()
        round_products_once()
        round_as_on_a_gpu()


def pytest_ignore_collect(collection_path, config):
    """`pytest -m gpu` passes by files without such tests: it needs torch, Triton, numpy and pytest, and nothing else."""
    if config.option.markexpr == "gpu" and collection_path.name.startswith("test_"):
        return re.search(r'mark\.(gpu|kernels)|usefixtures\("path"\)', collection_path.read_text()) is None or None
    return None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each of pytest-xdist's processes takes neighbouring tests, which share what their modules make, and helps another when it
    has none left."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


def pytest_collection_modifyitems(items):
    for item in items:
        if GPU and item.get_closest_marker("kernels") is not None:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(params=["reference", pytest.param("gpu", marks=pytest.mark.gpu) if GPU else "interpreter"])
def path(request):
    """Runs a test by each path that its ops can take on this machine; tensors are made on the device that it needs."""
    from fastgen_kernels.dispatch import disabled

    with disabled() if request.param == "reference" else nullcontext(), torch.device("cuda" if request.param == "gpu" else "cpu"):
        yield request.param


@pytest.fixture(scope="session", autouse=True)
def _references():
    """Other tests, and what is made for several tests, take the references: the interpreter is slow."""
    from fastgen_kernels.dispatch import disabled

    with disabled():
        yield


@pytest.fixture(autouse=True)
def _kernels(request):
    """Tests that are marked `kernels` do not."""
    chosen = "path" in request.fixturenames or request.node.get_closest_marker("kernels") is not None
    with patch("fastgen_kernels.dispatch._enabled", True) if chosen else nullcontext():
        yield


@pytest.fixture
def refused(capsys):
    """refused("train", "mnst"): what the command line says on stderr, in few lines, before it exits with 2."""
    from fastgen.cli import main

    def refused(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        assert (stop.value.code, out) == (2, "")
        assert "Traceback" not in err
        assert 0 < err.count("\n") <= 16
        return " ".join(FRAME.sub(" ", err).split())

    return refused


@pytest.fixture
def done(capsys):
    """done("sample", run): the lines on stdout of a command that succeeds."""
    from fastgen.cli import main

    def done(*arguments):
        capsys.readouterr()
        main([str(a) for a in arguments])
        return capsys.readouterr().out.splitlines()

    return done


# What tests share, made once.


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): the folder that make(folder) filled, in the first of pytest-xdist's processes that asked for it.
    What failed is not made again: the others who ask for it fail at once."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = tmp_path_factory.getbasetemp() if alone else tmp_path_factory.getbasetemp().parent

    def made_once(name, make):
        begun, done = shared / f"{name}-begun", shared / f"{name}-done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                assert not begun.exists(), f"{name}: expected to be made, failed in another test"
                begun.touch()
                folder = tmp_path_factory.mktemp(name)
                make(folder)
                folder.rename(done)
        return done

    return made_once


@pytest.fixture(scope="session")
def tiny_run(made_once):
    """tiny_run("labelled", folder): a copy there of the run that tests.helpers.tiny_runs.labelled leaves."""
    from tests.helpers import tiny_runs

    def tiny_run(kind, to):
        made = made_once(f"tiny-{kind}", lambda folder: getattr(tiny_runs, kind)(folder / "run"))
        return shutil.copytree(made / "run", to)

    return tiny_run


@pytest.fixture
def unpictured():
    from tests.helpers.tiny_runs import without_pictures

    with without_pictures():
        yield


@pytest.fixture(scope="session")
def trained(made_once):
    """trained("mnist"): the run that `fastgen train mnist` leaves, trained as a user does, but on one thread: another core runs
    other tests."""
    from fastgen import load
    from tests.helpers.command import run

    @cache
    def trained(preset):
        def train(folder):
            result = run("train", preset, "--threads", "1", "--out", "run", cwd=folder, timeout=3_600)
            assert result.returncode == 0, result.stderr

        return load(made_once(preset, train) / "run")

    return trained


@pytest.fixture(scope="session")
def real_digits():
    """All 4,500 that are trained on, uint8 (N, 1, 28, 28), and their labels."""
    from fastgen import open_dataset

    return next(open_dataset("mnist").batches(4_500))


@pytest.fixture(scope="session")
def held_out_digits():
    from fastgen import open_dataset

    return next(open_dataset("mnist", split="test").batches(500))


@pytest.fixture(scope="session")
def classifier(held_out_digits, made_once):
    """A CNN that knows digits: what it makes of drawn ones is what they are judged by."""
    from benchmarks.studies.digit_classifier import train_classifier
    from fastgen import open_dataset

    trained = made_once("classifier", lambda folder: torch.save(train_classifier(open_dataset("mnist")), folder / "model.pt"))
    model = torch.load(trained / "model.pt", weights_only=False)
    image, label = held_out_digits
    with torch.no_grad():
        assert (model(image).argmax(1) == label).float().mean() > 0.97  # a judge that errs would prove nothing
    return model
