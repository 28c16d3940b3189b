import pytest
import torch

from fastgen.functional import denoising_loss, diffusion_loss, noise_key, q_sample
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

TARGETS = ["eps", "x0", "v", "flow"]
KINDS = ["mse", "l1", "huber", "charbonnier"]


def arguments(shape, x0_dtype=torch.float32, pred_dtype=torch.float32):
    torch.manual_seed(0)
    x0 = torch.randint(256, shape).to(x0_dtype) if x0_dtype == torch.uint8 else torch.randn(shape).to(x0_dtype)
    pred = torch.randn(shape).to(pred_dtype).requires_grad_()
    key = noise_key(2**40 + 3, step=7, samples=range(5, 5 + shape[0]))
    return pred, x0, torch.rand(shape[0]), torch.rand(shape[0]), key, torch.rand(shape[0])


def assert_same(ours, expected, path):
    """Bit for bit by the reference; the kernels of the two ops differ in the order of the sum."""
    exactly = {"rtol": 0, "atol": 0} if path == "reference" else {}
    torch.testing.assert_close(ours, expected, **exactly)


@in_pairs(
    "target, kind, x0_dtype, pred_dtype",
    TARGETS,
    KINDS,
    [torch.uint8, torch.bfloat16, torch.float32, torch.float64],
    [torch.bfloat16, torch.float16, torch.float32],
)
def test_is_diffusion_loss_of_the_target_of_q_sample(x0_dtype, pred_dtype, target, kind, path):
    pred, x0, alpha, sigma, key, weight = arguments((3, 2, 5, 3), x0_dtype, pred_dtype)
    ours = denoising_loss(pred, x0, alpha, sigma, key, weight, target=target, kind=kind)
    made = q_sample(x0, alpha, sigma, key=key, target=target, dtype=torch.float32)[1]
    expected = diffusion_loss(pred, made, weight, kind=kind)
    assert ours.dtype == torch.float32
    assert_same(ours, expected, path)
    assert_same(*(torch.autograd.grad(loss.sum(), pred)[0] for loss in (ours, expected)), path)


@pytest.mark.parametrize("target", TARGETS)
def test_fp64(target, path):
    pred, x0, alpha, sigma, key, weight = (
        x.double() if x.is_floating_point() else x for x in arguments((3, 2, 5), torch.float64)
    )
    made = q_sample(x0, alpha, sigma, key=key, target=target)[1]
    ours = denoising_loss(pred, x0, alpha, sigma, key, weight, target=target)
    assert ours.dtype == torch.float64
    assert_same(ours, diffusion_loss(pred, made, weight), path)


@pytest.mark.parametrize("shape", [(3,), (3, 1), (0, 2, 5)])
def test_shapes(shape, path):
    pred, x0, alpha, sigma, key, _ = arguments(shape)
    made = q_sample(x0, alpha, sigma, key=key, target="flow")[1]
    assert_same(denoising_loss(pred, x0, alpha, sigma, key, target="flow"), diffusion_loss(pred, made), path)


@pytest.mark.parametrize("layout", ["pred", "x0", "both"])
def test_channels_last(layout):
    pred, x0, alpha, sigma, key, weight = arguments((3, 2, 5, 4))
    expected = denoising_loss(pred, x0, alpha, sigma, key, weight, target="v")
    if layout != "x0":
        pred = pred.to(memory_format=torch.channels_last)
    if layout != "pred":
        x0 = x0.to(memory_format=torch.channels_last)
    torch.testing.assert_close(denoising_loss(pred, x0, alpha, sigma, key, weight, target="v"), expected)


@by_reference
@pytest.mark.parametrize("target", TARGETS)
def test_gradcheck(target):
    pred, x0, alpha, sigma, key, weight = arguments((2, 3, 2))
    inputs = [x.detach().double().requires_grad_() for x in (pred, x0, alpha, sigma, weight)]
    assert torch.autograd.gradcheck(lambda *t: denoising_loss(*t[:4], key, t[4], target=target), inputs)


def test_autocast_has_no_effect():
    args = arguments((3, 2, 5))
    expected = denoising_loss(*args)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert denoising_loss(*args).equal(expected)


@by_reference
def test_compiles():
    args = arguments((3, 2, 5, 3), torch.uint8, torch.bfloat16)
    # One graph; further down that of the key's integers takes long, and test_philox.py compiles it.
    compiled = torch.compile(denoising_loss, fullgraph=True, backend="eager")
    results = [f(*args, target="v") for f in (compiled, denoising_loss)]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), args[0])[0] for x in results))


PRED, X0, ALPHA, SIGMA, KEY, WEIGHT = arguments((2, 3))


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: denoising_loss(PRED[:1], X0, ALPHA, SIGMA, KEY),
            ValueError,
            "pred: expected shape of x0",
        ),
        (lambda: denoising_loss(PRED, X0, ALPHA[:1], SIGMA, KEY), ValueError, r"alpha: expected shape \(N,\)"),
        (
            lambda: denoising_loss(PRED, X0, ALPHA, SIGMA, KEY[:1]),
            ValueError,
            r"key: expected shape \(N, 4\) = \(2, 4\)",
        ),
        (lambda: denoising_loss(PRED, X0, ALPHA, SIGMA, KEY.int()), TypeError, "key: expected int64, got torch.int32"),
        (lambda: denoising_loss(PRED, X0, ALPHA, SIGMA, KEY, X0), ValueError, r"weight: expected shape \(N,\)"),
        (lambda: denoising_loss(PRED, X0, ALPHA, SIGMA, KEY, target=None), ValueError, "target: expected one of"),
        (lambda: denoising_loss(PRED, X0, ALPHA, SIGMA, KEY, kind=""), ValueError, "kind: expected one of"),
        (lambda: denoising_loss(PRED.int(), X0, ALPHA, SIGMA, KEY), TypeError, "pred: expected float16"),
        (lambda: denoising_loss(PRED, X0.int(), ALPHA, SIGMA, KEY), TypeError, "x0: expected float16"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
