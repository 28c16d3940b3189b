"""The kernels of group_norm against its reference: every shape, option, dtype and layout."""

from itertools import product
from math import prod

import pytest
import torch

from fastgen.functional import group_norm
from fastgen_kernels.group_norm import _group_norm, _group_norm_backward
from proof.laboratory.accuracy import assert_accurate, assert_as_accurate, results
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from proof.laboratory.tensors import LAYOUTS, random
from tests.helpers.group_norm_problems import ALGORITHMS, OPTIONS, doubled, force, inputs, op, reference
from tests.helpers.op_info import op_info

pytestmark = pytest.mark.kernels



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


@pytest.mark.parametrize(
    ("algorithm", "layout", "options", "activation"),
    [
        ("held", "contiguous", (), "silu"),
        ("split", "channels_last", ("weight", "bias"), None),
        ("streamed", "contiguous", ("weight",), "silu"),
        ("held", "channels_last", ("bias", "residual"), None),
        ("split", "contiguous", ("scale",), "silu"),
        ("streamed", "channels_last", ("bias", "shift"), None),
        ("held", "channels_last", ("pre_bias",), "silu"),
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


def test_dtypes_may_differ(algorithm):
    x, weight, bias, *_, residual = inputs((2, 8, 3, 5), torch.bfloat16, options=("weight", "bias", "residual"))
    rest = weight.detach().half().requires_grad_(), bias, None, None, None, residual.detach().float().requires_grad_()
    ours, peers = (results(f, x, *rest, 2) for f in (op, reference))
    torch.testing.assert_close(ours, peers, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "gradients"), [*zip(LAYOUTS, LAYOUTS, strict=True), ("contiguous", "expanded")])
def test_any_layout(algorithm, layout, gradients):
    # The largest of a few hundred errors varies more from seed to seed than twice the peer's.
    assert_as_accurate(op, reference, *inputs((2, 8, 12, 10), layout=layout), 4, gradients=gradients)


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
    info = op_info("nn.functional.group_norm")
    for sample in info.sample_inputs(DEVICE, torch.float32, requires_grad=True):
        if sample.kwargs.get("eps", 0) < 0:  # PyTorch takes it and gives NaN where the variance is smaller; we refuse it
            with pytest.raises(ValueError, match="eps: expected a finite number >= 0"):
                group_norm(sample.input, *sample.args, **sample.kwargs)
            continue
        for call in (sample, sample.noncontiguous()):
            ours, theirs = (f(call.input, *call.args, **call.kwargs) for f in (group_norm, info.op))
            torch.testing.assert_close(ours, theirs)
            if theirs.numel():
                leaves = [x for x in (call.input, *call.args, *call.kwargs.values()) if isinstance(x, torch.Tensor)]
                torch.testing.assert_close(*(torch.autograd.grad(y, leaves, torch.ones_like(y)) for y in (ours, theirs)))
