"""The kernels of sampler_step against its reference, by the laboratory's checks."""

from itertools import product

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, sampler_step
from fastgen_kernels import sampler_step_triton as kernels
from fastgen_kernels.layout import compute_dtype
from fastgen_kernels.sampler_step import _sampler_step, _sampler_step_backward, sampler_step_reference
from proof.interpreter import last_program, recorded
from proof.laboratory.accuracy import assert_as_accurate, results
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

FORMS = [
    (3,),  # one element a sample
    (130, 16),  # many small samples to a program
    (9, 50),  # E not a multiple of 4
    (3, 4100),  # two tiles, the second of one block
    (3, 8, 7, 5),  # in channels_last, taken by quarters of the channels
    (2, 3, 5, 7),  # in channels_last, C not a multiple of 4
    (2, 4, 2, 3, 5),
    (0, 3, 4),
    (3, 0),
]


def op(x, x0_hat, coefficients, previous=None, key=None):
    return sampler_step(x, x0_hat, coefficients, previous=previous, key=key)


def reference(x, x0_hat, coefficients, previous=None, key=None):
    """With the kernels' noise, which tests/kernels/test_philox_triton.py compares with the reference's, as one more x0_hat."""
    if key is None:
        return sampler_step_reference(x, x0_hat, coefficients, previous, None)
    *_, s = coefficients.to(compute_dtype(x.dtype))
    noise = s * philox_normal(x.shape, key, dtype=s.dtype)
    compute = x.to(s.dtype), x0_hat.to(s.dtype), coefficients, None if previous is None else previous.to(s.dtype)
    return (sampler_step_reference(*compute, None) + noise).to(x.dtype)


def inputs(shape, dtype=torch.float32, layout="contiguous", *, previous=True, draw=True):
    x, x0_hat, last = (random(shape, dtype, layout, seed).requires_grad_() for seed in range(3))
    row = torch.tensor([0.7, -0.4, 0.25, 0.3], device=DEVICE)
    key = noise_key(2**40 + 3, 4, 5, shape[0], DEVICE)
    return x, x0_hat, row, last if previous else None, key if draw else None


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout"), [*product(FORMS, ["contiguous"]), *product(FORMS[4:7], ["channels_last", "permuted"])]
)
def test_accurate(shape, layout):
    for previous, draw in ((True, True), (False, False)):
        assert_as_accurate(op, reference, *inputs(shape, layout=layout, previous=previous, draw=draw))


@pytest.mark.kill
def test_every_choice_of_terms():
    for previous, draw in ((True, False), (False, True)):
        assert_as_accurate(op, reference, *inputs((9, 50), previous=previous, draw=draw))


@pytest.mark.kill
def test_each_gradient_alone():
    x, x0_hat, row, previous, _ = inputs((9, 50))
    for i in range(3):
        leaves = [y if i == k else y.detach() for k, y in enumerate((x, x0_hat, previous))]
        assert_as_accurate(op, reference, *leaves[:2], row, leaves[2])


@pytest.mark.kill
def test_coefficients_of_any_strides():
    x, x0_hat, row, previous, _ = inputs((9, 50))
    assert_as_accurate(op, reference, x, x0_hat, row.repeat_interleave(2)[::2], previous)


@pytest.mark.kill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_is_that_of_the_key(layout):
    """Bit for bit, wherever the elements lie."""
    only_noise = torch.tensor([0.0, 0.0, 0.0, 1.0], device=DEVICE)
    for shape in ((3, 8, 4, 5), (2, 3, 5, 3)):
        x, x0_hat, _, _, key = inputs(shape, layout=layout)
        assert op(x, x0_hat, only_noise, None, key).equal(philox_normal(shape, key))


@pytest.mark.parametrize("gradients", ["sliced", "expanded"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_and_any_gradient(dtype, gradients):
    assert_as_accurate(op, reference, *inputs((130, 16), dtype), gradients=gradients)
    assert_as_accurate(op, reference, *inputs((3, 8, 7, 5), dtype, "channels_last", draw=False), gradients=gradients)


@pytest.mark.kill
def test_wider_arguments_do_not_widen_the_arithmetic():
    """All but x, of fp32's values, in fp64: the same result, bit for bit."""
    x, x0_hat, row, previous, key = inputs((9, 50))
    expected = op(x, x0_hat, row, previous, key)
    assert op(x, x0_hat.double(), row.double(), previous.double(), key).equal(expected)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_may_differ(dtype):
    x, x0_hat, row, previous, _ = inputs((9, 50), dtype)
    for other in FLOATS:
        given = x, x0_hat.detach().to(other).requires_grad_(), row.to(other), previous.detach().half().requires_grad_()
        ours, truth = results(op, *given), results(reference, *given)
        for name in truth:
            rounded = {"rtol": 2.0**-7, "atol": 1e-4} if truth[name].dtype == torch.bfloat16 else {}  # the interpreter truncates
            torch.testing.assert_close(ours[name], truth[name], **rounded)


@pytest.mark.slow
@examples(20)
@given(shapes(max_elements=2**10), layouts(), layouts(), layouts(), dtypes(), gradient_layouts(), st.booleans(), st.booleans())
def test_any_tensors(shape, x_layout, x0_layout, previous_layout, dtype, gradients, with_previous, draw):
    x, x0_hat, row, previous, key = inputs(shape, dtype, draw=draw)
    x, x0_hat, previous = (
        LAYOUTS[layout](y.detach()).requires_grad_()
        for y, layout in zip((x, x0_hat, previous), (x_layout, x0_layout, previous_layout), strict=True)
    )
    assert_as_accurate(op, reference, x, x0_hat, row, previous if with_previous else None, key, gradients=gradients)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout", "previous", "draw"),
    [
        ((65, 16), "contiguous", True, True),
        ((5, 7), "row_gap", False, False),
        ((2, 8, 3, 5), "channels_last", True, True),
        ((2, 3, 5), "half", True, False),
    ],
)
def test_sound(shape, layout, previous, draw):
    assert_sound(op, *inputs(shape, layout=layout, previous=previous, draw=draw))


@interpreter_only
@pytest.mark.kill
def test_a_program_takes_1024_blocks():
    given = inputs((1, 2052))
    with recorded() as log:
        x_next = op(*given)
    assert len({access.program for access in log}) == 1
    torch.testing.assert_close(x_next, reference(*given))


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32(monkeypatch):
    """The last program of a launch over a sample of which three quarters are more than 2^31 elements, which are not all there."""
    e, last = 3 * 2**30, 2**10
    x, x0_hat = (lazy(e, torch.bfloat16)[None] for _ in range(2))
    x[:, -last:], x0_hat[:, -last:] = (random((1, last), torch.bfloat16, seed=seed) for seed in range(2))
    row = torch.tensor([0.5, 0.25, 0.0, 0.0])
    monkeypatch.setattr(kernels, "empty_like", lambda x: lazy(x.numel(), x.dtype).view(x.shape))
    with last_program():
        x_next = kernels.forward(x, x0_hat, row, None, None)
    monkeypatch.undo()
    assert x_next[:, -last:].equal(op(x[:, -last:], x0_hat[:, -last:], row))


@interpreter_only
def test_one_launch_each_way_and_no_activation_kept_between():
    x, x0_hat, row, previous, key = inputs((8, 4, 16, 16))
    kept = []
    with recorded() as log, torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y.shape) or y, lambda y: y):
        x_next = op(x, x0_hat, row, previous, key)
        assert log.launches == ["forward_kernel"]
        torch.autograd.grad(x_next, [x, x0_hat, previous], x_next.detach())
        assert log.launches == ["forward_kernel", "backward_kernel"]
    assert kept == [row.shape]


def test_coefficients_that_need_a_gradient_take_the_reference():
    x, x0_hat, row, previous, _ = inputs((3, 5))
    assert_as_accurate(op, reference, x, x0_hat, row.requires_grad_(), previous)


def test_registered():
    for shape, layout in [((5, 6), "contiguous"), ((3, 4, 3, 5), "channels_last")]:
        x, x0_hat, row, previous, key = inputs(shape, layout=layout)
        assert_registered(_sampler_step.registered, (x, x0_hat, row, previous, key), (x, x0_hat, row, None, None))
        assert_registered(_sampler_step_backward.registered, (x.detach(), row, torch.float32, None, torch.bfloat16))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_differentiates(layout):
    assert_differentiates(op, *inputs((3, 4, 2, 3), layout=layout))


def test_compiles_exports_and_checkpoints():
    given = inputs((6, 4, 3, 5), layout="channels_last")
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))
