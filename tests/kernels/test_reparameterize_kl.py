import math
from functools import partial

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, reparameterize_kl
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

SHAPES = [(3,), (3, 5), (3, 2, 7, 5), (3, 2, 2, 3, 5), (0, 3, 4)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


def exact(mu, logvar, eps, clamp=(-30.0, 20.0), reduce="sample"):
    """The formulas, in fp64."""
    mu, logvar = mu.double(), logvar.double().clamp(*clamp)
    z = mu + logvar.exp().sqrt() * eps.double()
    kl = (mu * mu + logvar.exp() - 1 - logvar) / 2
    return z, kl if reduce == "none" else kl.reshape(len(kl), math.prod(kl.shape[1:])).sum(1)


def arguments(shape, dtype=torch.float32):
    torch.manual_seed(0)
    mu, logvar, eps = (torch.randn(shape).to(dtype) for _ in range(3))
    return mu.requires_grad_(), logvar.requires_grad_(), eps


@in_pairs("shape, dtype, reduce", SHAPES, FLOATS, ["sample", "none"])
def test_formula(shape, dtype, reduce):
    mu, logvar, eps = arguments(shape, dtype)
    ours = reparameterize_kl(mu, logvar, eps=eps, reduce=reduce)
    truth = exact(mu, logvar, eps, reduce=reduce)
    assert ours[0].dtype == dtype
    assert ours[1].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for a, b in zip(ours, truth, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype))
        for grad, expected in zip(
            torch.autograd.grad(a.sum(), (mu, logvar), retain_graph=True, materialize_grads=True),  # stride 0 upstream
            torch.autograd.grad(b.sum(), (mu, logvar), retain_graph=True, materialize_grads=True),
            strict=True,
        ):
            assert grad.dtype == dtype
            torch.testing.assert_close(grad, expected)


def test_kl_near_zero():
    logvar = torch.tensor([1e-4, -1e-4])  # kl is logvar^2/4 there, less than the rounding of exp(logvar) - 1
    _, kl = reparameterize_kl(torch.zeros(2), logvar, reduce="none")
    torch.testing.assert_close(kl, exact(torch.zeros(2), logvar, torch.zeros(2), reduce="none")[1].float(), rtol=1e-2, atol=0)


@in_pairs("shape, layout", [(3, 4, 7, 5), (3, 4, 5), (3, 4, 2, 3, 5)], [*LAYOUTS])
def test_halves_of_one_tensor(shape, layout):
    both = LAYOUTS[layout](torch.randn(shape)).requires_grad_()
    mu, logvar = both.chunk(2, 1)
    key = noise_key(1, samples=3)
    z, kl = reparameterize_kl(mu, logvar, key=key, reduce="none")
    expected = reparameterize_kl(mu.contiguous(), logvar.contiguous(), key=key, reduce="none")
    for ours, truth in zip((z, kl), expected, strict=True):
        assert ours.equal(truth)
        assert (ours.movedim(1, -1) if layout == "channels_last" else ours).is_contiguous()
    torch.testing.assert_close(torch.autograd.grad((z + kl).sum(), both)[0], torch.autograd.grad(sum(expected).sum(), both)[0])


def test_key():
    mu, logvar, _ = arguments((3, 2, 5))
    key = noise_key(5, step=2, samples=3)
    for a, b in zip(
        reparameterize_kl(mu, logvar, key=key),
        reparameterize_kl(mu, logvar, eps=philox_normal((3, 2, 5), key)),
        strict=True,
    ):
        assert a.equal(b)


def test_neither_eps_nor_key_draws_from_the_torch_generator():
    mu, logvar, _ = arguments((3, 2, 5))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(reparameterize_kl(mu, logvar)[0])
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_clamp():
    logvar = torch.tensor([[-31.0, -30.0, 0.0, 20.0, 21.0]], requires_grad=True)
    mu, eps = torch.zeros(1, 5), torch.ones(1, 5)
    z, kl = reparameterize_kl(mu, logvar, eps=eps)
    torch.testing.assert_close(z, torch.tensor([[-15.0, -15.0, 0.0, 10.0, 10.0]]).exp())
    for y in (z, kl):
        (grad,) = torch.autograd.grad(y.sum(), logvar, retain_graph=True)
        assert (grad[0, [0, 4]] == 0).all()  # outside
        assert grad[0, 3] > 1  # on the end, as torch.clamp has it
    assert grad[0, 1] == -0.5
    z, kl = reparameterize_kl(mu, logvar, eps=eps, clamp=(-1.0, 1.0))
    torch.testing.assert_close((z, kl), tuple(y.float() for y in exact(mu, logvar, eps, (-1.0, 1.0))))


def test_finite_at_any_logvar():
    logvar = torch.tensor([[-1e30, 1e30, torch.inf, -torch.inf]], requires_grad=True)
    z, kl = reparameterize_kl(torch.zeros(1, 4), logvar)
    (z.sum() + kl.sum()).backward()
    assert z.isfinite().all()
    assert kl.isfinite().all()
    assert not logvar.grad.any()


@by_reference
def test_gradcheck():
    inputs = [x.detach().double().requires_grad_() for x in arguments((2, 3, 2))]
    for reduce in ("sample", "none"):
        f = partial(reparameterize_kl, reduce=reduce)
        assert torch.autograd.gradcheck(lambda mu, logvar, eps, f=f: f(mu, logvar, eps=eps), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_has_no_effect(dtype):
    mu, logvar, eps = arguments((3, 2, 5), dtype)
    expected = reparameterize_kl(mu, logvar, eps=eps)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = reparameterize_kl(mu, logvar, eps=eps)
    assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(ours, expected, strict=True))


@by_reference
def test_compiles():
    mu, logvar = torch.randn(3, 4, 5).requires_grad_().chunk(2, 1)
    # Of the key, whose graph of integers takes long further down, that there is one graph; test_philox.py compiles it.
    for backend, options in (("eager", {"key": noise_key(1, samples=3)}), ("aot_eager", {"eps": torch.randn(3, 2, 5)})):
        compiled = torch.compile(reparameterize_kl, fullgraph=True, backend=backend)
        ours, eager = (f(mu, logvar, **options) for f in (compiled, reparameterize_kl))
        torch.testing.assert_close(ours, eager)
        grads = [torch.autograd.grad(z.sum() + kl.sum(), (mu, logvar)) for z, kl in (ours, eager)]
        torch.testing.assert_close(*grads)


X = torch.ones(2, 3)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: reparameterize_kl(X, X[0]), ValueError, r"logvar: expected shape of mu = \(2, 3\)"),
        (lambda: reparameterize_kl(X, X, eps=X[0]), ValueError, "eps: expected shape of mu"),
        (lambda: reparameterize_kl(X, X, key=noise_key(0)), ValueError, r"key: expected shape \(N, 4\) = \(2, 4\)"),
        (lambda: reparameterize_kl(X, X, eps=X, key=noise_key(0, samples=2)), ValueError, "eps, key: expected one of the two"),
        (
            lambda: reparameterize_kl(X, X, reduce="mean"),
            ValueError,
            "reduce: expected one of 'sample', 'none', got 'mean'",
        ),
        (lambda: reparameterize_kl(X.int(), X), TypeError, "mu: expected float16, .* got torch.int32"),
        (lambda: reparameterize_kl(X[0, 0], X[0, 0]), ValueError, "mu: expected a batch dimension"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
