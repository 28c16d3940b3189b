import pytest
import torch

from fastgen.functional import q_sample, to_x0
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

SHAPES = [(3,), (3, 5), (3, 2, 7, 5), (3, 2, 2, 3, 5), (0, 3, 4)]
GUIDANCES = [1.0, 0.0, 7.5, torch.tensor([1.0, 3.0, -0.5])]


def exact(out, x, c_skip, c_out, uncond=None, guidance=1.0):
    """The formula, in fp64."""

    def column(c):
        return c.double().reshape(-1, *[1] * (x.dim() - 1))

    out = out.double()
    if uncond is not None:
        w = column(guidance) if isinstance(guidance, torch.Tensor) else guidance
        out = w * out + (1 - w) * uncond.double()
    return column(c_skip) * x.double() + column(c_out) * out


def last(x):
    """Channels innermost."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def permuted(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def arguments(shape, dtype=torch.float32):
    torch.manual_seed(0)
    out, x, uncond = (torch.randn(shape).to(dtype) for _ in range(3))
    return (out, x, torch.randn(shape[0]), torch.randn(shape[0])), uncond


@in_pairs("shape, dtype, guidance", SHAPES, FLOATS, GUIDANCES)
def test_formula(shape, dtype, guidance):
    args, uncond = arguments(shape, dtype)
    guidance = guidance[: shape[0]].to(uncond.device) if isinstance(guidance, torch.Tensor) else guidance
    for options in ({}, {"guidance": guidance}, {"guidance": guidance, "uncond": uncond}):
        x0_hat = to_x0(*args, **options)
        assert x0_hat.dtype == dtype
        tolerance = {"rtol": 1e-5, "atol": 2e-6} if dtype == torch.float32 else {}  # guidance 7.5 cancels
        torch.testing.assert_close(x0_hat, exact(*args, **options).to(dtype), **tolerance)


def test_output_in_another_dtype():
    (out, x, c_skip, c_out), _ = arguments((3, 2, 5))
    x0_hat = to_x0(out.bfloat16(), x, c_skip, c_out)
    assert x0_hat.dtype == torch.float32
    torch.testing.assert_close(x0_hat, exact(out.bfloat16(), x, c_skip, c_out).float())


@pytest.mark.parametrize(
    ("target", "coefficients"),
    [
        ("eps", lambda alpha, sigma: (1 / alpha, -sigma / alpha)),
        ("x0", lambda alpha, sigma: (0 * alpha, 1 + 0 * alpha)),
        ("v", lambda alpha, sigma: (alpha, -sigma)),
        ("flow", lambda alpha, sigma: (1 + 0 * alpha, -sigma)),
    ],
)
def test_undoes_q_sample(target, coefficients):
    x0, sigma = torch.randn(3, 2, 5, dtype=torch.float64), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha = 1 - sigma if target == "flow" else (1 - sigma**2).sqrt()
    x_t, made = q_sample(x0, alpha, sigma, target=target)
    torch.testing.assert_close(to_x0(made, x_t, *coefficients(alpha, sigma)), x0)


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (3, 2, 5), (3, 2, 2, 3, 5)])
def test_layouts(shape):
    (out, x, c_skip, c_out), uncond = arguments(shape)
    expected = to_x0(out, x, c_skip, c_out, uncond=uncond, guidance=2.0)
    for f, g in ((last, last), (last, permuted), (permuted, last)):
        x0_hat = to_x0(g(out), f(x), c_skip, c_out, uncond=uncond, guidance=2.0)
        assert x0_hat.equal(expected)
        assert (x0_hat.movedim(1, -1) if f is last else x0_hat).is_contiguous()


def test_nothing_is_read_on_the_host():
    x, each = torch.empty(3, 5, device="meta"), torch.empty(3, device="meta")
    assert to_x0(x, x, each, each, uncond=x, guidance=each).shape == (3, 5)


@by_reference
def test_gradcheck():
    args, uncond = arguments((3, 2, 2))
    inputs = [t.double().requires_grad_() for t in (*args, uncond, torch.rand(3))]
    assert torch.autograd.gradcheck(lambda *t: to_x0(*t[:4], uncond=t[4], guidance=t[5]), inputs)


def test_autocast_has_no_effect():
    args, uncond = arguments((3, 2, 5))
    expected = to_x0(*args, uncond=uncond, guidance=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert to_x0(*args, uncond=uncond, guidance=2.0).equal(expected)


@by_reference
def test_compiles():
    args, uncond = arguments((3, 2, 5), torch.bfloat16)
    compiled = torch.compile(to_x0, fullgraph=True, backend="aot_eager")
    for guidance in (2.0, torch.rand(3)):
        options = {"uncond": uncond, "guidance": guidance}
        torch.testing.assert_close(compiled(*args, **options), to_x0(*args, **options))


X, ONE = torch.ones(2, 3), torch.ones(2)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: to_x0(ONE, X, ONE, ONE), ValueError, r"out: expected shape of x = \(2, 3\), got \(2,\)"),
        (lambda: to_x0(X, X, X, ONE), ValueError, r"c_skip: expected shape \(N,\) = \(2,\), got \(2, 3\)"),
        (lambda: to_x0(X, X, ONE, ONE[:1]), ValueError, r"c_out: expected shape \(N,\)"),
        (lambda: to_x0(X, X, ONE, ONE, uncond=ONE), ValueError, "uncond: expected shape of x"),
        (lambda: to_x0(X, X, ONE, ONE, guidance=X), ValueError, r"guidance: expected shape \(N,\)"),
        (lambda: to_x0(X, X.int(), ONE, ONE), TypeError, "x: expected float16"),
        (lambda: to_x0(X, X, ONE, ONE, guidance=ONE.int()), TypeError, "guidance: expected float16"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
