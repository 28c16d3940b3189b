"""The kernel of timestep_embedding, by the laboratory's checks."""

import pytest
import torch

from fastgen.functional import timestep_embedding
from fastgen_kernels.timestep_embedding import _timestep_embedding
from proof.interpreter import recorded
from proof.laboratory.compiling import assert_compiles, assert_exports, assert_registered
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.soundness import assert_sound

pytestmark = pytest.mark.kernels


def exact(t, dim):
    half = dim // 2
    frequencies = 10_000 ** (-torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angle = 1000 * t.double()[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin(), torch.zeros(len(t), dim % 2, dtype=torch.float64, device=t.device)], 1)


@pytest.mark.kill
@pytest.mark.parametrize(("n", "dim"), [(9, 2), (67, 15), (3, 256), (4, 30), (2, 1100)])
def test_accurate(n, dim):
    t = torch.linspace(0, 1, 2 * n, device=DEVICE)[1::2]
    torch.testing.assert_close(timestep_embedding(t, dim).double(), exact(t, dim), rtol=0, atol=2e-7)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(("n", "dim"), [(5, 7), (130, 8)])
def test_sound(n, dim):
    assert_sound(lambda t: timestep_embedding(t, dim), torch.rand(n))


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("dim", [14, 15])
def test_each_element_is_written_once(dim):
    """The threads of a program store in any order."""
    with recorded() as log:
        timestep_embedding(torch.rand(3), dim)
    assert sum(access.addresses.size for access in log if access.kind == "store") == 3 * dim


@interpreter_only
@pytest.mark.kill
def test_one_launch():
    with recorded() as log:
        timestep_embedding(torch.rand(9), 64)
        assert timestep_embedding(torch.rand(0), 64).shape == (0, 64)
    assert log.launches == ["embedding_kernel"]


def test_registered_compiles_and_exports():
    t = torch.rand(6, device=DEVICE)
    assert_registered(_timestep_embedding.registered, (t, 9))
    assert_compiles(lambda t: timestep_embedding(t, 32), t, backends=("aot_eager", "inductor"))
    assert_exports(lambda t: timestep_embedding(t, 32), t)
