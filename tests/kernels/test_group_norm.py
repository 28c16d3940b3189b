import pytest
import torch
import torch.nn.functional as F

from fastgen import functional
from fastgen.functional import add_group_norm
from tests.helpers.op_info import op_info

OPTIONS = ("weight", "bias", "scale", "shift", "pre_bias", "residual")

SHAPES = [
    (3, 6),  # no spatial dimension
    (3, 6, 5),
    (2, 12, 7, 5),  # odd sizes
    (2, 12, 1, 1),
    (2, 6, 33, 35),  # more than 1,024 positions
    (2, 6, 3, 2, 5),
    (1, 6, 4, 4),
]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "half of the channels": lambda x: torch.cat((x, x), 1)[:, : x.shape[1]],
    "half of channels_last": lambda x: LAYOUTS["channels_last"](torch.cat((x, x), 1))[:, : x.shape[1]],
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
}
CHOICES = [
    (),
    ("weight", "bias"),
    ("weight",),
    ("bias",),
    ("scale", "shift"),
    ("weight", "bias", "scale"),
    ("weight", "bias", "shift"),
    ("weight", "scale", "shift"),
    ("pre_bias",),
    ("residual",),
    OPTIONS,
]


def group_norm(x, num_groups, *parameters, residual=None, **options):
    """group_norm, or with a residual add_group_norm."""
    if residual is None:
        return functional.group_norm(x, num_groups, *parameters, **options)
    return functional.add_group_norm(x, residual, num_groups, *parameters, **options)


def per_channel(v, x):
    """(N, C) in x's dtype, made to broadcast over x."""
    return v.to(x.dtype)[(...,) + (None,) * (x.dim() - 2)]


def exact(x, num_groups, activation=None, weight=None, bias=None, scale=None, shift=None, pre_bias=None, residual=None):
    """The formula, in fp64; x + residual + pre_bias is taken in the dtype that x has, as documented."""
    if residual is not None:
        x = x + residual
    if pre_bias is not None:
        x = x + per_channel(pre_bias, x)
    groups = x.double().reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    y = (centred / (centred.pow(2).mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    y = y if weight is None else y * per_channel(weight[None], y)
    y = y if bias is None else y + per_channel(bias[None], y)
    y = y if scale is None else y * (1 + per_channel(scale, y))
    y = y if shift is None else y + per_channel(shift, y)
    return y * torch.sigmoid(y) if activation == "silu" else y


def stock(x, num_groups, activation=None, weight=None, bias=None, scale=None, shift=None, pre_bias=None, residual=None):
    """What the formula is in PyTorch today, in x's dtype."""
    if residual is not None:
        x = x + residual
    if pre_bias is not None:
        x = x + per_channel(pre_bias, x)
    y = F.group_norm(x, num_groups, weight, bias)
    y = y if scale is None else y * (1 + per_channel(scale, y))
    y = y if shift is None else y + per_channel(shift, y)
    return F.silu(y) if activation == "silu" else y


def arguments(shape, choice, dtype=torch.float32, layout="contiguous", seed=0, param_dtype=None):
    generator = torch.Generator().manual_seed(seed)
    n, c = shape[:2]

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64)

    made = {
        "weight": draw(c).to(param_dtype or dtype),
        "bias": draw(c).to(param_dtype or dtype),
        "pre_bias": draw(n, c).to(dtype),
        "residual": draw(*shape).to(dtype),
    }
    made["scale"], made["shift"] = draw(n, 2 * c).to(dtype).chunk(2, 1)  # strided halves
    x = LAYOUTS[layout](draw(*shape).to(dtype))
    return x.requires_grad_(), {name: made[name].requires_grad_() for name in choice}


def gradients(f, x, options, **kwargs):
    y = f(x, 3, **options, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y, torch.autograd.grad(y, [x, *options.values()], upstream.to(x.dtype).to(y.dtype))


@pytest.mark.parametrize("choice", CHOICES, ids="+".join)
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(shape, choice):
    for activation in (None, "silu"):
        x, options = arguments(shape, choice)
        y, grads = gradients(group_norm, x, options, activation=activation)
        expected, expected_grads = gradients(exact, x, options, activation=activation)
        torch.testing.assert_close(y, expected.float())
        for name, ours, grad in zip(("x", *choice), grads, expected_grads, strict=True):
            torch.testing.assert_close(ours, grad, rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"d{name}: {m}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(2, 12, 7, 5), (2, 6, 33, 35), (3, 6, 5), (2, 6, 3, 2, 5)])
def test_layouts_and_dtypes(shape, dtype, layout):
    for choice in (("weight", "bias"), OPTIONS):
        x, options = arguments(shape, choice, dtype, layout)
        y, grads = gradients(group_norm, x, options, activation="silu")
        assert y.dtype == dtype
        assert (y.movedim(1, -1) if "channels_last" in layout else y).is_contiguous()

        expected, expected_grads = gradients(exact, x, options, activation="silu")
        theirs, their_grads = gradients(stock, x, options, activation="silu")
        for ours, stocks, truth in zip((y, *grads), (theirs, *their_grads), (expected, *expected_grads), strict=True):
            error, allowed = (ours - truth).abs().max(), 2 * (stocks - truth).abs().max()
            assert error <= allowed + 4 * torch.finfo(dtype).eps * truth.abs().max() * (dtype.itemsize >= 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", [("weight", "bias"), OPTIONS], ids="+".join)
def test_fp32_parameters_with_reduced_precision(dtype, choice):
    x, options = arguments((2, 12, 7, 5), choice, dtype, param_dtype=torch.float32)
    y, grads = gradients(group_norm, x, options)
    expected, expected_grads = gradients(exact, x, options)
    assert y.dtype == grads[0].dtype == dtype
    assert grads[1].dtype == torch.float32
    torch.testing.assert_close(y, expected.to(dtype))
    torch.testing.assert_close(grads[1], expected_grads[1], rtol=1e-5, atol=1e-5)


def test_reduced_parameters_with_fp32():
    x, options = arguments((2, 12, 7, 5), ("weight", "bias"), param_dtype=torch.bfloat16)
    torch.testing.assert_close(group_norm(x, 3, **options), exact(x, 3, **options).float())


# Those in channels_last take the native path.
@pytest.mark.parametrize(("layout", "size"), [("contiguous", 3), ("channels_last", 3), ("channels_last", 33)])
def test_gradcheck(layout, size):
    x, options = arguments((2, 6, size, size), OPTIONS, torch.float64, layout)

    def f(x, *values):
        return group_norm(x, 3, **dict(zip(OPTIONS, values, strict=True)), activation="silu")

    assert torch.autograd.gradcheck(f, (x, *options.values()), fast_mode=size > 3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_comes_back_summed(layout):
    x, options = arguments((2, 6, 5, 3), ("residual", "pre_bias"), layout=layout)
    y, total = group_norm(x, 3, **options)
    assert total.equal(x + options["residual"])
    assert (total.movedim(1, -1) if "channels_last" in layout else total).is_contiguous()
    torch.testing.assert_close(y, exact(x, 3, **options).float())
    (grad,) = torch.autograd.grad(total, options["residual"], torch.ones_like(total))
    assert (grad == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_residual_the_sum_is_x_with_one_gradient(layout):
    """What x gets through the norm and past it, in one pass."""
    x, options = arguments((2, 6, 5, 3), ("weight", "scale"), layout=layout)
    past = torch.linspace(-1, 1, x.numel()).view(x.shape)
    y, skip = add_group_norm(x, None, 3, **options, activation="silu")
    assert skip.equal(x)
    assert skip.data_ptr() == x.data_ptr()
    ours = torch.autograd.grad((y * y).sum() + (skip * past).sum(), [x, *options.values()])
    expected = (exact(x, 3, "silu", **options) ** 2).sum() + (x * past).sum()
    for a, b in zip(ours, torch.autograd.grad(expected, [x, *options.values()]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_the_sum_alone_has_a_gradient():
    x, options = arguments((2, 6, 5, 3), ("weight",))
    y, skip = add_group_norm(x, None, 3, **options)
    assert (torch.autograd.grad(skip.sum(), x, retain_graph=True)[0] == 1).all()
    plain = torch.autograd.grad(group_norm(x, 3, **options).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x), plain, rtol=0, atol=0)


def test_expanded_gradient():
    x, options = arguments((2, 6, 5, 3), OPTIONS)
    leaves = [x, *options.values()]
    ours = torch.autograd.grad(group_norm(x, 3, **options)[0].sum(), leaves)  # stride 0
    for a, b in zip(ours, torch.autograd.grad(exact(x, 3, **options).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_large_mean():
    x, options = arguments((2, 6, 16, 16), ("weight", "bias", "scale", "shift"))
    x = x.detach() + 1e4
    truth = exact(x, 3, **options)
    assert (group_norm(x, 3, **options) - truth).abs().max() <= 2 * (stock(x, 3, **options) - truth).abs().max()


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (0, 6), (2, 6, 0, 4)])
def test_empty(shape):
    x, options = arguments(shape, OPTIONS)
    y, total = group_norm(x, 3, **options, activation="silu")
    assert y.shape == total.shape == shape
    grads = torch.autograd.grad(y.sum(), [x, options["weight"], options["bias"]])
    assert [g.shape for g in grads] == [shape, (6,), (6,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_has_no_effect(dtype):
    x, options = arguments((2, 6, 5, 3), OPTIONS, dtype)
    expected = group_norm(x, 3, **options, activation="silu")[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = group_norm(x, 3, **options, activation="silu")[0]
    assert y.dtype == dtype
    assert y.equal(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("noncontiguous", [False, True])
def test_op_info(dtype, noncontiguous):
    info = op_info("nn.functional.group_norm")
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        if sample.kwargs.get("eps", 0) < 0:
            continue  # which is refused
        sample = sample.noncontiguous() if noncontiguous else sample
        ours = group_norm(sample.input, *sample.args, **sample.kwargs)
        theirs = info.op(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours, theirs)
        if theirs.requires_grad and theirs.numel():
            grads = [torch.autograd.grad(y, sample.input, torch.ones_like(y))[0] for y in (ours, theirs)]
            torch.testing.assert_close(*grads)


def test_op_info_errors():
    info = op_info("nn.functional.group_norm")
    for case in info.error_inputs("cpu"):
        sample = case.sample_input
        with pytest.raises((TypeError, ValueError), match=r": expected .*, got "):
            group_norm(sample.input, *sample.args, **sample.kwargs)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles(layout):
    x, options = arguments((2, 6, 5, 3), OPTIONS, layout=layout)
    compiled = torch.compile(group_norm, fullgraph=True, backend="aot_eager")
    (y, grads), (expected, expected_grads) = (gradients(f, x, options, activation="silu") for f in (compiled, group_norm))
    for ours, eager in zip((y, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, eager)
    assert y.stride() == x.stride()


X = torch.ones(2, 10, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: group_norm(X, 4), ValueError, "num_groups: expected a divisor of C = 10, got 4"),
        (lambda: group_norm(X, 0), ValueError, "num_groups: expected a divisor of C = 10, got 0"),
        (lambda: group_norm(X[0, 0], 1), ValueError, r"x: expected \(N, C, \*S\), got shape \(3,\)"),
        (lambda: group_norm(X.int(), 2), TypeError, "x: expected float16, bfloat16, .* got torch.int32"),
        (lambda: group_norm(X, 2, X[0, :3, 0]), ValueError, r"weight: expected shape \(C,\) = \(10,\), got \(3,\)"),
        (lambda: group_norm(X, 2, bias=X), ValueError, r"bias: expected shape \(C,\)"),
        (
            lambda: group_norm(X, 2, scale=X[0, :, 0]),
            ValueError,
            r"scale: expected shape \(N, C\) = \(2, 10\), got \(10,\)",
        ),
        (lambda: group_norm(X, 2, shift=X), ValueError, r"shift: expected shape \(N, C\)"),
        (lambda: group_norm(X, 2, pre_bias=X), ValueError, r"pre_bias: expected shape \(N, C\)"),
        (lambda: group_norm(X, 2, residual=X[:1]), ValueError, r"residual: expected shape of x = \(2, 10, 3\)"),
        (lambda: group_norm(X, 2, activation="relu"), ValueError, "activation: expected one of None, 'silu', got 'relu'"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
