import pytest
import torch

from fastgen.functional import noise_key, philox_normal, q_sample
from proof.laboratory.tensors import FLOATS
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

TARGETS = ["eps", "x0", "v", "flow"]
SHAPES = [(3,), (3, 5), (2, 3, 7, 5), (2, 3, 2, 3, 5), (0, 3, 4, 4), (2, 0, 3)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


def exact(x0, alpha, sigma, noise, target):
    """The formulas, in fp64."""
    x0 = x0.double() / 127.5 - 1 if x0.dtype == torch.uint8 else x0.double()
    alpha, sigma = (c.double().reshape(-1, *[1] * (x0.dim() - 1)) for c in (alpha, sigma))
    noise = noise.double()
    made = {"eps": noise, "x0": x0, "v": alpha * noise - sigma * x0, "flow": noise - x0}
    return alpha * x0 + sigma * noise, made[target]


def arguments(shape, dtype=torch.float32, layout="contiguous"):
    torch.manual_seed(0)
    x0 = torch.randint(256, shape).to(dtype) if dtype == torch.uint8 else torch.randn(shape).to(dtype)
    return LAYOUTS[layout](x0), torch.rand(shape[0]), torch.rand(shape[0])


@in_pairs("shape, target", SHAPES, TARGETS)
def test_formula(shape, target):
    x0, alpha, sigma = arguments(shape)
    noise = torch.randn(shape)
    x_t, made = q_sample(x0, alpha, sigma, noise=noise, target=target)
    for ours, truth in zip((x_t, made), exact(x0, alpha, sigma, noise, target), strict=True):
        torch.testing.assert_close(ours, truth.float())
    assert q_sample(x0, alpha, sigma, noise=noise, target=None).equal(x_t)


@in_pairs("x0_dtype, dtype, target", [torch.uint8, *FLOATS], [None, *FLOATS], TARGETS)
def test_dtypes(x0_dtype, dtype, target):
    x0, alpha, sigma = arguments((4, 3, 5), x0_dtype)
    noise = torch.randn(4, 3, 5)
    out_dtype = dtype or (torch.float32 if x0_dtype == torch.uint8 else x0_dtype)
    for ours, truth in zip(
        q_sample(x0, alpha, sigma, noise=noise, target=target, dtype=dtype),
        exact(x0, alpha, sigma, noise, target),
        strict=True,
    ):
        assert ours.dtype == out_dtype
        torch.testing.assert_close(ours, truth.to(out_dtype))


def test_small_sigma_is_not_lost_in_bf16():
    x0, noise = torch.zeros(1, 1000, dtype=torch.bfloat16), torch.randn(1, 1000)
    x_t, _ = q_sample(x0, torch.tensor([0.99995]), torch.tensor([0.01]), noise=noise)
    torch.testing.assert_close(x_t, (0.01 * noise).bfloat16())


def test_uint8_ends():
    x0 = torch.tensor([[0, 255]], dtype=torch.uint8)
    x_t = q_sample(x0, torch.ones(1), torch.zeros(1), noise=torch.randn(1, 2), target=None)
    assert x_t.tolist() == [[-1, 1]]


@in_pairs("shape, layout, target", [(2, 3, 7, 5), (2, 3, 5), (2, 3, 2, 3, 5)], [*LAYOUTS], TARGETS)
def test_layouts(shape, layout, target):
    x0, alpha, sigma = arguments(shape, layout=layout)
    key = noise_key(3, samples=2)
    expected = q_sample(x0.contiguous(), alpha, sigma, key=key, target=target)
    for ours, truth in zip(q_sample(x0, alpha, sigma, key=key, target=target), expected, strict=True):
        assert ours.equal(truth)
        assert (ours.movedim(1, -1) if layout == "channels_last" else ours).is_contiguous()


@pytest.mark.parametrize("x0_dtype", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_key_draws_philox_normals(x0_dtype):
    x0, alpha, sigma = arguments((4, 3, 5), x0_dtype)
    key = noise_key(5, step=2, samples=4)
    ours = q_sample(x0, alpha, sigma, key=key, target="v")
    for a, b in zip(ours, q_sample(x0, alpha, sigma, noise=philox_normal(x0.shape, key), target="v"), strict=True):
        assert a.equal(b)


def test_no_key_draws_from_the_torch_generator():
    x0, alpha, sigma = arguments((4, 3, 5))
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(q_sample(x0, alpha, sigma)[1])
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


@by_reference
@pytest.mark.parametrize("target", TARGETS)
def test_gradients(target):
    x0, alpha, sigma = (x.double().requires_grad_() for x in arguments((2, 3, 2)))
    noise = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    inputs = (x0, alpha, sigma, noise)
    assert torch.autograd.gradcheck(lambda *t: q_sample(*t[:3], noise=t[3], target=target), inputs)


def test_autocast_has_no_effect():
    x0, alpha, sigma = arguments((4, 3, 5))
    noise = torch.randn(4, 3, 5)
    expected = q_sample(x0, alpha, sigma, noise=noise, target="v")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = q_sample(x0, alpha, sigma, noise=noise, target="v")
    assert all(a.equal(b) for a, b in zip(ours, expected, strict=True))


@by_reference
def test_compiles():
    x0, alpha, sigma = arguments((4, 3, 5, 5), torch.uint8, "channels_last")
    key, noise = noise_key(1, samples=4), torch.randn(4, 3, 5, 5)
    # Of the key, whose graph of integers takes long further down, that there is one graph; test_philox.py compiles it.
    for backend, options in (("eager", {"key": key, "target": "v"}), ("aot_eager", {"noise": noise})):
        compiled = torch.compile(q_sample, fullgraph=True, backend=backend)
        results = [f(x0, alpha, sigma, **options, dtype=torch.bfloat16) for f in (compiled, q_sample)]
        for ours, eager in zip(*results, strict=True):
            assert ours.equal(eager)
            assert ours.stride() == x0.stride()


X, ONE = torch.ones(2, 3), torch.ones(2)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: q_sample(X, ONE[:1], ONE), ValueError, r"alpha: expected shape \(N,\) = \(2,\), got \(1,\)"),
        (lambda: q_sample(X, ONE, X), ValueError, r"sigma: expected shape \(N,\)"),
        (lambda: q_sample(ONE[0], ONE, ONE), ValueError, "x0: expected a batch dimension"),
        (lambda: q_sample(X.int(), ONE, ONE), TypeError, "x0: expected float16, .* got torch.int32"),
        (lambda: q_sample(X, ONE.int(), ONE), TypeError, "alpha: expected float16"),
        (lambda: q_sample(X, ONE, ONE, noise=ONE), ValueError, r"noise: expected shape of x0 = \(2, 3\), got \(2,\)"),
        (
            lambda: q_sample(X, ONE, ONE, noise=X, key=noise_key(0, samples=2)),
            ValueError,
            "noise, key: expected one of the two",
        ),
        (lambda: q_sample(X, ONE, ONE, key=noise_key(0)), ValueError, r"key: expected shape \(N, 4\)"),
        (lambda: q_sample(X, ONE, ONE, target="epsilon"), ValueError, "target: expected one of 'eps', .* got 'epsilon'"),
        (lambda: q_sample(X, ONE, ONE, dtype=torch.uint8), TypeError, "dtype: expected a floating dtype, got torch.uint8"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
