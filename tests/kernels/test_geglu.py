import pytest
import torch
import torch.nn.functional as F

from fastgen.functional import geglu
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

SHAPES = [(2,), (6,), (3, 16), (2, 3, 74), (2, 1, 3, 10)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "permuted": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "half": lambda x: torch.cat((x, x), -1)[..., x.shape[-1] :],
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "one row": lambda x: x[:1, :1].expand(x.shape),
}


def exact(x):
    """The formula, in fp64."""
    value, gate = x.double().chunk(2, -1)
    return value * gate * (1 + torch.erf(gate / 2**0.5)) / 2


def draw(shape, dtype=torch.float32):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    return x.to(torch.get_default_device(), dtype).requires_grad_()


def gradient(f, x):
    y = f(x)
    upstream = torch.linspace(-1, 1, max(1, y.numel()), device=x.device)[: y.numel()].to(x.dtype).view(y.shape)
    return y, torch.autograd.grad(y, x, upstream.to(y.dtype))[0]


@in_pairs("shape, dtype", SHAPES, FLOATS)
def test_formula(shape, dtype):
    x = draw(shape, dtype)
    (y, grad), (expected, expected_grad) = gradient(geglu, x), gradient(exact, x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert y.dtype == dtype
    # Twice rounded, in bf16 by the interpreter's truncating casts, and in backward once more where terms cancel.
    tolerance = {torch.bfloat16: {"rtol": 1.6e-2, "atol": 2e-3}, torch.float16: {"rtol": 2e-3, "atol": 3e-4}}.get(dtype, {})
    torch.testing.assert_close(y, expected.to(dtype), **tolerance)
    torch.testing.assert_close(grad, expected_grad, **tolerance)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    x = LAYOUTS[layout](draw((2, 3, 10)).detach()).requires_grad_()
    (y, grad), (expected, expected_grad) = gradient(geglu, x), gradient(exact, x)
    assert y.is_contiguous()
    torch.testing.assert_close(y, expected.float())
    torch.testing.assert_close(grad, expected_grad)


def test_as_diffusers_computes_it():
    x = draw((2, 3, 10))
    value, gate = x.chunk(2, dim=-1)
    torch.testing.assert_close(geglu(x), value * F.gelu(gate))


def test_expanded_gradient():
    x = draw((2, 3, 10))
    torch.testing.assert_close(*(torch.autograd.grad(f(x).sum(), x)[0] for f in (geglu, exact)))


@by_reference
def test_gradcheck():
    assert torch.autograd.gradcheck(geglu, draw((2, 3, 10), torch.float64), fast_mode=True)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (3, 0)])
def test_empty(shape):
    x = draw(shape)
    y = geglu(x)
    assert y.shape == (*shape[:-1], shape[-1] // 2)
    assert torch.autograd.grad(y.sum(), x)[0].shape == shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_has_no_effect(dtype):
    x = draw((2, 3, 10), dtype)
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = geglu(x)
    assert y.dtype == dtype
    assert y.equal(geglu(x))


@by_reference
def test_compiles():
    x = draw((2, 3, 10))
    compiled = torch.compile(geglu, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(gradient(compiled, x), gradient(geglu, x), strict=True):
        torch.testing.assert_close(ours, eager)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: geglu(x[..., :5]), ValueError, r"x: expected \(..., 2D\), got shape \(2, 5\)"),
        (lambda x: geglu(x[0, 0]), ValueError, r"x: expected \(..., 2D\), got shape \(\)"),
        (lambda x: geglu(x.int()), TypeError, "x: expected float16, bfloat16, .* got torch.int32"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 6))
