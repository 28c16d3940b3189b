"""Outputs and gradients of each family's small model are the same after `optimize`; see families.py for the table."""

from importlib.util import find_spec

import pytest

from tests.dropin.families import FAMILIES, compared

WITHOUT_NORMS = {"AutoencoderKLLTXVideo", "AutoencoderKLWan"}  # of groups


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name):
    package = FAMILIES[name][0]
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")
    row = compared(name)
    most = 1e-5 if name.startswith("denoising") else 1e-12
    assert (row.output <= most, row.gradient <= most) == (True, True), row
    assert (row.changed > 0) == (name not in WITHOUT_NORMS), row
