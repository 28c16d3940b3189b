"""The kernels of layer_norm against its reference, by the laboratory's checks."""

from functools import partial

import pytest
import torch

from fastgen.functional import add_layer_norm, layer_norm
from fastgen_kernels import layer_norm_triton as kernels
from fastgen_kernels.layer_norm import _layer_norm, _layer_norm_backward, add_layer_norm_reference
from proof.interpreter import last_program, recorded
from proof.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from proof.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_ignores_autocast,
    assert_registered,
)
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from proof.laboratory.tensors import FLOATS, LAYOUTS, random

pytestmark = pytest.mark.kernels

OPTIONS = ("weight", "bias", "residual")


def op(x, weight=None, bias=None, residual=None, eps=1e-5):
    return layer_norm(x, weight, bias, eps) if residual is None else add_layer_norm(x, residual, weight, bias, eps)


def reference(x, weight=None, bias=None, residual=None, eps=1e-5):
    made = add_layer_norm_reference(x, residual, weight, bias, eps)
    return made[0] if residual is None else made


def inputs(shape, dtype=torch.float32, layout="contiguous", options=OPTIONS, parameters=None):
    """parameters: the dtype of weight and bias."""
    made = {
        "weight": random(shape[-1:], parameters or dtype, seed=1),
        "bias": random(shape[-1:], parameters or dtype, seed=2),
        "residual": random(shape, dtype, layout, seed=5),
    }
    x = random(shape, dtype, layout, seed=6)  # the upstream gradient has seed 0, and that of x itself nearly cancels
    return x.requires_grad_(), *(made[name].requires_grad_() if name in options else None for name in OPTIONS)


@pytest.fixture
def small(monkeypatch):
    """As on a GPU of few processors, with small tiles: then few rows take several programs, tiles and rounds."""
    monkeypatch.setattr(kernels, "processors", lambda device: 1)
    for name, value in (("FORWARD", 64), ("BACKWARD", 32), ("PROGRAMS", 3), ("SUMMED", 2), ("COLUMNS", 8)):
        monkeypatch.setattr(kernels, name, value)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param((21, 12), OPTIONS, marks=pytest.mark.kill),  # tiles of 4 rows, the last of 1
        pytest.param((2, 5, 16), ("weight", "bias"), marks=pytest.mark.kill),
        pytest.param((9, 5), (), marks=pytest.mark.kill),
        ((9, 17), ("weight",)),
        ((9, 17), ("bias", "residual")),
        ((3, 2, 2, 24), ("residual",)),
        ((7, 100), OPTIONS),  # a row is longer than a tile
        ((40, 8), OPTIONS),
        ((16,), OPTIONS),
    ],
)
def test_accurate(small, shape, options):
    assert_as_accurate(op, reference, *inputs(shape, options=options))


def test_as_launched():
    for shape in ((5, 320), (3, 1001), (2, 8)):
        assert_as_accurate(op, reference, *inputs(shape))


def test_one_and_two_columns():
    """Of one there is nothing but the bias left; gradients of two cancel."""
    x, weight, bias, residual = inputs((5, 1))
    ours = results(op, x, weight, bias, residual)
    assert ours["output 0"].equal(bias.detach().expand(5, 1))
    assert ours["gradient of input 1"].item() == 0
    assert_as_accurate(op, reference, *inputs((5, 2)), cancels=True)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype(small, dtype):
    assert_as_accurate(op, reference, *inputs((9, 24), dtype, options=OPTIONS[:2]))


@pytest.mark.kill
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_in_fp32(small, dtype):
    """As under autocast: nothing of x's size is made in fp32, and the gradients of the parameters are."""
    given = inputs((9, 24), dtype, options=OPTIONS[:2], parameters=torch.float32)
    exact = results(reference, *(None if x is None else x.detach().double().requires_grad_() for x in given))
    ours, peers = (results(f, *given) for f in (op, reference))
    for name in ours:
        assert_accurate(ours[name], peers[name], exact[name], name)
    assert [ours[f"gradient of input {i}"].dtype for i in range(3)] == [dtype, torch.float32, torch.float32]


@interpreter_only  # a GPU's reductions may take another order
@pytest.mark.kill
def test_wider_parameters_do_not_widen_the_arithmetic():
    """weight and bias in fp64, almost of fp32's values: the same results, bit for bit."""
    x, weight, bias, _ = inputs((5, 17), options=OPTIONS[:2])
    doubled = (((1 + 2.0**-26) * p.detach().double()).requires_grad_() for p in (weight, bias))
    ours, expected = results(op, x, *doubled), results(op, x, weight, bias)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, check_dtype=False)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual(small, dtype):
    """The norm is of the sum as it is returned, and the gradients of both come together where it was made."""
    x, weight, _, residual = inputs((9, 24), dtype, options=("weight", "residual"))
    dy, dtotal = random(x.shape, dtype, seed=8), random(x.shape, dtype, seed=9)
    y, total = op(x, weight, None, residual)
    rounding = {"rtol": 2.0**-7, "atol": 0} if dtype == torch.bfloat16 else {}  # the interpreter truncates
    torch.testing.assert_close(total, x + residual, **rounding)
    dx, dresidual = torch.autograd.grad([y, total], [x, residual], [dy, dtotal])
    assert dx.equal(dresidual)

    made = total.detach().requires_grad_()
    alone = op(made, weight)
    assert alone.equal(y)
    expected = torch.autograd.grad(alone, made, dy)[0] + dtotal
    torch.testing.assert_close(dx, expected, rtol=0, atol=2 * torch.finfo(dtype).eps * float(expected.abs().max()))


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_residual_in_another_dtype(dtype):
    x, *_, residual = inputs((5, 24), dtype)
    for other in FLOATS:
        skip = residual.detach().to(other).requires_grad_()
        ours, expected = results(op, x, None, None, skip), results(reference, x, None, None, skip)
        for name, truth in expected.items():
            tolerance = 2e-2 if min(dtype.itemsize, other.itemsize) == 2 else 1e-5  # of the less exact of the two
            torch.testing.assert_close(ours[name], truth, rtol=tolerance, atol=tolerance)


@pytest.mark.kill
@pytest.mark.parametrize("wanted", range(4))
def test_gradients_of_what_needs_them(small, wanted):
    """Each alone gives what all together give."""
    given = inputs((9, 8))
    together = results(op, *given)
    alone = results(op, *(x.detach().requires_grad_(i == wanted) for i, x in enumerate(given)))
    assert set(alone) == {"output 0", "output 1", f"gradient of input {wanted}"}
    torch.testing.assert_close(alone, {name: together[name] for name in alone}, rtol=0, atol=0)


@pytest.mark.parametrize("only", range(2))
def test_one_result_alone(only):
    ours, peer = (lambda *given, f=f: f(*given)[only] for f in (op, reference))
    assert_as_accurate(ours, peer, *inputs((5, 24)))


@pytest.mark.kill
def test_results_of_the_op():
    """Without a residual the sum is of no elements, and so are gradients that are not wanted; the statistics are the mean and the
    reciprocal deviation of each row."""
    x, weight, bias = (v.detach() for v in inputs((2, 3, 8))[:3])
    y, total, statistics = _layer_norm(x, None, weight, bias, 1e-5)
    assert (y.shape, total.shape) == (x.shape, (0,))
    mean, rstd = statistics
    torch.testing.assert_close(mean, x.mean(-1).flatten())
    torch.testing.assert_close(rstd, 1 / (x.var(-1, correction=0) + 1e-5).sqrt().flatten())
    grads = _layer_norm_backward(y, None, x, weight, statistics, torch.float32, None, None)
    assert [g.shape for g in grads] == [x.shape, (0,), (0,)]
    grads = _layer_norm_backward(y, None, x, weight, statistics, None, None, torch.float64)
    assert [(g.shape, g.dtype) for g in grads[::2]] == [((0,), torch.float32), ((8,), torch.float64)]


@pytest.mark.kill
def test_strided_weight_and_bias():
    x, weight, bias, _ = inputs((3, 6), options=OPTIONS[:2])
    spread = (v.detach().repeat_interleave(2)[::2].requires_grad_() for v in (weight, bias))
    torch.testing.assert_close(results(op, x, *spread), results(op, x, weight, bias), rtol=0, atol=0)


@pytest.mark.kill
@pytest.mark.parametrize(("layout", "gradients"), [*zip(LAYOUTS, LAYOUTS, strict=True), ("contiguous", "expanded")])
def test_any_layout(layout, gradients):
    assert_as_accurate(op, reference, *inputs((2, 4, 24), layout=layout), gradients=gradients)


@pytest.mark.kill
def test_rows_are_read_where_they_lie():
    """Unless they have no one stride, or their elements do not lie side by side."""
    x = random((4, 6, 16))
    for rows in (x, x[..., :5], x[:, 0], x[:, :1], x[0], x[0, 0], x[:1, :1].expand(4, 6, 16)):
        assert kernels.as_rows(rows).data_ptr() == rows.data_ptr()
        assert kernels.as_rows(rows).shape == (rows.numel() // rows.shape[-1], rows.shape[-1])
    for copied in (x[:, :5], x.mT, x[..., ::2]):
        assert kernels.as_rows(copied).is_contiguous()
        assert kernels.as_rows(copied).equal(copied.reshape(-1, copied.shape[-1]))


@pytest.mark.slow
@examples(25)
@given(
    shapes(max_elements=2**8, max_dims=3), layouts(), layouts(), dtypes(torch.float32, torch.float64), gradient_layouts(),
    st.sampled_from(((), ("weight",), ("weight", "bias"), ("residual",), OPTIONS)),
)  # fmt: skip
def test_any_tensors(shape, layout, residual_layout, dtype, gradients, options):
    shape = (*shape[:-1], max(8, shape[-1]))  # of two elements hardly a gradient is left
    x, weight, bias, residual = inputs(shape, dtype, layout, options)
    residual = None if residual is None else random(shape, dtype, residual_layout, 7).requires_grad_()
    assert_as_accurate(op, reference, x, weight, bias, residual, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("mean", [1e4, 1e6])
def test_large_mean(small, mean):
    """Deviation 1: what subtracting the mean leaves is exact to fp32, forward and backward."""
    x, weight, bias, _ = inputs((6, 40), options=OPTIONS[:2])
    x = (x.detach() + mean).requires_grad_()
    ours = results(op, x, weight, bias)
    exact = results(reference, *(v.detach().double().requires_grad_() for v in (x, weight, bias)))
    for name, truth in exact.items():
        assert (ours[name] - truth).abs().max() <= 1e-6 * truth.abs().max(), name


@pytest.mark.kill
def test_small_values_and_eps():
    """Beside which a 1 that does not belong to them would be large."""
    x, weight, bias, _ = inputs((5, 24), options=OPTIONS[:2])
    x = (1e-3 * x.detach()).requires_grad_()
    for eps in (1e-5, 1e-2, 3.0):
        assert_as_accurate(op, reference, x, weight, bias, None, eps)


def test_a_constant_row():
    """Deviation 0: what is left is rounding, beside eps."""
    for value in (0.0, 1.0, 1e4):
        assert op(torch.full((2, 37), value, device=DEVICE)).abs().max() <= 1e-4 * value


def test_large_values_in_fp16(small):
    x, weight, bias, _ = inputs((9, 24), torch.float16, options=OPTIONS[:2])
    assert_as_accurate(op, reference, (300 * x.detach()).requires_grad_(), weight, bias)


@pytest.mark.kill
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_stays_in_its_row(small, value):
    x, weight, bias, _ = inputs((9, 5), options=OPTIONS[:2])
    with torch.no_grad():
        x[5, 2] = value
    ours = results(op, x, weight, bias)
    for name in ("output 0", "gradient of input 0"):
        spoiled = ours[name].isnan()
        assert spoiled[5].all()
        assert spoiled.sum() == 5


def test_bitwise_the_same(small):
    given = inputs((21, 24), torch.bfloat16)
    one, other = (results(op, *given) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.kill
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (2, 0)])
def test_empty(shape):
    ours, expected = (results(f, *inputs(shape)) for f in (op, reference))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in expected.items()}
    assert all((x == 0).all() for name, x in ours.items() if name.startswith("gradient"))


@pytest.mark.kill
@pytest.mark.parametrize(
    ("rows", "c", "heights", "programs", "warps"),
    [
        (32768, 320, (16, 8), (256, 256), (8, 8)),
        (2048, 1280, (4, 2), (256, 256), (8, 8)),
        (2**24, 1, (8192, 4096), (256, 256), (8, 8)),  # as many rows as a tile holds
        (65536, 8192, (1, 1), (264, 264), (8, 16)),  # rows as long as a tile, backward longer
        (5, 8192, (1, 1), (5, 5), (8, 16)),
        (2 * 264, 1024, (2, 2), (264, 264), (8, 8)),
        (264, 1000, (1, 1), (264, 264), (2, 2)),
        (264, 512, (1, 1), (264, 264), (1, 1)),
        (300, 8, (1, 1), (150, 150), (1, 1)),  # all processors are kept busy
        (527, 8, (1, 1), (264, 264), (1, 1)),
        (528, 8, (2, 2), (264, 264), (1, 1)),
        (3 * 264, 8, (2, 2), (198, 198), (1, 1)),  # tiles come out even
        (3 * 264 + 1, 8, (2, 2), (199, 199), (1, 1)),
    ],
)
def test_plan(rows, c, heights, programs, warps):
    """On an H200: rows of a tile, programs, and warps, forward and backward."""
    x = torch.empty(rows, c, device="meta")
    made = [kernels.plan(elements, x=x) for elements in (kernels.FORWARD, kernels.BACKWARD)]
    assert tuple(constants["HEIGHT"] for _, constants in made) == heights
    assert tuple(n for n, _ in made) == programs
    assert tuple(constants["num_warps"] for _, constants in made) == warps


@pytest.mark.kill
def test_units_of_strides():
    """The largest power of 2, to 16, that divides all strides and the length of a row."""
    for c, stride, unit in ((320, 640, 16), (40, 40, 8), (320, 324, 4), (37, 64, 1), (16, 33, 1), (16, 0, 16)):
        x, dy = torch.empty(5, c), torch.empty(5 * stride + c).as_strided((5, c), (stride, 1))
        arguments = kernels.plan(64, x=x, dy=dy, dtotal=None)[1]
        assert (arguments["UNIT"], arguments["dy_stride"] * unit) == (unit, stride)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout", "options"),
    [((11, 12), "contiguous", OPTIONS), ((7, 12), "row_gap", ("weight", "bias")), ((6, 16), "contiguous", ())],
)
def test_sound(small, shape, layout, options):
    assert_sound(op, *inputs(shape, layout=layout, options=options))


@interpreter_only
@pytest.mark.kill
def test_rows_beyond_int32(small):
    """The last program of launches over more than 2^31 elements, which are not all there."""
    rows, c = 2**21 + 3, 1024
    x, residual, dy, dtotal = (lazy(rows * c, torch.bfloat16).view(rows, c) for _ in range(4))
    for seed, tensor in enumerate((x, residual, dy, dtotal)):
        tensor[-3:] = random((3, c), torch.bfloat16, seed=seed)
    weight, bias = random((c,), seed=4), random((c,), seed=5)

    def made(x, residual, dy, dtotal):
        y, total, statistics = kernels.forward(x, residual, weight, bias, 1e-5)
        return y, total, kernels.backward(dy, dtotal, total, weight, statistics, torch.bfloat16, None, None)[0]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(kernels, "PROGRAMS", 2**31)  # a tile each
        with last_program():
            ours = made(x, residual, dy, dtotal)
    expected = made(*(tensor[-3:].clone() for tensor in (x, residual, dy, dtotal)))
    assert all(a[-1].equal(b[-1]) for a, b in zip(ours, expected, strict=True))


@interpreter_only
@pytest.mark.kill
def test_launches():
    x, weight, bias, _ = inputs((4, 16), options=OPTIONS[:2])
    with recorded() as log:
        y = op(x, weight, bias)
        assert log.launches == ["forward_kernel"]
        y.sum().backward()
        assert log.launches == ["forward_kernel", "backward_kernel", "parameters_kernel"]
    with recorded() as log:
        op(x, weight.detach()).sum().backward()
        assert log.launches == ["forward_kernel", "backward_kernel"]


def test_what_is_saved_for_backward():
    """x, or with a residual the sum, which is a result anyhow; weight and the statistics."""
    for options in (OPTIONS, OPTIONS[:2]):
        x, weight, bias, residual = inputs((2, 8, 64), torch.bfloat16, options=options)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda saved: saved):
            made = op(x, weight, bias, residual)
        assert sum(y.nbytes for y in saved) == x.nbytes + weight.nbytes + 2 * 16 * 4
        if residual is not None:
            assert any(y.data_ptr() == made[1].data_ptr() for y in saved)


def test_registered():
    for options in (OPTIONS, ("weight",)):
        x, weight, bias, residual = inputs((2, 3, 8), options=options)
        assert_registered(_layer_norm.registered, (x, residual, weight, bias, 1e-5))
        y, total, statistics = (y.detach() for y in _layer_norm(x, residual, weight, bias, 1e-5))
        dtotal = None if residual is None else total
        data = y, dtotal, x.detach(), weight.detach(), statistics
        for wanted in ((torch.float32, torch.float32, torch.float64), (None, torch.float32, None)):
            assert_registered(_layer_norm_backward.registered, (*data, *wanted))


@pytest.mark.parametrize("layout", ["contiguous", "row_gap"])
def test_differentiates(layout):
    assert_differentiates(op, *inputs((3, 2, 6), layout=layout))


def test_compiles_exports_and_checkpoints():
    given = inputs((5, 2, 24))
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(partial(op, eps=1e-6), *inputs((5, 2, 24)), backends=("inductor",))
