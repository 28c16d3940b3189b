import pytest
import torch

from fastgen.functional import diffusion_loss
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

KINDS = ["mse", "l1", "huber", "charbonnier"]
SHAPES = [(3,), (3, 5), (2, 3, 7, 5), (2, 3, 2, 3, 5)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
}


def exact(pred, target, weight, kind):
    """The formulas, in fp64."""
    d = pred.double() - target.double()
    made = {
        "mse": d * d,
        "l1": d.abs(),
        "huber": torch.where(d.abs() < 1, d * d / 2, d.abs() - 0.5),
        "charbonnier": (d * d + 1e-6).sqrt(),
    }
    loss = made[kind].reshape(len(pred), -1).mean(1)
    return loss if weight is None else loss * weight.double()


def arguments(shape, dtype=torch.float32, layout="contiguous"):
    torch.manual_seed(0)
    pred, target = (LAYOUTS[layout](2 * torch.randn(shape).to(dtype)) for _ in range(2))
    return pred.requires_grad_(), target, torch.rand(shape[0]) + 0.5


@in_pairs("shape, dtype, kind", SHAPES, FLOATS, KINDS)
def test_formula(shape, dtype, kind):
    for weighted in (False, True):
        pred, target, weight = arguments(shape, dtype)
        weight = weight if weighted else None
        loss, truth = diffusion_loss(pred, target, weight, kind=kind), exact(pred, target, weight, kind)
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(loss, truth.to(loss.dtype))
        grads = [torch.autograd.grad(x.sum(), pred)[0] for x in (loss, truth)]  # stride 0 upstream
        assert grads[0].dtype == dtype
        torch.testing.assert_close(*grads)


@in_pairs("layouts, kind", [("channels_last", "contiguous"), ("permuted", "every second")], KINDS)
def test_layouts(layouts, kind):
    pred, target, weight = arguments((2, 3, 7, 5))
    mixed = LAYOUTS[layouts[0]](pred), LAYOUTS[layouts[1]](target)
    torch.testing.assert_close(diffusion_loss(*mixed, weight, kind=kind), diffusion_loss(pred, target, weight, kind=kind))


def test_mixed_dtypes():
    pred, target, weight = arguments((4, 3, 5), torch.bfloat16)
    target = target.float() + 1e-3  # what bf16 would round away
    torch.testing.assert_close(diffusion_loss(pred, target, weight), exact(pred, target, weight, "mse").float())


def test_empty_batch():
    pred = torch.ones(0, 3, 5, requires_grad=True)
    loss = diffusion_loss(pred, torch.ones(0, 3, 5), torch.ones(0))
    assert loss.shape == (0,)
    loss.sum().backward()
    assert pred.grad.shape == pred.shape


@by_reference
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    pred, target, weight = (x.detach().double().requires_grad_() for x in arguments((2, 3, 2)))
    assert torch.autograd.gradcheck(lambda *x: diffusion_loss(*x, kind=kind), (pred, target, weight))


@pytest.mark.parametrize("kind", KINDS)
def test_no_difference(kind):
    pred = torch.ones(2, 3, requires_grad=True)
    loss = diffusion_loss(pred, torch.ones(2, 3), kind=kind)
    torch.testing.assert_close(loss, torch.full((2,), 1e-3 if kind == "charbonnier" else 0.0))
    assert not torch.autograd.grad(loss.sum(), pred)[0].any()


def test_autocast_has_no_effect():
    pred, target, weight = arguments((4, 3, 5))
    expected = diffusion_loss(pred, target, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert diffusion_loss(pred, target, weight).equal(expected)


@by_reference
def test_compiles():
    pred, target, weight = arguments((4, 3, 5))
    results = [
        f(pred, target, weight, kind="huber")
        for f in (torch.compile(diffusion_loss, fullgraph=True, backend="aot_eager"), diffusion_loss)
    ]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), pred)[0] for x in results))


X, ONE = torch.ones(2, 3), torch.ones(2)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: diffusion_loss(X, ONE),
            ValueError,
            r"target: expected shape of pred = \(2, 3\), got \(2,\)",
        ),
        (lambda: diffusion_loss(X, X, X), ValueError, r"weight: expected shape \(N,\) = \(2,\), got \(2, 3\)"),
        (lambda: diffusion_loss(X.int(), X), TypeError, "pred: expected float16, .* got torch.int32"),
        (lambda: diffusion_loss(ONE[0], ONE[0]), ValueError, "pred: expected a batch dimension"),
        (lambda: diffusion_loss(X, X, kind="l2"), ValueError, "kind: expected one of 'mse', .* got 'l2'"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
