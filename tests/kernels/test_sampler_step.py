import pytest
import torch

from fastgen.functional import at, noise_key, philox_normal, sampler_step
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

SHAPES = [(3,), (3, 5), (3, 2, 7, 5), (3, 2, 2, 3, 5), (0, 3, 4)]


def row():
    return torch.tensor([0.7, -0.4, 0.25, 0.3])


def exact(x, x0_hat, coefficients, previous=None, key=None):
    """The formula, in fp64."""
    a, b, c, s = coefficients.tolist()
    x_next = a * x.double() + b * x0_hat.double()
    if previous is not None:
        x_next += c * previous.double()
    if key is not None:
        x_next += s * philox_normal(x.shape, key, dtype=torch.float64)
    return x_next


def last(x):
    """Channels innermost."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def permuted(x):
    return x.transpose(0, -1).contiguous().transpose(0, -1)


def arguments(shape, dtype=torch.float32):
    torch.manual_seed(0)
    x, x0_hat, previous = (torch.randn(shape).to(dtype) for _ in range(3))
    return x, x0_hat, previous, noise_key(3, step=4, samples=shape[0])


@in_pairs("shape, dtype", SHAPES, FLOATS)
def test_formula(shape, dtype):
    x, x0_hat, previous, key = arguments(shape, dtype)
    for options in ({}, {"previous": previous}, {"key": key}, {"previous": previous, "key": key}):
        x_next = sampler_step(x, x0_hat, row(), **options)
        assert x_next.dtype == dtype
        torch.testing.assert_close(x_next, exact(x, x0_hat, row(), **options).to(dtype))


def test_fp64_coefficients():
    x, x0_hat, previous, _ = arguments((3, 5), torch.float64)
    coefficients = torch.tensor([1 / 3, 2 / 3, -1 / 7, 0], dtype=torch.float64)
    x_next = sampler_step(x, x0_hat, coefficients, previous=previous)
    torch.testing.assert_close(x_next, exact(x, x0_hat, coefficients, previous), rtol=1e-14, atol=1e-14)
    assert sampler_step(x.float(), x0_hat.float(), coefficients).dtype == torch.float32


def test_noise_does_not_depend_on_the_batch():
    x, x0_hat, _, key = arguments((3, 2, 5))
    whole = sampler_step(x, x0_hat, row(), key=key)
    assert sampler_step(x[1:2], x0_hat[1:2], row(), key=key[1:2]).equal(whole[1:2])


@pytest.mark.parametrize("shape", [(3, 2, 7, 5), (3, 2, 5), (3, 2, 2, 3, 5)])
def test_layouts(shape):
    x, x0_hat, previous, key = arguments(shape)
    expected = sampler_step(x, x0_hat, row(), previous=previous, key=key)
    for f, g in ((last, last), (last, permuted), (permuted, last)):
        x_next = sampler_step(f(x), g(x0_hat), row(), previous=f(previous), key=key)
        assert x_next.equal(expected)
        assert (x_next.movedim(1, -1) if f is last else x_next).is_contiguous()


def test_nothing_is_read_on_the_host():
    x = torch.empty(3, 5, device="meta")
    row, key = torch.empty(4, device="meta"), noise_key(0, samples=3, device="meta")
    step = torch.empty((), dtype=torch.int64, device="meta")
    assert sampler_step(x, x, row, previous=x, key=at(key, step=step)).shape == (3, 5)


@by_reference
def test_gradcheck():
    x, x0_hat, previous, key = arguments((3, 2))
    inputs = [t.double().requires_grad_() for t in (x, x0_hat, row(), previous)]
    assert torch.autograd.gradcheck(lambda *t: sampler_step(*t[:3], previous=t[3], key=key), inputs)


def test_autocast_has_no_effect():
    x, x0_hat, previous, key = arguments((3, 2, 5))
    expected = sampler_step(x, x0_hat, row(), previous=previous, key=key)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert sampler_step(x, x0_hat, row(), previous=previous, key=key).equal(expected)


@by_reference
def test_compiles():
    x, x0_hat, previous, key = arguments((3, 2, 5), torch.bfloat16)
    # Of the key, whose graph of integers takes long further down, that there is one graph; test_philox.py compiles it.
    for backend, options in (("eager", {"previous": previous, "key": key}), ("aot_eager", {"previous": previous})):
        compiled = torch.compile(sampler_step, fullgraph=True, backend=backend)
        ours, eager = (f(x, x0_hat, row(), **options) for f in (compiled, sampler_step))
        assert ours.equal(eager)


X, ROW = torch.ones(2, 3), torch.ones(4)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: sampler_step(X, X[0], ROW),
            ValueError,
            r"x0_hat: expected shape of x = \(2, 3\)",
        ),
        (lambda: sampler_step(X, X, ROW, previous=X[0]), ValueError, "previous: expected shape of x"),
        (lambda: sampler_step(X, X, ROW[:3]), ValueError, r"shape \(a, b, c, s\) = \(4,\), got \(3,\)"),
        (lambda: sampler_step(X, X, ROW.int()), TypeError, "coefficients: expected float16"),
        (lambda: sampler_step(X.int(), X, ROW), TypeError, "x: expected float16"),
        (
            lambda: sampler_step(X, X, ROW, key=noise_key(0)),
            ValueError,
            r"key: expected shape \(N, 4\) = \(2, 4\)",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
