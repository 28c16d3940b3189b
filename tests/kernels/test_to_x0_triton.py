"""The kernels of to_x0 against its reference, by the laboratory's checks."""

from functools import partial
from itertools import product

import pytest
import torch

from fastgen.functional import to_x0
from fastgen_kernels import to_x0_triton as kernels
from fastgen_kernels.to_x0 import _to_x0, _to_x0_backward, to_x0_reference
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
from proof.laboratory.device import interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.races import assert_race_free
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from proof.laboratory.tensors import FLOATS, LAYOUTS, random

pytestmark = pytest.mark.kernels

FORMS = [
    (3,),  # one element a sample
    (130, 16),  # many small samples to a program
    (9, 50),  # E not a multiple of 4
    (3, 4100),  # two tiles, the second of one block
    (3, 8, 7, 5),
    (2, 3, 5, 7),
    (2, 4, 2, 3, 5),
    (0, 3, 4),
    (3, 0),
]


def op(out, x, c_skip, c_out, uncond=None, guidance=1.0):
    return to_x0(out, x, c_skip, c_out, uncond=uncond, guidance=guidance)


def reference(out, x, c_skip, c_out, uncond=None, guidance=1.0):
    return to_x0_reference(out, x, c_skip, c_out, uncond, guidance)


def inputs(shape, dtype=torch.float32, layout="contiguous", *, guided=True):
    """out, x, c_skip, c_out, and with guidance uncond and a weight a sample; coefficients are the columns of one tensor."""
    out, x, uncond = (random(shape, dtype, layout, seed).requires_grad_() for seed in range(3))
    c_skip, c_out, guidance = random((shape[0], 3), torch.float32, seed=3).unbind(1)
    return (out, x, c_skip, c_out, uncond, guidance) if guided else (out, x, c_skip, c_out)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout"), [*product(FORMS, ["contiguous"]), *product(FORMS[4:7], ["channels_last", "permuted"])]
)
def test_accurate(shape, layout):
    for guided in (True, False):
        assert_as_accurate(op, reference, *inputs(shape, layout=layout, guided=guided))


@pytest.mark.kill
def test_one_guidance_for_all():
    *given, _ = inputs((9, 50))
    for guidance in (7.5, 1, 0.0):
        assert_as_accurate(op, reference, *given, guidance)


@pytest.mark.kill
def test_guidance_is_as_exact_as_the_data():
    """A weight that fp32 does not hold."""
    *given, _ = (x.double() for x in inputs((9, 50)))
    torch.testing.assert_close(op(*given, 1 / 3), reference(*given, 1 / 3), rtol=1e-13, atol=1e-13)


@pytest.mark.kill
def test_without_uncond_guidance_has_no_effect():
    out, x, c_skip, c_out = inputs((9, 50), guided=False)
    plain = results(op, out, x, c_skip, c_out)
    for guidance in (3.0, c_skip):
        ours = results(op, out, x, c_skip, c_out, None, guidance)
        assert all(ours[name].equal(plain[name]) for name in plain)


@pytest.mark.kill
def test_each_gradient_alone():
    out, x, c_skip, c_out, uncond, guidance = inputs((9, 50))
    for i in range(3):
        leaves = [y if i == k else y.detach() for k, y in enumerate((out, x, uncond))]
        assert_as_accurate(op, reference, *leaves[:2], c_skip, c_out, leaves[2], guidance)


@pytest.mark.kill
def test_coefficients_of_any_strides():
    out, x, _, _, uncond, guidance = inputs((9, 50))
    c_skip, c_out = random((9, 3), seed=3).t()[::2]
    assert_as_accurate(op, reference, out, x, c_skip, c_out, uncond, guidance)


@pytest.mark.parametrize("gradients", ["sliced", "expanded"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_and_any_gradient(dtype, gradients):
    assert_as_accurate(op, reference, *inputs((130, 16), dtype), gradients=gradients)
    assert_as_accurate(op, reference, *inputs((3, 8, 7, 5), dtype, "channels_last"), gradients=gradients)


@pytest.mark.kill
def test_wider_arguments_do_not_widen_the_arithmetic():
    """All but x, of fp32's values, in fp64: the same results, bit for bit."""
    out, x, *rest = inputs((9, 50))
    out, *rest = (y.detach() for y in (out, *rest))
    expected = results(op, out, x, *rest)
    ours = results(op, out.double(), x, *(y.double() for y in rest))
    assert all(ours[name].equal(expected[name]) for name in expected)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_may_differ(dtype):
    out, x, c_skip, c_out, uncond, guidance = inputs((9, 50), dtype)
    for other in FLOATS:
        given = out.detach().to(other).requires_grad_(), x, c_skip.half(), c_out.double(), uncond, guidance.bfloat16()
        ours, truth = results(op, *given), results(reference, *given)
        for name in truth:
            rounded = {"rtol": 2.0**-7, "atol": 1e-4} if truth[name].dtype == torch.bfloat16 else {}  # the interpreter truncates
            torch.testing.assert_close(ours[name], truth[name], **rounded)


@pytest.mark.slow
@examples(20)
@given(shapes(max_elements=2**10), layouts(), layouts(), layouts(), dtypes(), gradient_layouts(), st.booleans())
def test_any_tensors(shape, out_layout, x_layout, uncond_layout, dtype, gradients, guided):
    out, x, c_skip, c_out, *rest = inputs(shape, dtype, guided=guided)
    out, x, *uncond = (
        LAYOUTS[layout](y.detach()).requires_grad_()
        for y, layout in zip((out, x, *rest[:1]), (out_layout, x_layout, uncond_layout), strict=False)
    )
    assert_as_accurate(op, reference, out, x, c_skip, c_out, *uncond, *rest[1:], gradients=gradients)


@pytest.mark.kill
def test_layouts_may_differ():
    """Each tensor is read where it lies."""
    out, x, c_skip, c_out, uncond, guidance = inputs((3, 8, 3, 5))
    expected = op(out, x, c_skip, c_out, uncond, guidance)
    for a, b, c in (
        ("channels_last", "contiguous", "half"),
        ("half", "channels_last", "row_gap"),
        ("sliced", "half", "permuted"),
    ):
        mixed = LAYOUTS[a](out), LAYOUTS[b](x), c_skip, c_out, LAYOUTS[c](uncond), guidance
        assert op(*mixed).equal(expected)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout", "guided"),
    [
        ((65, 16), "contiguous", True),
        ((5, 7), "row_gap", False),
        ((2, 8, 3, 5), "channels_last", True),
        ((2, 3, 5), "half", True),
    ],
)
def test_sound(shape, layout, guided):
    assert_sound(op, *inputs(shape, layout=layout, guided=guided))


@interpreter_only
@pytest.mark.kill
def test_a_program_takes_1024_blocks():
    given = inputs((1, 2052))
    with recorded() as log:
        x0_hat = op(*given)
    assert len({access.program for access in log}) == 1
    torch.testing.assert_close(x0_hat, reference(*given))


@interpreter_only
@pytest.mark.kill
def test_no_element_is_written_by_two_programs():
    """Not even with the same number."""
    given = inputs((1, 4100))
    assert_race_free(lambda: op(*given))


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32(monkeypatch):
    """The last program of a launch over a sample of which three quarters are more than 2^31 elements, which are not all there."""
    e, last = 3 * 2**30, 2**10
    out, x = (lazy(e, torch.bfloat16)[None] for _ in range(2))
    out[:, -last:], x[:, -last:] = (random((1, last), torch.bfloat16, seed=seed) for seed in range(2))
    c_skip, c_out = torch.tensor([[0.5], [0.25]])
    monkeypatch.setattr(kernels, "empty_like", lambda x: lazy(x.numel(), x.dtype).view(x.shape))
    with last_program():
        x0_hat = kernels.forward(out, x, c_skip, c_out, None, 1.0, None)
    monkeypatch.undo()
    assert x0_hat[:, -last:].equal(op(out[:, -last:], x[:, -last:], c_skip, c_out))


@interpreter_only
def test_one_launch_each_way_and_no_activation_kept_between():
    out, x, c_skip, c_out, uncond, guidance = inputs((8, 4, 16, 16))
    kept = []
    with recorded() as log, torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y.shape) or y, lambda y: y):
        x0_hat = op(out, x, c_skip, c_out, uncond, guidance)
        assert log.launches == ["forward_kernel"]
        torch.autograd.grad(x0_hat, [out, x, uncond], x0_hat.detach())
        assert log.launches == ["forward_kernel", "backward_kernel"]
    assert set(kept) == {c_skip.shape}


def test_coefficients_that_need_a_gradient_take_the_reference():
    given = inputs((3, 5))
    for i in (2, 3, 5):
        assert_as_accurate(op, reference, *(y.detach().requires_grad_(y.requires_grad or k == i) for k, y in enumerate(given)))


def test_registered():
    for shape, layout in [((5, 6), "contiguous"), ((3, 4, 3, 5), "channels_last")]:
        out, x, c_skip, c_out, uncond, guidance = inputs(shape, layout=layout)
        given = out, x, c_skip, c_out
        assert_registered(_to_x0.registered, (*given, uncond, 1.0, guidance), (*given, None, 2.0, None))
        coefficients = c_skip, c_out, 2.0, None
        assert_registered(_to_x0_backward.registered, (x.detach(), *coefficients, torch.float32, None, torch.bfloat16))


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
    assert_compiles(partial(op, guidance=2.0), *inputs((6, 4, 3, 5))[:5], backends=("inductor",))
