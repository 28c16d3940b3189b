"""On which of the paths of an op a test runs, where it does not run on each of them for each of its cases."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.helpers.all_pairs import all_pairs

KERNELS = "gpu" if torch.cuda.is_available() else "interpreter"

# What comes before an op chooses its path, checks of arguments above all, and what the tests of the kernels hold them to as well.
by_reference = pytest.mark.parametrize("path", ["reference"], indirect=True)


def in_pairs(names: str, *parameters: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrizes a test with cases in which every two values meet, and every value meets every path. names: as in
    pytest.mark.parametrize, separated by commas."""
    cases = all_pairs(*parameters, ["reference", KERNELS])
    marked = [pytest.param(*case, marks=[pytest.mark.gpu] if case[-1] == "gpu" else []) for case in cases]
    return pytest.mark.parametrize(f"{names}, path", marked, indirect=["path"])
