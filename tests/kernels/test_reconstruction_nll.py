import math

import pytest
import torch

from fastgen.functional import reconstruction_nll
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

LIKELIHOODS = ["bernoulli", "gaussian"]
SHAPES = [(3,), (3, 5), (2, 3, 7, 5), (2, 3, 2, 3, 5), (0, 3, 5), (3, 0)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
}


def exact(logits, x, likelihood, std=1.0):
    """PyTorch's distributions, in fp64."""
    logits, x = logits.double(), x.double() / 255 if x.dtype == torch.uint8 else x.double()
    if likelihood == "bernoulli":
        log_p = torch.distributions.Bernoulli(logits=logits, validate_args=False).log_prob(x)
    else:
        log_p = torch.distributions.Normal(logits.sigmoid(), std).log_prob(x)
    return -log_p.reshape(len(logits), math.prod(logits.shape[1:])).sum(1)


def arguments(shape, dtype=torch.float32, data=torch.float32):
    torch.manual_seed(0)
    logits, x = (3 * torch.randn(shape)).to(dtype), torch.rand(shape)
    return logits.requires_grad_(), (256 * x).to(torch.uint8) if data == torch.uint8 else x.to(data)


@in_pairs("shape, dtype, distribution", SHAPES, FLOATS, [("bernoulli", 1.0), ("gaussian", 1.0), ("gaussian", 0.3)])
def test_is_that_of_the_distribution(shape, dtype, distribution):
    likelihood, std = distribution
    for data in (torch.uint8, torch.float32):
        logits, x = arguments(shape, dtype, data)
        nll, truth = reconstruction_nll(logits, x, likelihood=likelihood, std=std), exact(logits, x, likelihood, std)
        assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(nll, truth.to(nll.dtype))
        grads = [torch.autograd.grad(y.sum(), logits)[0] for y in (nll, truth)]  # stride 0 upstream
        assert grads[0].dtype == dtype
        torch.testing.assert_close(*grads)


@in_pairs(
    "layouts, likelihood",
    [("channels_last", "contiguous"), ("contiguous", "channels_last"), ("permuted", "every second")],
    LIKELIHOODS,
)
def test_layouts(layouts, likelihood):
    logits, x = arguments((2, 3, 7, 5))
    mixed = LAYOUTS[layouts[0]](logits), LAYOUTS[layouts[1]](x)
    results = [reconstruction_nll(*given, likelihood=likelihood) for given in (mixed, (logits, x))]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), logits)[0] for y in results))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_finite_at_any_logit(likelihood):
    logits = torch.tensor([[-1e30, -200.0, -20.0, 0.0, 20.0, 200.0, 1e30]]).requires_grad_()
    for x in (0.0, 0.25, 1.0):
        nll = reconstruction_nll(logits, torch.full_like(logits, x), likelihood=likelihood)
        assert nll.isfinite().all()
        (grad,) = torch.autograd.grad(nll.sum(), logits)
        assert grad.isfinite().all()


@by_reference
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_learned_x_has_its_gradient(likelihood):
    logits, x = (y.detach().double().requires_grad_() for y in arguments((2, 3, 2)))
    assert torch.autograd.gradcheck(lambda *given: reconstruction_nll(*given, likelihood=likelihood, std=0.5), (logits, x))


def test_autocast_has_no_effect():
    logits, x = arguments((4, 3, 5))
    expected = reconstruction_nll(logits, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert reconstruction_nll(logits, x).equal(expected)


@by_reference
def test_compiles():
    logits, x = arguments((4, 3, 5))
    results = [
        f(logits, x, likelihood="gaussian")
        for f in (torch.compile(reconstruction_nll, fullgraph=True, backend="aot_eager"), reconstruction_nll)
    ]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(y.sum(), logits)[0] for y in results))


X = torch.ones(2, 3)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: reconstruction_nll(X, X[0]),
            ValueError,
            r"x: expected shape of logits = \(2, 3\), got \(3,\)",
        ),
        (lambda: reconstruction_nll(X.int(), X), TypeError, "logits: expected float16, .* got torch.int32"),
        (lambda: reconstruction_nll(X, X.int()), TypeError, "x: expected float16, .* got torch.int32"),
        (lambda: reconstruction_nll(X[0, 0], X[0, 0]), ValueError, "logits: expected a batch dimension"),
        (lambda: reconstruction_nll(X, X.to("meta")), ValueError, "x: expected a tensor on the device of logits, cpu, got meta"),
        (
            lambda: reconstruction_nll(X, X, likelihood="poisson"),
            ValueError,
            "likelihood: expected one of 'bernoulli', 'gaussian', got 'poisson'",
        ),
        (lambda: reconstruction_nll(X, X, std=0.0), ValueError, "std: expected a finite number > 0, got 0.0"),
        (lambda: reconstruction_nll(X, X, std=math.nan), ValueError, "std: expected a finite number > 0, got nan"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
