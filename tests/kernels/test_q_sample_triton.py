"""The kernels of q_sample against its reference, by the laboratory's checks."""

from functools import partial
from itertools import product

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, q_sample
from fastgen_kernels import q_sample_triton as kernels
from fastgen_kernels.q_sample import TARGETS, _q_sample, _q_sample_backward, q_sample_reference
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
    (1,),
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


def op(x0, alpha, sigma, noise, target="eps", dtype=None):
    """noise is the noise, or the key that it is drawn from."""
    given = {"key": noise} if noise.dtype == torch.int64 else {"noise": noise}
    return q_sample(x0, alpha, sigma, target=target, dtype=dtype, **given)


def reference(x0, alpha, sigma, noise, target="eps", dtype=None):
    """Noise that is drawn is the kernels', which tests/kernels/test_philox_triton.py compares with the reference's."""
    noise = philox_normal(x0.shape, noise) if noise.dtype == torch.int64 else noise
    return q_sample_reference(x0, alpha, sigma, noise, target, dtype or x0.dtype)


def inputs(shape, dtype=torch.float32, layout="contiguous", *, draw=True):
    """x0, alpha, sigma, and the noise or its key; the coefficients are the columns of one tensor."""
    x0 = random(shape, dtype, layout).requires_grad_()
    alpha, sigma = random((shape[0], 2), torch.float32, seed=1).unbind(1)
    if draw:
        return x0, alpha, sigma, noise_key(2**40 + 3, 4, 5, shape[0], DEVICE)
    return x0, alpha, sigma, random(shape, dtype, layout, seed=2).requires_grad_()


def tolerance(dtype):
    """Of torch.testing, but for bf16, to which the interpreter truncates, and for fp64, to its own digits."""
    return {torch.bfloat16: {"rtol": 2.0**-7, "atol": 1e-5}, torch.float64: {"rtol": 1e-13, "atol": 1e-13}}.get(dtype, {})


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout"), [*product(FORMS, ["contiguous"]), *product(FORMS[5:8], ["channels_last", "permuted"])]
)
def test_accurate(shape, layout):
    assert_as_accurate(op, reference, *inputs(shape, layout=layout), "v")
    assert_as_accurate(op, reference, *inputs(shape, layout=layout, draw=False), "flow")


@pytest.mark.kill
@pytest.mark.parametrize("target", [*TARGETS, None])
def test_every_target(target):
    for draw in (True, False):
        assert_as_accurate(op, reference, *inputs((9, 50), draw=draw), target)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("gradients", ["sliced", "expanded"])
def test_every_dtype_and_any_gradient(dtype, gradients):
    for shape in ((130, 16), (3, 8, 7, 5)):
        assert_as_accurate(op, reference, *inputs(shape, dtype, "channels_last", draw=False), "v", gradients=gradients)


@pytest.mark.kill
def test_one_gradient_alone():
    """Of x_t or the target, for x0 or the noise."""
    x0, alpha, sigma, noise = inputs((9, 50), draw=False)
    for_x0, for_noise = (x0, noise.detach()), (x0.detach(), noise)
    cases = [
        ("v", 0, for_x0),
        ("v", 0, for_noise),
        ("v", 1, for_x0),
        ("v", 1, for_noise),
        ("eps", 1, for_noise),
        ("x0", 1, for_x0),
    ]
    for target, only, leaves in cases:
        assert_as_accurate(
            lambda x0, noise, target=target, only=only: op(x0, alpha, sigma, noise, target)[only],
            lambda x0, noise, target=target, only=only: reference(x0, alpha, sigma, noise, target)[only],
            *leaves,
        )


@pytest.mark.kill
@pytest.mark.parametrize("x0_dtype", FLOATS)
def test_dtypes_may_differ(x0_dtype):
    """The arithmetic is in fp64 where data or result are; coefficients come in any float."""
    x0, alpha, sigma, noise = inputs((9, 50), x0_dtype, draw=False)
    for dtype in FLOATS:
        ours = results(op, x0, alpha.half(), sigma.double(), noise.detach().bfloat16(), "v", dtype)
        truth = results(reference, x0, alpha.half(), sigma.double(), noise.detach().bfloat16(), "v", dtype)
        assert ours["output 0"].dtype == dtype
        assert ours["gradient of input 0"].dtype == x0_dtype
        for name in truth:
            torch.testing.assert_close(ours[name], truth[name], **tolerance(truth[name].dtype))


@interpreter_only  # on a GPU noise in fp64 takes the reference
@pytest.mark.kill
def test_wider_arguments_do_not_widen_the_arithmetic():
    """alpha, sigma and noise of fp32's values, in fp64: the same results, bit for bit."""
    x0, *rest = inputs((9, 50), draw=False)
    rest = [x.detach() for x in rest]
    ours, expected = (results(op, x0, *given, "v") for given in ([x.double() for x in rest], rest))
    assert all(ours[name].equal(expected[name]) for name in expected)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
def test_bytes(dtype):
    """Every uint8, in any memory format; the ends are exact."""
    x0 = torch.arange(256, dtype=torch.uint8, device=DEVICE).flip(0).view(2, 8, 4, 4)
    _, alpha, sigma, noise = inputs(x0.shape, draw=False)
    for layout in ("contiguous", "channels_last", "every second"):
        x = x0.repeat_interleave(2, -1)[..., ::2] if layout == "every second" else LAYOUTS[layout](x0)
        ours = op(x, alpha, sigma, noise.detach(), "v", dtype)
        truth = reference(x0.double() / 127.5 - 1, alpha.double(), sigma.double(), noise.detach().double(), "v")
        for y, exact in zip(ours, truth, strict=True):
            assert y.dtype == dtype
            torch.testing.assert_close(y, exact.to(dtype), **tolerance(dtype))
    ends = torch.tensor([[0, 255]], dtype=torch.uint8, device=DEVICE)
    ones = torch.ones(1, device=DEVICE)
    assert op(ends, ones, 0 * ones, torch.ones(1, 2, device=DEVICE), None, dtype).tolist() == [[-1, 1]]


@pytest.mark.slow
@examples(20)
@given(
    shapes(max_elements=2**10),
    layouts(),
    layouts(),
    dtypes(),
    gradient_layouts(),
    st.booleans(),
    st.sampled_from([*TARGETS, None]),
)
def test_any_tensors(shape, x0_layout, noise_layout, dtype, gradients, draw, target):
    x0, alpha, sigma, noise = inputs(shape, dtype, x0_layout, draw=draw)
    if not draw:
        noise = LAYOUTS[noise_layout](noise.detach()).requires_grad_()
    assert_as_accurate(op, reference, x0, alpha, sigma, noise, target, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_is_that_of_the_key(layout):
    """Bit for bit, wherever the elements lie."""
    for shape in ((3, 8, 4, 5), (2, 3, 5, 3)):
        x0, alpha, _, key = inputs(shape, layout=layout)
        x_t, target = op(x0, 0 * alpha, torch.ones_like(alpha), key)
        assert x_t.equal(philox_normal(shape, key))
        assert target.equal(x_t)


@pytest.mark.kill
def test_infinity_stays_where_it_is():
    """What a target is not made of does not reach it."""
    x0 = torch.tensor([[torch.inf, torch.nan, 1.0, 2.0]], device=DEVICE)
    one = torch.ones(1, device=DEVICE)
    noise = x0.flip(1)
    assert op(x0, one, one, noise, "eps")[1].equal(noise) is False  # NaN
    torch.testing.assert_close(op(x0, one, one, noise, "eps")[1], noise, equal_nan=True, rtol=0, atol=0)
    torch.testing.assert_close(op(x0, one, one, noise, "x0")[1], x0, equal_nan=True, rtol=0, atol=0)


@pytest.mark.kill
def test_no_result_is_an_argument():
    x0, alpha, sigma, noise = inputs((9, 50), draw=False)
    for target, source in (("x0", x0), ("eps", noise)):
        made = op(x0.detach(), alpha, sigma, noise.detach(), target)[1]
        assert made.equal(source)
        assert made.data_ptr() != source.data_ptr()


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "layout", "draw", "target"),
    [
        ((65, 16), "contiguous", True, "v"),
        ((5, 7), "contiguous", False, "flow"),
        ((2, 41), "row_gap", True, None),
        ((2, 8, 3, 5), "channels_last", True, "v"),
        ((2, 3, 3, 5), "channels_last", False, "eps"),
        ((2, 3, 3, 5), "permuted", True, "x0"),
    ],
)
def test_sound(shape, layout, draw, target):
    assert_sound(op, *inputs(shape, layout=layout, draw=draw), target)


@pytest.mark.kill
def test_without_a_target_there_is_no_second_result():
    x0, alpha, sigma, noise = inputs((3, 5), draw=False)
    assert _q_sample(x0, alpha, sigma, noise, None, None, torch.float32)[1].shape == (0,)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "programs", "samples", "block"),
    [((65, 17), 17, 4, 256), ((65, 16), 2, 64, 16), ((2, 3, 1400), 4, 1, 4096)],
)
def test_tiles_in_the_order_of_memory(shape, programs, samples, block):
    grid, sizes = kernels.elementwise_launch(torch.empty(shape), torch.float32)
    assert (grid, sizes["SAMPLES"], sizes["ELEMENTS"]) == ((programs,), samples, block)


@pytest.mark.kill
def test_what_lies_densely_is_taken_in_the_order_of_memory():
    x = random((2, 3, 4, 5))
    for dense in (x, LAYOUTS["channels_last"](x)):
        assert kernels.in_memory_order(dense, dense).is_contiguous()


@interpreter_only
@pytest.mark.kill
def test_a_program_takes_1024_blocks():
    given = inputs((1, 2052))
    with recorded() as log:
        y, _ = op(*given)
    assert len({access.program for access in log}) == 1
    torch.testing.assert_close(y, reference(*given)[0])


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32(monkeypatch):
    """The last program of a launch over a sample of which three quarters are more than 2^31 elements, which are not all there."""
    e, last = 3 * 2**30, 2**10
    x0, one, key = lazy(e, torch.uint8)[None], torch.ones(1), noise_key(1)
    x0[:, -last:] = torch.arange(last)
    monkeypatch.setattr(kernels, "empty_like", lambda x, dtype: lazy(x.numel(), dtype).view(x.shape))
    with last_program():
        x_t, _ = kernels.forward(x0, one, 0 * one, None, key, None, torch.bfloat16)
    monkeypatch.undo()
    assert x_t[:, -last:].equal(op(x0[:, -last:], one, 0 * one, key, None, torch.bfloat16))


@interpreter_only
def test_one_launch_each_way_and_little_kept_between():
    x0, alpha, sigma, noise = inputs((8, 4, 16, 16), draw=False)
    kept = []
    with recorded() as log, torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        outputs = op(x0, alpha, sigma, noise, "v")
        assert log.launches == ["forward_kernel"]
        torch.autograd.grad(outputs, [x0, noise], [y.detach() for y in outputs])
        assert log.launches == ["forward_kernel", "backward_kernel"]
    assert [x.shape for x in kept] == [alpha.shape, sigma.shape]


def test_coefficients_that_need_a_gradient_take_the_reference():
    x0, alpha, sigma, noise = inputs((3, 5), draw=False)
    alpha = alpha.detach().requires_grad_()
    assert_as_accurate(op, reference, x0, alpha, sigma, noise, "v")


def test_registered():
    for shape, layout, draw, target in [((5, 6), "contiguous", False, None), ((3, 4, 3, 5), "channels_last", True, "v")]:
        x0, alpha, sigma, noise = inputs(shape, layout=layout, draw=draw)
        given = (None, noise) if draw else (noise, None)
        assert_registered(_q_sample.registered, (x0, alpha, sigma, *given, target, torch.bfloat16))
        grad, floats = x0.detach(), (torch.float32, None if draw else torch.float16)
        assert_registered(_q_sample_backward.registered, (grad, grad.clone() if draw else None, alpha, sigma, target, *floats))


@pytest.mark.parametrize(("layout", "targets"), [("contiguous", ("eps", "v")), ("channels_last", ("x0", "flow"))])
def test_differentiates(layout, targets):
    for target in targets:
        assert_differentiates(partial(op, target=target), *inputs((3, 4, 2, 3), layout=layout, draw=target == "v"))


def test_compiles_exports_and_checkpoints():
    given = *inputs((6, 4, 3, 5), layout="channels_last"), "v"
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))
