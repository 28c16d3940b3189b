"""One thread for every test: the tensors are small, and sums then come out the same on every machine. Where there is no GPU,
Triton interprets kernels."""

import os
import re
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from unittest.mock import patch

import pytest
import torch

from tests.helpers.command import FRAME

torch.set_num_threads(1)
GPU = torch.cuda.is_available()
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

    if find_spec("triton"):
        from proof.interpreter import quicken, round_products_once

        quicken()
        round_products_once()


def pytest_ignore_collect(collection_path, config):
    """`pytest -m gpu` passes by files without such tests: it needs torch, Triton, numpy and pytest, and nothing else."""
    if config.option.markexpr == "gpu" and collection_path.name.startswith("test_"):
        return re.search(r'mark\.(gpu|kernels)|usefixtures\("path"\)', collection_path.read_text()) is None or None
    return None


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
    from fastgen.cli.main import main

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
    from fastgen.cli.main import main

    def done(*arguments):
        capsys.readouterr()
        main([str(a) for a in arguments])
        return capsys.readouterr().out.splitlines()

    return done


# What slow tests of the digits share, made once.


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained("mnist"): the run that `fastgen train mnist` leaves, trained as a user does."""
    from fastgen import load
    from tests.helpers.command import run

    @cache
    def trained(preset):
        folder = tmp_path_factory.mktemp(preset)
        result = run("train", preset, "--out", "run", cwd=folder)
        assert result.returncode == 0, result.stderr
        return load(folder / "run")

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
def classifier(held_out_digits):
    """A CNN that knows digits: what it makes of drawn ones is what they are judged by."""
    from benchmarks.studies.digit_classifier import train_classifier
    from fastgen import open_dataset

    model = train_classifier(open_dataset("mnist"))
    image, label = held_out_digits
    with torch.no_grad():
        assert (model(image).argmax(1) == label).float().mean() > 0.97  # a judge that errs would prove nothing
    return model
