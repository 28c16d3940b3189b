"""The kernels of reconstruction_nll against its reference, by the laboratory's checks."""

import math
from functools import partial

import pytest
import torch

from fastgen import VAE, VAEObjective
from fastgen.functional import noise_key, reconstruction_nll
from fastgen_kernels import reconstruction_nll_triton as kernels
from fastgen_kernels.dispatch import disabled
from fastgen_kernels.reconstruction_nll import (
    LIKELIHOODS,
    _reconstruction_nll,
    _reconstruction_nll_backward,
    reconstruction_nll_reference,
)
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
    (3,),  # one element a sample
    (70, 16),  # many small samples to a program
    (9, 50),
    (3, 4100),  # two rounds of the loop, the second of few elements
    (3, 8, 7, 5),
    (2, 4, 2, 3, 5),
    (0, 3, 4),
    (3, 0),
]


def op(logits, x, likelihood="bernoulli", std=0.4):
    return reconstruction_nll(logits, x, likelihood=likelihood, std=std)


def reference(logits, x, likelihood="bernoulli", std=0.4):
    return reconstruction_nll_reference(logits, x, likelihood, std)


def inputs(shape, dtype=torch.float32, logits_layout="contiguous", x_layout="contiguous", data=None):
    """data: the dtype of x, the logits' own where it is None."""
    logits, x = 2 * random(shape, dtype), (0.5 + 0.2 * random(shape, seed=1)).clamp(0, 1)
    if data == torch.uint8:  # no NaN fits between its elements
        strides = LAYOUTS[x_layout](x).stride()
        x = torch.empty_strided(shape, strides, dtype=data, device=DEVICE).copy_((255 * x).round())
    else:
        x = LAYOUTS[x_layout](x.to(data or dtype))
    return LAYOUTS[logits_layout](logits).requires_grad_(), x


@pytest.mark.kill
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("shape", FORMS)
def test_accurate(shape, likelihood):
    assert_as_accurate(op, reference, *inputs(shape), likelihood)


@pytest.mark.kill
@pytest.mark.parametrize("x_layout", ["contiguous", "channels_last", "sliced"])
@pytest.mark.parametrize("logits_layout", ["contiguous", "channels_last", "sliced", "half"])
def test_layouts(logits_layout, x_layout):
    assert_as_accurate(op, reference, *inputs((3, 8, 7, 5), torch.float32, logits_layout, x_layout))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(("shape", "gradients"), [((70, 16), "sliced"), ((3, 8, 7, 5), "expanded")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_and_any_gradient(dtype, shape, gradients, likelihood):
    assert_as_accurate(op, reference, *inputs(shape, dtype), likelihood, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_fp64(likelihood):
    """To fp64's own digits, which the tolerances do not ask for."""
    for data in (torch.float64, torch.uint8):
        logits, x = inputs((2, 9), torch.float64, data=data)
        results = [f(logits, x, likelihood) for f in (op, reference)]
        torch.testing.assert_close(*results, rtol=1e-14, atol=0)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), logits)[0] for y in results), rtol=1e-13, atol=1e-15)


@pytest.mark.kill
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize(
    ("dtype", "data"),
    [
        (torch.float32, torch.uint8),
        (torch.bfloat16, torch.uint8),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float16),
        (torch.float32, torch.float64),  # in fp32, as the logits are
    ],
)
def test_x_of_another_dtype(dtype, data, likelihood):
    assert_as_accurate(op, reference, *inputs((9, 50), dtype, data=data), likelihood)


@pytest.mark.kill
def test_every_byte():
    x = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    nll = op(torch.full((256,), -1.0, device=DEVICE), x)
    torch.testing.assert_close(nll.double(), x.double() / 255 + math.log1p(math.exp(-1)), rtol=3e-7, atol=0)
    ends = torch.tensor([-200.0, 200.0], device=DEVICE, requires_grad=True)
    nll = op(ends, x[[0, 255]])
    assert not nll.any()
    assert not torch.autograd.grad(nll.sum(), ends)[0].any()


@pytest.mark.slow
@examples(25)
@given(
    shapes(max_elements=2**10),
    layouts(),
    layouts(),
    dtypes(),
    st.sampled_from((*FLOATS, torch.uint8)),
    gradient_layouts(),
    st.sampled_from(LIKELIHOODS),
)
def test_any_tensors(shape, logits_layout, x_layout, dtype, data, gradients, likelihood):
    assert_as_accurate(op, reference, *inputs(shape, dtype, logits_layout, x_layout, data), likelihood, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=interpreter_only)])
@pytest.mark.parametrize("x", [0.0, 1e-3, 0.5, 1.0])
def test_the_digits_of_each_element_at_any_logit(x, dtype):
    """Also where PyTorch's cross-entropy loses them: log(1 + exp(l)) - x l cancels, and 1 + exp(-|l|) is rounded."""
    size = torch.tensor([0.0, 1e-6, 1e-3, 0.1, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 20.0, 40.0, 80.0, 1e4, 1e30])
    logits = torch.cat((size, -size)).to(DEVICE, dtype).requires_grad_()
    given = torch.full_like(logits.detach(), x)
    nll = op(logits, given)
    (slope,) = torch.autograd.grad(nll.sum(), logits)

    size, given = logits.detach().double().abs(), given.double()
    wrong = torch.where(logits < 0, given, 1 - given)  # what the likelier value leaves
    tail = (-size).exp()
    rounding = torch.finfo(dtype).eps * (3 + size.clamp(max=104))  # that of exp grows with the logit
    exact = size * wrong + tail.log1p()
    assert ((nll.double() - exact).abs() <= rounding * tail + 3 * torch.finfo(dtype).eps * exact + 1e-37).all()
    tail = tail / (1 + tail)
    exact = (wrong - tail) * torch.where(logits < 0, -1, 1)
    assert ((slope.double() - exact).abs() <= rounding * tail + 2 * torch.finfo(dtype).eps * exact.abs() + 1e-37).all()


@pytest.mark.kill
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_nan_stays(likelihood):
    logits = torch.tensor([torch.nan, 0.0, -1.0, 1.0], device=DEVICE).requires_grad_()
    x = torch.tensor([0.5, torch.nan, torch.nan, 0.5], device=DEVICE)
    nll = op(logits, x, likelihood)
    assert nll.isnan().tolist() == [True, True, True, False]
    assert torch.autograd.grad(nll.sum(), logits)[0].isnan().tolist() == [True, True, True, False]


@pytest.mark.kill
@pytest.mark.parametrize("parts", [2, 3])
def test_large_samples_are_summed_in_parts(monkeypatch, parts):
    monkeypatch.setattr(kernels, "splits", lambda n, tiles: parts)
    assert_as_accurate(op, reference, *inputs((2, 3, 4100)), "gaussian")


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "dtype", "logits_layout", "x_layout", "samples", "block", "tiles"),
    [
        ((2, 16), torch.float32, "contiguous", "contiguous", 64, 16, 1),
        ((2, 17), torch.float32, "contiguous", "contiguous", 4, 256, 1),
        ((2, 256), torch.float32, "contiguous", "contiguous", 4, 256, 1),
        ((2, 3, 100), torch.float32, "contiguous", "contiguous", 1, 4096, 1),
        ((1, 3, 2000), torch.bfloat16, "contiguous", "contiguous", 1, 4096, 2),
        ((2, 3, 2000), torch.bfloat16, "channels_last", "contiguous", 1, 1024, 6),
        ((2, 3, 2000), torch.float32, "sliced", "contiguous", 1, 1024, 6),
        ((2, 257), torch.float32, "contiguous", "contiguous", 1, 4096, 1),
    ],
)
def test_tiles(shape, dtype, logits_layout, x_layout, samples, block, tiles):
    _, constants, found = kernels.plan(*inputs(shape, dtype, logits_layout, x_layout), "bernoulli", 1.0)
    assert (constants["SAMPLES"], constants["BLOCK"], found) == (samples, block, tiles)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "logits_layout", "x_layout"),
    [
        ((65, 16), "contiguous", "contiguous"),
        ((5, 7), "permuted", "sliced"),
        ((2, 4100), "row_gap", "contiguous"),
        ((2, 8, 3, 5), "channels_last", "channels_last"),
        ((2, 3, 3, 5), "channels_last", "half"),
    ],
)
def test_sound(shape, logits_layout, x_layout):
    assert_sound(op, *inputs(shape, torch.float32, logits_layout, x_layout))


@interpreter_only
@pytest.mark.kill
def test_one_launch_each_way():
    logits, x = inputs((8, 4, 16, 16))
    nll, traffic = counted(lambda: op(logits, x))  # PyTorch's too
    assert traffic.launches == 1
    _, traffic = counted(lambda: torch.autograd.grad(nll, logits, nll.detach()))
    assert traffic.launches == 1


def test_saves_its_arguments_alone():
    given = inputs((4, 3, 5))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        op(*given)
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in given}


def test_registered():
    assert_registered(_reconstruction_nll.registered, (*inputs((5, 6)), "bernoulli", 1.0))
    logits, x = inputs((3, 4, 3, 5), torch.bfloat16, "channels_last", data=torch.uint8)
    assert_registered(_reconstruction_nll.registered, (logits, x, "gaussian", 0.5))
    dnll = torch.ones(3, device=DEVICE)
    assert_registered(_reconstruction_nll_backward.registered, (dnll, logits.detach(), x, "gaussian", 0.5))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_differentiates(likelihood):
    for layout in ("contiguous", "channels_last"):
        assert_differentiates(partial(op, likelihood=likelihood), *inputs((3, 4, 2, 3), torch.float32, layout))


def test_compiles_exports_and_checkpoints():
    given = inputs((6, 4, 3, 5), torch.float32, "channels_last")
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_a_vae_trains_as_by_the_references(likelihood):
    vae, x = VAE(64, 5, likelihood=likelihood).to(DEVICE), inputs((9, 1, 8, 8), data=torch.uint8)[1]
    key = noise_key(3, samples=9, device=DEVICE)
    results = []
    for path in (disabled, torch.enable_grad):
        with path():
            loss = VAEObjective(vae)(x, key=key)
            results.append((loss, *torch.autograd.grad(loss.mean(), list(vae.parameters()))))
    torch.testing.assert_close(*results)
