"""The kernels of diffusion_loss against its reference, by the laboratory's checks."""

from functools import partial

import pytest
import torch

from fastgen.functional import diffusion_loss
from fastgen_kernels.diffusion_loss import KINDS, _diffusion_loss, _diffusion_loss_backward, diffusion_loss_reference
from proof.laboratory.accuracy import assert_as_accurate
from proof.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_ignores_autocast,
    assert_registered,
)
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from proof.laboratory.tensors import FLOATS, LAYOUTS, random
from proof.traffic import counted

pytestmark = pytest.mark.kernels

FORMS = [
    (1,),
    (3,),  # one element a sample
    (70, 16),  # many small samples to a program
    (9, 50),
    (2, 4100),  # two rounds of the loop, the second of few elements
    (3, 8, 7, 5),
    (2, 4, 2, 3, 5),
    (0, 3, 4),
    (3, 0),
]


def op(pred, target, weight=None, kind="mse"):
    return diffusion_loss(pred, target, weight, kind=kind)


def reference(pred, target, weight=None, kind="mse"):
    return diffusion_loss_reference(pred, target, weight, kind)


def inputs(shape, dtype=torch.float32, pred_layout="contiguous", target_layout="contiguous", *, learned=False):
    """learned: whether target and weight require gradients too."""
    pred, target = LAYOUTS[pred_layout](2 * random(shape, dtype)), random(shape, dtype, target_layout, 1)
    weight = random(shape[:1], torch.float32, seed=2)
    return pred.requires_grad_(), target.requires_grad_(learned), weight.requires_grad_(learned)


@pytest.mark.kill
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", FORMS)
def test_accurate(shape, kind):
    assert_as_accurate(op, reference, *inputs(shape), kind)


@pytest.mark.kill
@pytest.mark.parametrize("target_layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("pred_layout", ["contiguous", "channels_last", "permuted", "half"])
def test_layouts(pred_layout, target_layout):
    assert_as_accurate(op, reference, *inputs((3, 8, 7, 5), torch.float32, pred_layout, target_layout, learned=True))


@pytest.mark.parametrize(("shape", "gradients"), [((70, 16), "sliced"), ((3, 8, 7, 5), "expanded")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_and_any_gradient(dtype, shape, gradients):
    assert_as_accurate(op, reference, *inputs(shape, dtype), "charbonnier", gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("kind", KINDS)
def test_fp64(kind):
    """To fp64's own digits, which the tolerances do not ask for."""
    for f in (op, lambda pred, target, *rest: op(target, pred, *rest)):  # each tensor's gradient
        (pred, target), weight = (
            (random((2, 300), torch.float64, seed=seed).requires_grad_() for seed in (0, 1)),
            random((2,), torch.float64),
        )
        results = [x(pred, target, weight, kind) for x in (f, reference)]
        torch.testing.assert_close(*results, rtol=1e-14, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), (pred, target)) for y in results), rtol=1e-13, atol=1e-18)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("dtypes", "learned"),
    [
        ((torch.bfloat16, torch.float32, torch.float16), True),
        ((torch.float64, torch.float32, torch.bfloat16), True),
        ((torch.float32, torch.float64, torch.float64), False),  # in fp32, as pred is
    ],
)
def test_dtypes_of_the_arguments_may_differ(dtypes, learned):
    given = [x.detach().to(dtype) for x, dtype in zip(inputs((9, 50)), dtypes, strict=True)]
    assert_as_accurate(op, reference, *(x.requires_grad_(learned or x is given[0]) for x in given))


@pytest.mark.slow
@examples(25)
@given(
    shapes(max_elements=2**10),
    layouts(),
    layouts(),
    dtypes(),
    dtypes(),
    gradient_layouts(),
    st.sampled_from(KINDS),
    st.booleans(),
    st.booleans(),
)
def test_any_tensors(shape, pred_layout, target_layout, dtype, target_dtype, gradients, kind, learned, weighted):
    pred, target = random(shape, dtype, pred_layout).requires_grad_(), random(shape, target_dtype, target_layout, 1)
    weight = random(shape[:1], seed=2) if weighted else None
    learned = learned and target_dtype != torch.float64  # its gradient would be fp64 of what is computed as pred is
    assert_as_accurate(op, reference, pred, target.requires_grad_(learned), weight, kind, gradients=gradients)


@pytest.mark.kill
def test_weights_of_any_stride():
    pred, target, _ = inputs((5, 7))
    for weight in (random((5, 2))[:, 1], random((1,)).expand(5)):
        assert_as_accurate(op, reference, pred, target, weight, gradients="sliced")


@pytest.mark.kill
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered")
@pytest.mark.parametrize("kind", KINDS)
def test_special_differences(kind):
    """At 0, around the bend of huber, at NaN, infinities and where squares overflow, and on either side."""
    d = [0.0, 1e-8, 1e-3, 0.3, 0.999, 1.0, 1.001, 3.0, 1e18, 1e30, torch.inf]
    d = torch.tensor([*d, *(-x for x in d), torch.nan], device=DEVICE).requires_grad_()
    ours, expected = (f(d, torch.zeros_like(d), None, kind) for f in (op, reference))
    torch.testing.assert_close(ours, expected, rtol=2e-7, atol=0, equal_nan=True)
    grads = [torch.autograd.grad(y.sum(), d)[0] for y in (ours, expected)]
    torch.testing.assert_close(*grads, rtol=4e-7, atol=0, equal_nan=True)


def test_gradients_of_fp16_under_a_loss_scale():
    """Less than fp16 has, and so 0, without the scale; nothing on the way to them may be in fp16."""
    pred = (random((2, 16384)) * 1e-4).half().requires_grad_()
    loss = op(pred, torch.zeros_like(pred)).mean()
    assert not torch.autograd.grad(loss, pred, retain_graph=True)[0].any()
    (grad,) = torch.autograd.grad(loss * 2**16, pred)
    torch.testing.assert_close(grad.double(), pred.detach().double() * 2**16 / 16384, rtol=1e-3, atol=2**-24)


@pytest.mark.kill
@pytest.mark.parametrize("parts", [2, 3])
def test_large_samples_are_summed_in_parts(monkeypatch, parts):
    monkeypatch.setattr("fastgen_kernels.diffusion_loss_triton.splits", lambda n, tiles: parts)
    assert_as_accurate(op, reference, *inputs((2, 3, 4100), learned=True), "charbonnier")


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "pred_layout", "target_layout"),
    [
        ((65, 16), "contiguous", "contiguous"),
        ((5, 7), "permuted", "sliced"),
        ((2, 4100), "row_gap", "contiguous"),
        ((2, 8, 3, 5), "channels_last", "channels_last"),
        ((2, 3, 3, 5), "channels_last", "half"),
    ],
)
def test_sound(shape, pred_layout, target_layout):
    pred, target, weight = inputs(shape, torch.float32, pred_layout, target_layout)
    assert_sound(op, pred, target.requires_grad_(), weight)


@interpreter_only
@pytest.mark.kill
def test_one_launch_each_way():
    """And none of PyTorch's own."""
    pred, target, weight = inputs((8, 4, 16, 16))
    loss, forward = counted(lambda: op(pred, target, weight))
    _, backward = counted(lambda: torch.autograd.grad(loss, pred, loss.detach()))
    assert forward.launches == backward.launches == 1


def test_saves_its_arguments_alone():
    given = inputs((4, 3, 5))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        op(*given)
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in given}


def test_registered():
    pred, target, weight = inputs((5, 6))
    assert_registered(_diffusion_loss.registered, (pred, target, weight, "mse"))
    pred, target, _ = inputs((3, 4, 3, 5), torch.bfloat16, "channels_last")
    assert_registered(_diffusion_loss.registered, (pred, target.requires_grad_(), None, "huber"))
    dloss = torch.ones(3, device=DEVICE)
    assert_registered(_diffusion_loss_backward.registered, (dloss, pred.detach(), target.detach(), None, "huber"))


@pytest.mark.parametrize("kind", KINDS)
def test_differentiates(kind):
    for learned, layout in ((True, "contiguous"), (False, "channels_last")):
        pred, target, weight = inputs((3, 4, 2, 3), torch.float32, layout, learned=learned)
        assert_differentiates(partial(op, kind=kind), pred, target, weight)


def test_compiles_exports_and_checkpoints():
    given = inputs((6, 4, 3, 5), torch.float32, "channels_last", learned=True)
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))
