import pytest
import torch
import torch.nn.functional as F

from fastgen import functional
from fastgen.functional import add_layer_norm
from proof.laboratory.tensors import FLOATS
from tests.helpers.op_info import op_info
from tests.helpers.paths import by_reference, in_pairs

pytestmark = pytest.mark.usefixtures("path")

OPTIONS = ("weight", "bias", "residual")
CHOICES = [(), ("weight",), ("bias",), ("weight", "bias"), ("residual",), OPTIONS]
SHAPES = [(7,), (3, 16), (2, 3, 37), (2, 1, 3, 5), (3, 2)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "permuted": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "half": lambda x: torch.cat((x, x), -1)[..., x.shape[-1] :],
    "every second": lambda x: torch.stack((x, x), -1).flatten(-2)[..., ::2],
    "one row": lambda x: x[:1, :1].expand(x.shape),
}


def layer_norm(x, *parameters, residual=None, **options):
    """layer_norm, or with a residual add_layer_norm."""
    if residual is None:
        return functional.layer_norm(x, *parameters, **options)
    return functional.add_layer_norm(x, residual, *parameters, **options)


def exact(x, weight=None, bias=None, residual=None, eps=1e-5):
    """The formula, in fp64; x + residual is taken in the dtype that x has, as documented."""
    x = x if residual is None else x + residual.to(x.dtype)
    h = x.double()
    d = h - h.mean(-1, keepdim=True)
    y = d / (d.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight.double()
    return y if bias is None else y + bias.double()


def stock(x, weight=None, bias=None, residual=None):
    """What the formula is in PyTorch today, in x's dtype."""
    return F.layer_norm(x if residual is None else x + residual, x.shape[-1:], weight, bias)


def arguments(shape, choice, dtype=torch.float32, layout="contiguous", parameters=None):
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64, device="cpu")

    c = shape[-1]
    made = {
        "weight": draw(c).to(parameters or dtype),
        "bias": draw(c).to(parameters or dtype),
        "residual": draw(*shape).to(dtype),
    }
    device = torch.get_default_device()
    x = LAYOUTS[layout](draw(*shape).to(device, dtype))
    return x.requires_grad_(), {name: made[name].to(device).requires_grad_() for name in choice}


def gradients(f, x, options, **kwargs):
    y = f(x, **options, **kwargs)
    y = y[0] if isinstance(y, tuple) else y
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64, device="cpu")
    return y, torch.autograd.grad(y, [x, *options.values()], upstream.to(y.device, x.dtype).to(y.dtype))


@in_pairs("shape, choice", SHAPES, CHOICES)
def test_formula(shape, choice):
    x, options = arguments(shape, choice)
    y, grads = gradients(layer_norm, x, options)
    expected, expected_grads = gradients(exact, x, options)
    torch.testing.assert_close(y, expected.float())
    for name, ours, grad in zip(("x", *choice), grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, grad, rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"d{name}: {m}")


@in_pairs("layout, dtype", [*LAYOUTS], FLOATS)
def test_layouts_and_dtypes(dtype, layout, path):
    for choice in (("weight", "bias"), OPTIONS):
        x, options = arguments((2, 3, 40), choice, dtype, layout)
        y, grads = gradients(layer_norm, x, options)
        assert y.dtype == dtype
        assert y.is_contiguous()

        expected, expected_grads = gradients(exact, x, options)
        theirs, their_grads = gradients(stock, x, options)
        exactly = dtype.itemsize >= 4 or (path == "interpreter" and dtype == torch.bfloat16)  # whose casts truncate
        for ours, stocks, truth in zip((y, *grads), (theirs, *their_grads), (expected, *expected_grads), strict=True):
            error, allowed = (ours - truth).abs().max(), 2 * (stocks - truth).abs().max()
            assert error <= allowed + 4 * torch.finfo(dtype).eps * truth.abs().max() * exactly + 2e-11 * (path == "interpreter")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("choice", [("weight", "bias"), ("weight",), ("bias",)], ids="+".join)
def test_fp32_parameters_with_reduced_precision(dtype, choice):
    x, options = arguments((2, 3, 40), choice, dtype, parameters=torch.float32)
    y, grads = gradients(layer_norm, x, options)
    expected, expected_grads = gradients(exact, x, options)
    assert y.dtype == grads[0].dtype == dtype
    assert grads[1].dtype == torch.float32
    torch.testing.assert_close(y, expected.to(dtype), rtol=1.6e-2, atol=1e-2)
    torch.testing.assert_close(grads[1], expected_grads[1], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(layer_norm(x, **options), y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_parameters_are_summed_in_fp32(dtype):
    """In x's dtype, as PyTorch's CPU kernel sums them, those of 300 rows would be wrong by a hundredth."""
    x, options = arguments((300, 8), ("weight", "bias"), dtype)
    ours, expected = gradients(layer_norm, x, options)[1], gradients(exact, x, options)[1]
    for grad, truth in zip(ours[1:], expected[1:], strict=True):
        error = (grad.double() - truth.double()).abs().max()
        assert error <= torch.finfo(dtype).eps * truth.abs().max()


@pytest.mark.parametrize(
    ("dtype", "parameters"), [(torch.float32, torch.bfloat16), (torch.float64, torch.float32), (torch.bfloat16, torch.float16)]
)
def test_other_dtypes_of_parameters(dtype, parameters):
    x, options = arguments((2, 3, 16), ("weight", "bias"), dtype, parameters=parameters)
    y, grads = gradients(layer_norm, x, options)
    torch.testing.assert_close(y, exact(x, **options).to(dtype))
    assert [g.dtype for g in grads] == [dtype, parameters, parameters]


def test_residual_in_another_dtype():
    x, options = arguments((2, 3, 16), ("residual",), torch.bfloat16)
    residual = options["residual"].detach().float().requires_grad_()
    y, total = layer_norm(x, residual=residual)
    assert total.dtype == torch.bfloat16
    assert torch.autograd.grad(y.sum(), residual)[0].dtype == torch.float32


@by_reference
def test_gradcheck():
    x, options = arguments((2, 3, 5), OPTIONS, torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b, r: layer_norm(x, w, b, residual=r), (x, *options.values()), fast_mode=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_residual_comes_back_summed(layout):
    x, options = arguments((2, 3, 16), ("residual",), layout=layout)
    y, total = layer_norm(x, **options)
    assert total.equal(x + options["residual"])
    assert total.is_contiguous()
    assert y.equal(layer_norm(total))
    (grad,) = torch.autograd.grad(total, options["residual"], torch.ones_like(total))
    assert (grad == 1).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_a_residual_the_sum_is_x_with_one_gradient(layout):
    """What x gets through the norm and past it, in one pass."""
    x, options = arguments((2, 3, 16), ("weight",), layout=layout)
    past = torch.linspace(-1, 1, x.numel()).view(x.shape)
    y, skip = add_layer_norm(x, None, **options)
    assert skip.equal(x)
    assert skip.data_ptr() == x.data_ptr()
    ours = torch.autograd.grad((y * y).sum() + (skip * past).sum(), [x, *options.values()])
    expected = torch.autograd.grad((exact(x, **options) ** 2).sum() + (x * past).sum(), [x, *options.values()])
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_expanded_gradient():
    x, options = arguments((2, 3, 16), OPTIONS)
    leaves = [x, *options.values()]
    ours = torch.autograd.grad(layer_norm(x, **options)[0].sum(), leaves)  # stride 0
    for a, b in zip(ours, torch.autograd.grad(exact(x, **options).sum(), leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-5)


def test_large_mean():
    x, options = arguments((3, 320), ("weight", "bias"))
    x = x.detach() + 1e4
    truth = exact(x, **options)
    assert (layer_norm(x, **options) - truth).abs().max() <= 2 * (stock(x, **options) - truth).abs().max()


def test_eps():
    x, _ = arguments((2, 3, 16), ())
    torch.testing.assert_close(layer_norm(x, eps=1.0), exact(x, eps=1.0).float())


@pytest.mark.parametrize("c", [8193, 8200])
def test_rows_longer_than_registers_hold(c):
    x, options = arguments((1, c), OPTIONS)
    y, grads = gradients(layer_norm, x, options)
    expected, expected_grads = gradients(exact, x, options)
    torch.testing.assert_close(y, expected.float())
    for ours, truth in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (3, 0)])
def test_empty(shape):
    x, options = arguments(shape, OPTIONS)
    y, total = layer_norm(x, **options)
    assert y.shape == total.shape == shape
    grads = torch.autograd.grad(y.sum(), [x, options["weight"], options["bias"]])
    assert [g.shape for g in grads] == [shape, shape[-1:], shape[-1:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_has_no_effect(dtype):
    x, options = arguments((2, 3, 16), OPTIONS, dtype)
    expected = layer_norm(x, **options)[0]
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        y = layer_norm(x, **options)[0]
    assert y.dtype == dtype
    assert y.equal(expected)


@pytest.mark.parametrize("noncontiguous", [False, True])
def test_op_info(noncontiguous):
    info = op_info("nn.functional.layer_norm")
    for sample in info.sample_inputs(torch.get_default_device(), torch.float32, requires_grad=True):
        sample = sample.noncontiguous() if noncontiguous else sample
        (normalized, *args), kwargs = sample.args, sample.kwargs
        if len(normalized) != 1:
            continue
        ours, theirs = layer_norm(sample.input, *args, **kwargs), info.op(sample.input, normalized, *args, **kwargs)
        torch.testing.assert_close(ours, theirs)
        if theirs.numel():
            grads = [torch.autograd.grad(y, sample.input, torch.ones_like(y))[0] for y in (ours, theirs)]
            torch.testing.assert_close(*grads)


@by_reference
def test_compiles():
    x, options = arguments((2, 3, 16), OPTIONS, layout="half")
    compiled = torch.compile(layer_norm, fullgraph=True, backend="aot_eager")
    (y, grads), (expected, expected_grads) = (gradients(f, x, options) for f in (compiled, layer_norm))
    for ours, eager in zip((y, *grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(ours, eager)


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: layer_norm(x[0, 0, 0]), ValueError, r"x: expected \(..., C\), got a scalar"),
        (lambda x: layer_norm(x.int()), TypeError, "x: expected float16, bfloat16, .* got torch.int32"),
        (lambda x: layer_norm(x, x[0, 0, :3]), ValueError, r"weight: expected shape \(C,\) = \(10,\), got \(3,\)"),
        (lambda x: layer_norm(x, bias=x), ValueError, r"bias: expected shape \(C,\)"),
        (lambda x: layer_norm(x, residual=x[:1]), ValueError, r"residual: expected shape of x = \(2, 3, 10\)"),
        (lambda x: layer_norm(x, x[0, 0].to("meta")), ValueError, "weight: expected a tensor on the device of x"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(torch.ones(2, 3, 10))
