"""The kernels of group_norm against its reference, by the laboratory's checks."""

from functools import partial
from itertools import product
from math import prod

import pytest
import torch
import triton
import triton.language as tl
from torch.testing._internal.common_methods_invocations import op_db

from benchmarks.counters import of_operations
from benchmarks.interpreter import recorded
from fastgen.functional import group_norm
from fastgen_kernels.group_norm import _group_norm, _group_norm_backward, backward_triton, forward_triton, group_norm_reference
from fastgen_kernels.group_norm.plan import candidates
from fastgen_kernels.group_norm.tiles_triton import reciprocal_deviation
from tests.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from tests.laboratory.child import died
from tests.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_ignores_autocast,
    assert_registered,
)
from tests.laboratory.device import DEVICE, interpreter_only
from tests.laboratory.far import lazy
from tests.laboratory.guard_pages import assert_in_bounds
from tests.laboratory.soundness import assert_sound
from tests.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from tests.laboratory.tensors import LAYOUTS, random

pytestmark = pytest.mark.kernels

OP_INFO = next(op for op in op_db if op.name == "nn.functional.group_norm")
ALGORITHMS = ("held", "streamed", "split")
OPTIONS = ("weight", "bias", "scale", "shift", "pre_bias", "residual")


def op(x, weight, bias, scale, shift, pre_bias, residual, groups, activation="silu"):
    options = {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "pre_bias": pre_bias, "residual": residual}
    return group_norm(x, groups, **options, activation=activation)


def reference(x, weight, bias, scale, shift, pre_bias, residual, groups, activation="silu"):
    y, total = group_norm_reference(x, groups, weight, bias, 1e-5, activation, scale, shift, pre_bias, residual)
    return y if residual is None else (y, total)


def inputs(shape, dtype=torch.float32, layout="contiguous", options=OPTIONS, parameters=None):
    """scale and shift are the halves of one tensor, as a linear layer gives them. parameters: the dtype of weight and bias."""
    n, c = shape[:2]
    scale, shift = random((n, 2 * c), dtype, seed=3).chunk(2, 1)
    made = {
        "weight": random((c,), parameters or dtype, seed=1),
        "bias": random((c,), parameters or dtype, seed=2),
        "scale": scale.detach(),
        "shift": shift.detach(),
        "pre_bias": random((n, c), dtype, seed=4),
        "residual": random(shape, dtype, layout, seed=5),
    }
    x = random(shape, dtype, layout, seed=6)  # the upstream gradient has seed 0, and that of x itself nearly cancels
    return x.requires_grad_(), *(made[name].requires_grad_() if name in options else None for name in OPTIONS)


def force(monkeypatch, algorithm, tile=128):
    """That algorithm with small tiles, as on a GPU of few processors: then small tensors take several programs and rounds."""

    def plans(x, groups, held, _):
        processors = 2 if algorithm == "streamed" else 4
        made = candidates(*x.shape, groups, innermost=x.stride(1) == 1, held=held, tile=tile, processors=processors)
        return [p for p in made if p.algorithm == algorithm]

    monkeypatch.setattr("fastgen_kernels.group_norm.plan.PERSISTENT", 1)
    for kernels in (forward_triton, backward_triton):
        monkeypatch.setattr(kernels, "plans", plans)
    monkeypatch.setattr(forward_triton, "MERGED", 16)
    for name, value in (("MERGED", 4), ("ROWS", 2), ("COLUMNS", 4)):
        monkeypatch.setattr(backward_triton, name, value)


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize(
    ("shape", "groups", "layout"),
    [
        pytest.param((3, 6, 7, 5), 2, "contiguous", marks=pytest.mark.kill),
        pytest.param((2, 20, 5, 3), 4, "channels_last", marks=pytest.mark.kill),  # tiles of 15 channels, of 5 the last
        ((2, 40, 7, 5), 4, "channels_last"),  # groups of 10: tiles of 40 channels
        ((2, 6, 33), 2, "contiguous"),
        ((2, 6, 2, 3, 5), 2, "channels_last"),
        ((5, 12, 1, 1), 3, "contiguous"),
        ((5, 8), 2, "contiguous"),
        ((2, 6, 4, 3), 1, "permuted"),
    ],
)
def test_accurate(algorithm, shape, groups, layout):
    assert_as_accurate(op, reference, *inputs(shape, layout=layout), groups)


def test_a_channel_a_group(algorithm):
    """A pre_bias has no effect then."""
    options = [name for name in OPTIONS if name != "pre_bias"]
    assert_as_accurate(op, reference, *inputs((2, 6, 3, 3), options=options), 6)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("algorithm", "options", "activation"),
    [
        ("held", (), "silu"),
        ("split", ("weight", "bias"), None),
        ("streamed", ("weight",), "silu"),
        ("held", ("bias", "residual"), None),
        ("split", ("scale",), "silu"),
        ("streamed", ("bias", "shift"), None),
        ("held", ("pre_bias",), "silu"),
    ],
)
def test_options(monkeypatch, algorithm, options, activation, layout):
    force(monkeypatch, algorithm)
    assert_as_accurate(op, reference, *inputs((2, 16, 5, 7), layout=layout, options=options), 8, activation)


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(torch.float16, marks=pytest.mark.kill),
        torch.bfloat16,
        pytest.param(torch.float64, marks=pytest.mark.kill),
    ],
)
def test_every_dtype(algorithm, dtype):
    assert_as_accurate(op, reference, *inputs((2, 16, 5, 7), dtype, "channels_last", OPTIONS[:5]), 4)


@interpreter_only  # a GPU's reductions may take another order
@pytest.mark.kill
def test_parameters_in_fp64():
    """Bit for bit what they give in fp32: all arithmetic is in the compute dtype of x."""
    x, *options, _ = inputs((2, 6, 3, 2), options=OPTIONS[:5])
    ours, expected = results(op, x, *doubled(options), None, 2), results(op, x, *options, None, 2)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, check_dtype=False)


@pytest.mark.kill
def test_without_activation_in_bf16(monkeypatch):
    force(monkeypatch, "held")
    assert_as_accurate(op, reference, *inputs((2, 8, 5, 3), torch.bfloat16, options=("weight",)), 4, None)


@pytest.mark.kill
def test_strided_weight_and_bias():
    x, weight, bias, *rest = inputs((2, 6, 3, 2), options=("weight", "bias"))
    spread = (v.detach().repeat_interleave(2)[::2].requires_grad_() for v in (weight, bias))
    torch.testing.assert_close(results(op, x, *spread, *rest, 2), results(op, x, weight, bias, *rest, 2), rtol=0, atol=0)


@pytest.mark.kill
def test_results_of_the_op():
    """Without a residual the sum is of no elements, and so are gradients that are not wanted; the statistics are mean, rest and
    rstd of each group."""
    x, *parameters = (v.detach() for v in inputs((2, 6, 3, 2))[:-1])
    y, total, statistics = _group_norm(x, None, *parameters, 3, 1e-5, None)
    assert (y.shape, total.shape, statistics.shape) == (x.shape, (0,), (2, 3, 3))
    grads = _group_norm_backward(y, None, x, *parameters, statistics, None, [True] + 5 * [False])
    assert [g.shape for g in grads] == [x.shape] + 5 * [(0,)]


@interpreter_only
@pytest.mark.kill
def test_x_alone_takes_no_launch_for_parameters():
    x, *options = inputs((2, 6, 3, 2), options=())
    with recorded() as log:
        op(x, *options, 3).sum().backward()
    assert log.launches == ["held_kernel", "held_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.kill)])
def test_residual(algorithm, dtype):
    """The norm is of the sum as it is returned, and the gradients of both come together where it was made."""
    x, *options, residual = inputs((2, 8, 5, 7), dtype, options=("weight", "residual"))
    dy, dtotal = random(x.shape, dtype, seed=8), random(x.shape, dtype, seed=9)
    y, total = op(x, *options, residual, 2)
    torch.testing.assert_close(total, x + residual)
    dx, dresidual = torch.autograd.grad([y, total], [x, residual], [dy, dtotal])
    assert dx.equal(dresidual)

    made = total.detach().requires_grad_()
    alone = op(made, *options, None, 2)
    assert alone.equal(y)
    expected = torch.autograd.grad(alone, made, dy)[0] + dtotal
    torch.testing.assert_close(dx, expected, rtol=0, atol=2 * torch.finfo(dtype).eps * float(expected.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_in_fp32(algorithm, dtype):
    """As under autocast: nothing of x's size is made in fp32, and the gradients of the parameters are."""
    given = inputs((2, 16, 5, 7), dtype, options=("weight", "bias", "scale", "shift"), parameters=torch.float32)
    ours, peers, exact = (
        results(f, *tensors, 4) for f, tensors in ((op, given), (reference, given), (reference, doubled(given)))
    )
    for name in ours:
        assert_accurate(ours[name], peers[name], exact[name].double(), name)
    assert [ours[f"gradient of input {i}"].dtype for i in range(3)] == [dtype, torch.float32, torch.float32]


def doubled(tensors):
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def test_dtypes_may_differ(algorithm):
    x, weight, bias, *_, residual = inputs((2, 8, 3, 5), torch.bfloat16, options=("weight", "bias", "residual"))
    rest = weight.detach().half().requires_grad_(), bias, None, None, None, residual.detach().float().requires_grad_()
    ours, peers = (results(f, x, *rest, 2) for f in (op, reference))
    torch.testing.assert_close(ours, peers, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "gradients"), [*zip(LAYOUTS, LAYOUTS, strict=True), ("contiguous", "expanded")])
def test_any_layout(algorithm, layout, gradients):
    assert_as_accurate(op, reference, *inputs((2, 8, 6, 5), layout=layout), 4, gradients=gradients)


@pytest.mark.parametrize("only", range(2))
def test_one_result_alone(algorithm, only):
    ours, peer = (lambda *given, f=f: f(*given)[only] for f in (op, reference))
    assert_as_accurate(ours, peer, *inputs((2, 6, 5, 3)), 3)


@pytest.mark.kill
@pytest.mark.parametrize(("algorithm", "wanted"), [*(("held", i) for i in range(7)), *product(ALGORITHMS[1:], range(2))])
def test_gradients_of_what_needs_them(monkeypatch, algorithm, wanted):
    """Each alone gives what all together give, and the parameters' without that of x."""
    force(monkeypatch, algorithm)
    given = inputs((2, 4, 3, 2))
    together = results(op, *given, 2)
    alone = results(op, *(x.detach().requires_grad_(i == wanted) for i, x in enumerate(given)), 2)
    assert set(alone) == {"output 0", "output 1", f"gradient of input {wanted}"}
    torch.testing.assert_close(alone, {name: together[name] for name in alone}, rtol=0, atol=0)


@pytest.mark.slow
@examples(20)
@given(
    st.integers(0, 3), st.sampled_from((1, 2, 3)), st.sampled_from((1, 2, 5, 8)), shapes(0, 3, max_elements=40),
    layouts(), layouts(), dtypes(torch.float32, torch.float64), gradient_layouts(), st.sampled_from(ALGORITHMS), st.booleans(),
)  # fmt: skip
def test_any_tensors(n, groups, group, spatial, layout, residual_layout, dtype, gradients, algorithm, silu):
    spatial = () if 0 in spatial else spatial
    group = 8 if group * prod(spatial) < 8 else group  # of two elements hardly a gradient is left
    *given, _ = inputs((n, groups * group, *spatial), dtype, layout)
    residual = random(given[0].shape, dtype, residual_layout, 7).requires_grad_()
    with pytest.MonkeyPatch.context() as monkeypatch:
        force(monkeypatch, algorithm)
        assert_as_accurate(op, reference, *given, residual, groups, "silu" if silu else None, gradients=gradients)


@pytest.mark.kill
def test_large_mean(algorithm):
    """Mean 1e6, deviation 1: what subtracting the mean leaves is exact to fp32, forward and backward."""
    x, *options = inputs((2, 8, 6, 5), options=("weight", "bias"))
    x = (x.detach() + 1e6).requires_grad_()
    assert_exact_to_fp32(x, *options, 2)


@pytest.mark.kill
def test_large_mean_with_pre_bias(algorithm):
    """Their sum, of multiples of 2^-10 below 2^14, is exact, while the mean less the pre_bias is not."""
    x, *options = inputs((2, 8, 6, 5), options=("weight", "bias", "pre_bias"))
    x, options[4] = (
        ((v.detach() + mean) * 1024).round().div(1024).requires_grad_() for v, mean in ((x, 8290), (options[4], -100))
    )
    assert_exact_to_fp32(x, *options, 2)


def assert_exact_to_fp32(*given):
    ours, exact = results(op, *given, None), results(reference, *doubled(given[:-1]), given[-1], None)
    for name, truth in exact.items():
        assert (ours[name] - truth).abs().max() <= 1e-6 * truth.abs().max(), name


@pytest.mark.kill
def test_the_first_part_far_out(monkeypatch):
    """Its mean is what the others are merged with, while the group's is almost 0."""
    force(monkeypatch, "split", tile=16)
    x, *options = (None if x is None else x.detach() for x in inputs((1, 4, 16, 8), options=("weight", "bias")))
    x[:, :, 0] += 1e3
    assert_as_accurate(op, reference, x, *options, 2, None)


@pytest.mark.kill
def test_small_values(algorithm):
    """Beside which a 1 that does not belong to them would be large."""
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    assert_as_accurate(op, reference, (1e-3 * x.detach()).requires_grad_(), *options, 2, None)


def test_means_that_drift(algorithm):
    """Each channel, and each half of the positions, with a mean of its own, far from the first one's."""
    x, *options = inputs((2, 16, 6, 7), options=("weight", "bias"))
    offsets = torch.linspace(-3e3, 5e3, 16, device=DEVICE).view(16, 1, 1) + torch.linspace(0, 300, 6, device=DEVICE).view(6, 1)
    x = (x.detach() + offsets).requires_grad_()
    assert_as_accurate(op, reference, x, *options, 8, None)


def test_one_value_far_out(algorithm):
    """The first element, which a sum relative to it would suffer from."""
    x, *options = inputs((2, 4, 20, 7), options=("weight", "bias"))
    with torch.no_grad():
        x[:, :, 0, 0] = 1e4
    assert_as_accurate(op, reference, x, *options, 2, None)


def test_a_constant_group(algorithm):
    """Deviation 0: what is left is rounding, beside eps."""
    for value in (0.0, 1.0, 1e4):
        x = torch.full((2, 6, 5, 3), value, device=DEVICE)
        y = op(x, None, None, None, None, None, None, 3, None)
        assert y.abs().max() <= 1e-4 * value


@triton.jit
def reciprocal_deviations(var_ptr, out_ptr, eps: tl.float64):
    i = tl.arange(0, 4)
    tl.store(out_ptr + i, reciprocal_deviation(tl.load(var_ptr + i), eps, tl.float32))


@pytest.mark.kill
def test_a_variance_below_0_is_0_and_nan_stays():
    var = torch.tensor([-0.5, 0.0, 3.0, torch.nan], device=DEVICE)
    out = torch.empty_like(var)
    reciprocal_deviations[(1,)](var, out, 1.0)
    torch.testing.assert_close(out, torch.tensor([1.0, 1.0, 0.5, torch.nan], device=DEVICE), equal_nan=True)


def test_large_values_in_fp16(algorithm):
    x, *options = inputs((2, 8, 5, 7), torch.float16, options=("weight", "bias"))
    assert_as_accurate(op, reference, (300 * x.detach()).requires_grad_(), *options, 2)


@pytest.mark.parametrize(
    ("layout", "value"), [("contiguous", torch.inf), pytest.param("channels_last", torch.nan, marks=pytest.mark.kill)]
)
def test_nan_stays_in_its_group(algorithm, layout, value):
    x, *options = inputs((3, 6, 5, 3), layout=layout, options=("weight", "bias", "scale", "shift", "pre_bias"))
    with torch.no_grad():
        x[1, 2, 4, 1] = value
    ours = results(op, x, *options, 3)
    for name in ("output 0", "gradient of input 0"):
        spoiled = ours[name].isnan()
        assert spoiled[1, 2:4].all()
        assert spoiled.sum() == spoiled[1, 2:4].numel()


def test_bitwise_the_same(algorithm):
    given = inputs((2, 6, 6, 7), torch.bfloat16, "channels_last")
    one, other = (results(op, *given, 3) for _ in range(2))
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.kill
@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (0, 6), (2, 6, 0, 4)])
def test_empty(shape):
    ours, expected = (results(f, *inputs(shape), 3) for f in (op, reference))
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in expected.items()}
    assert all((x == 0).all() for name, x in ours.items() if name.startswith("gradient"))


@pytest.mark.slow
def test_op_info():
    for sample in OP_INFO.sample_inputs(DEVICE, torch.float32, requires_grad=True):
        for call in (sample, sample.noncontiguous()):
            ours, theirs = (f(call.input, *call.args, **call.kwargs) for f in (group_norm, OP_INFO.op))
            torch.testing.assert_close(ours, theirs)
            if theirs.numel():
                leaves = [x for x in (call.input, *call.args, *call.kwargs.values()) if isinstance(x, torch.Tensor)]
                torch.testing.assert_close(*(torch.autograd.grad(y, leaves, torch.ones_like(y)) for y in (ours, theirs)))


def spread(x, strides):
    copy = lazy(1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)), x.dtype)
    return copy.as_strided(x.shape, strides).copy_(x.detach()).requires_grad_()


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("algorithm", "layout", "strides"),
    [
        ("held", "contiguous", (12, 2**30, 1)),
        ("held", "channels_last", (8, 1, 2**28)),
        ("streamed", "channels_last", (8, 1, 2**28)),
    ],
)
def test_channels_and_positions_far_apart(monkeypatch, algorithm, layout, strides):
    """A tile that reaches over 2^31 elements, and one of fewer that begins beyond them."""
    force(monkeypatch, algorithm, tile=64)
    near = [random((2, 8, 12), layout=layout, seed=i).requires_grad_() for i in range(4)]

    def made(x, residual, dy, dtotal):
        y, total = group_norm(x, 2, residual=residual)
        return y, total, *torch.autograd.grad([y, total], [x, residual], [dy, dtotal])

    def run():
        torch.testing.assert_close(made(*(spread(x, strides) for x in near)), made(*near), rtol=0, atol=0)

    report = died(run)
    assert report is None, report


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("algorithm", ["streamed", "split"])
def test_in_bounds_without_options(monkeypatch, algorithm):
    force(monkeypatch, algorithm)
    assert_in_bounds(partial(results, op), *inputs((2, 6, 5, 3), options=()), 2)


@interpreter_only
@pytest.mark.parametrize(
    ("algorithm", "shape", "groups", "layout"),
    [
        *(pytest.param(algorithm, (3, 3, 4, 3), 1, "contiguous", marks=pytest.mark.kill) for algorithm in ALGORITHMS),
        ("held", (2, 12, 3, 3), 4, "channels_last"),
        ("streamed", (2, 6, 5, 4), 2, "row_gap"),
        ("split", (2, 12, 5, 3), 4, "channels_last"),
        ("held", (3, 4), 2, "contiguous"),
    ],
)
def test_sound(monkeypatch, algorithm, shape, groups, layout):
    force(monkeypatch, algorithm, tile=32)
    monkeypatch.setattr(forward_triton, "MERGED", 1024)  # what a mask leaves out is then out of bounds
    assert_sound(op, *inputs(shape, layout=layout), groups)


@interpreter_only
@pytest.mark.parametrize(
    ("algorithm", "forward", "backward"),
    [
        ("held", ["held_kernel"], ["held_kernel"]),
        ("streamed", ["streamed_kernel"], ["streamed_kernel"]),
        ("split", ["statistics_kernel", "merge_kernel", "apply_kernel"], ["sums_kernel", "merge_kernel", "apply_kernel"]),
    ],
)
def test_launches(monkeypatch, algorithm, forward, backward):
    force(monkeypatch, algorithm)
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    with recorded() as log:
        y = op(x, *options, 3)
        assert log.launches == forward
        y.sum().backward()
        assert log.launches == [*forward, *backward, "parameters_kernel"]


def test_skip_takes_no_pass_of_its_own():
    x, *options = inputs((2, 6, 5, 3), options=("weight", "bias"))
    y, skip = group_norm(x, 3, *options[:2], skip=True)
    with of_operations() as operations:
        torch.autograd.grad([y, skip], x, [torch.ones_like(x)] * 2)
    assert not any("add" in name for name in operations.names)


def test_what_is_saved_for_backward():
    """x, or with a residual the sum, which is a result anyhow; the statistics, and what was given for a channel."""
    for options in (OPTIONS, ("weight", "bias")):
        x, *rest = inputs((2, 8, 16, 16), torch.bfloat16, options=options)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda saved: saved):
            made = op(x, *rest, 4)
        small = sum(4 * y.numel() for y in rest[:5] if y is not None) + 2 * 4 * 3 * 4
        assert sum(y.nbytes for y in saved) <= x.nbytes + small
        if "residual" in options:
            assert any(y.data_ptr() == made[1].data_ptr() for y in saved)


def test_registered():
    for layout, options in (("contiguous", OPTIONS), ("channels_last", ("weight", "bias"))):
        x, *rest, residual = inputs((2, 4, 3, 2), layout=layout, options=options)
        assert_registered(_group_norm, (x, residual, *rest, 1, 1e-5, "silu"))
        y, total, statistics = (y.detach() for y in _group_norm(x, residual, *rest, 1, 1e-5, "silu"))
        dtotal = None if residual is None else total
        data = [None if p is None else p.detach() for p in rest]
        wanted = [True, *(p is not None for p in rest)]
        assert_registered(_group_norm_backward, (y, dtotal, x.detach(), *data, statistics, "silu", wanted))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "layout"), zip(ALGORITHMS, ("contiguous", "channels_last", "permuted"), strict=True))
def test_differentiates(monkeypatch, algorithm, layout):
    force(monkeypatch, algorithm)
    assert_differentiates(partial(op, groups=2), *inputs((2, 4, 3), layout=layout))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiles_exports_and_checkpoints(layout):
    given = inputs((5, 4, 3, 2), layout=layout)
    for check in (assert_compiles, assert_exports, assert_checkpoints, assert_ignores_autocast):
        check(op, *given, 1)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((5, 4, 3, 2), layout="channels_last"), 1, backends=("inductor",))
