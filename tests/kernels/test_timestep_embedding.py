import pytest
import torch

from fastgen.functional import timestep_embedding
from tests.helpers.paths import by_reference

pytestmark = pytest.mark.usefixtures("path")


def exact(t, dim):
    half = dim // 2
    frequencies = 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = 1000 * t.double()[:, None] * frequencies
    return torch.cat([angle.cos(), angle.sin(), torch.zeros(len(t), dim % 2)], 1)


@pytest.mark.parametrize("dim", [2, 7, 8, 128])
def test_formula(dim, path):
    t = torch.tensor([0.0, 1e-5, 0.1, 0.5, 0.987, 1.0])
    ours = timestep_embedding(t, dim)
    assert ours.shape == (6, dim)
    assert ours.dtype == torch.float32
    # The reference rounds angles of up to 1000 to fp32.
    torch.testing.assert_close(ours.double(), exact(t, dim), rtol=0, atol=1e-4 if path == "reference" else 2e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    t = torch.rand(5).to(dtype)
    torch.testing.assert_close(timestep_embedding(t, 16).double(), exact(t, 16), rtol=0, atol=1e-4)


def test_strides_and_empty():
    t = torch.rand(12)
    assert timestep_embedding(t[::3], 8).equal(timestep_embedding(t[::3].contiguous(), 8))
    assert timestep_embedding(t[:1].expand(4), 8).equal(timestep_embedding(t[:1].repeat(4), 8))
    assert timestep_embedding(t[:0], 8).shape == (0, 8)


def test_gradient():
    t = torch.rand(3, requires_grad=True)
    (grad,) = torch.autograd.grad(timestep_embedding(t, 4).sum(), t)
    assert grad.shape == t.shape
    assert grad.any()


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: timestep_embedding(t.int(), 8), TypeError, "t: expected float16, .* got torch.int32"),
        (lambda t: timestep_embedding(t[None], 8), ValueError, r"t: expected shape \(N,\), got \(1, 3\)"),
        (lambda t: timestep_embedding(t, 1), ValueError, "dim: expected a whole number >= 2, got 1"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(3))
