"""The kernels of denoising_loss against its reference, by the laboratory's checks."""

import dataclasses
import json
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from torch import nn

from fastgen import Diffusion, DiffusionObjective
from fastgen.functional import denoising_loss, noise_key, philox_normal
from fastgen_kernels import denoising_loss_triton as kernels
from fastgen_kernels.denoising_loss import _denoising_loss, _denoising_loss_backward
from fastgen_kernels.diffusion_loss import KINDS, diffusion_loss_reference
from fastgen_kernels.dispatch import disabled
from fastgen_kernels.layout import compute_dtype, per_sample
from fastgen_kernels.q_sample import TARGETS, as_signal, make_target
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
from proof.traffic import counted

pytestmark = pytest.mark.kernels

FORMS = [
    ((1,), "contiguous"),
    ((3,), "contiguous"),  # one element a sample
    ((70, 16), "contiguous"),  # many small samples to a program
    ((9, 50), "contiguous"),  # E not a multiple of 4
    ((3, 4100), "contiguous"),  # two rounds of the loop, the second of one block
    ((3, 8, 7, 5), "contiguous"),
    ((3, 8, 7, 5), "channels_last"),  # taken by quarters of the channels
    ((3, 8, 7, 5), "permuted"),
    ((2, 3, 5, 7), "channels_last"),  # C not a multiple of 4
    ((2, 4, 2, 3, 5), "channels_last"),
    ((0, 3, 4), "contiguous"),
    ((3, 0), "contiguous"),
]


def op(pred, x0, alpha, sigma, key, weight=None, target="v", kind="mse"):
    return denoising_loss(pred, x0, alpha, sigma, key, weight, target=target, kind=kind)


def reference(pred, x0, alpha, sigma, key, weight=None, target="v", kind="mse"):
    """The noise is the kernels', which tests/kernels/test_philox_triton.py compares with the reference's."""
    compute = compute_dtype(pred.dtype, x0.dtype)
    noise, signal = drawn(x0.shape, tuple(map(tuple, key.tolist()))).to(compute), as_signal(x0, compute)
    alpha, sigma = (per_sample(x.to(compute), x0) for x in (alpha, sigma))
    return diffusion_loss_reference(pred, make_target(target, signal, noise, alpha, sigma), weight, kind)


@cache
def drawn(shape, key):
    return philox_normal(shape, torch.tensor(key, dtype=torch.int64, device=DEVICE).view(-1, 4))


def clean(shape, dtype, layout="contiguous"):
    """x0, in uint8 from 0 to 255."""
    if dtype != torch.uint8:
        return random(shape, dtype, layout, 1)
    return LAYOUTS[layout](random(shape, seed=1).mul(80).add(128).clamp(0, 255)).to(torch.uint8)


def inputs(shape, dtype=torch.float32, pred_layout="contiguous", x0_layout="contiguous", x0_dtype=None, *, learned=False):
    """learned: whether the weight requires a gradient too."""
    pred, x0 = LAYOUTS[pred_layout](2 * random(shape, dtype)), clean(shape, x0_dtype or dtype, x0_layout)
    alpha, sigma, weight = (random(shape[:1], seed=seed) for seed in (2, 3, 4))
    key = noise_key(2**40 + 3, 4, 5, shape[0], DEVICE)
    return pred.requires_grad_(), x0, alpha, sigma, key, weight.requires_grad_(learned)


@pytest.mark.kill
@pytest.mark.parametrize(("shape", "layout"), FORMS)
def test_accurate(shape, layout):
    assert_as_accurate(op, reference, *inputs(shape, torch.float32, layout, layout))


@pytest.mark.kill
@pytest.mark.parametrize(("target", "kind"), list(zip(TARGETS, KINDS, strict=True)))
def test_targets_and_kinds(target, kind):
    assert_as_accurate(op, reference, *inputs((9, 50), x0_dtype=torch.uint8, learned=True), target, kind)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("pred_layout", "x0_layout", "target"),
    [
        ("channels_last", "contiguous", "flow"),
        ("contiguous", "channels_last", "flow"),
        ("contiguous", "permuted", "eps"),
        ("half", "channels_last", "x0"),
        ("channels_last", "half", "v"),
    ],
)
def test_layouts_of_pred_and_x0_may_differ(pred_layout, x0_layout, target):
    assert_as_accurate(op, reference, *inputs((2, 4, 3, 5), torch.float32, pred_layout, x0_layout), target)


@pytest.mark.parametrize(("shape", "gradients"), [((70, 16), "sliced"), ((3, 8, 7, 5), "expanded")])
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_dtype_and_any_gradient(dtype, shape, gradients):
    assert_as_accurate(op, reference, *inputs(shape, dtype), gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("dtype", "x0_dtype"),
    [
        (torch.bfloat16, torch.uint8),
        (torch.bfloat16, torch.float64),
        (torch.float64, torch.uint8),
        (torch.float64, torch.bfloat16),
    ],
)
def test_dtypes_of_pred_and_x0_may_differ(dtype, x0_dtype):
    """In fp64 to fp64's own digits, which the tolerances of accuracy do not ask for."""
    pred, x0, alpha, sigma, key, weight = inputs((9, 50), dtype, x0_dtype=x0_dtype)
    given = pred, x0, alpha.double(), sigma.bfloat16(), key, weight.half()
    assert_as_accurate(op, reference, *given)
    if dtype == torch.float64:
        torch.testing.assert_close(op(*given), reference(*given), rtol=1e-13, atol=0)


@pytest.mark.kill
def test_wider_coefficients_do_not_widen_the_arithmetic():
    """alpha and sigma of fp32's values, in fp64: the same results, bit for bit."""
    pred, x0, alpha, sigma, key, weight = inputs((9, 50))
    ours = results(op, pred, x0, alpha.double(), sigma.double(), key, weight)
    expected = results(op, pred, x0, alpha, sigma, key, weight)
    assert all(ours[name].equal(expected[name]) for name in expected)


@pytest.mark.kill
def test_the_difference_is_taken_as_pred_is():
    """A target of more digits is rounded first."""
    pred, x0, *rest = inputs((9, 50), x0_dtype=torch.float64)
    ours, expected = (results(op, pred, target, *rest, "x0") for target in (x0 / 3, (x0 / 3).float()))
    assert all(ours[name].equal(expected[name]) for name in expected)


@pytest.mark.slow
@examples(15)
@given(
    shapes(max_elements=2**10),
    layouts(),
    layouts(),
    dtypes(),
    dtypes(*FLOATS, torch.uint8),
    gradient_layouts(),
    st.sampled_from(TARGETS),
    st.sampled_from(KINDS),
    st.booleans(),
)
def test_any_tensors(shape, pred_layout, x0_layout, dtype, x0_dtype, gradients, target, kind, weighted):
    *given, weight = inputs(shape, dtype, pred_layout, x0_layout, x0_dtype)
    assert_as_accurate(op, reference, *given, weight if weighted else None, target, kind, gradients=gradients)


@pytest.mark.kill
def test_coefficients_of_any_stride():
    pred, x0, *_ = inputs((5, 7))
    coefficients = random((5, 3), seed=1)
    for alpha, sigma, weight in (coefficients.unbind(1), coefficients[:1].expand(5, 3).unbind(1)):
        key = noise_key(3, samples=torch.arange(5, device=DEVICE)).t().contiguous().t()
        assert_as_accurate(op, reference, pred, x0, alpha, sigma, key, weight, gradients="sliced")


@pytest.mark.kill
@pytest.mark.parametrize("parts", [2, 3])
def test_large_samples_are_summed_in_parts(monkeypatch, parts):
    monkeypatch.setattr(kernels, "splits", lambda n, tiles: parts)
    assert_as_accurate(op, reference, *inputs((2, 3, 4100)))


def test_what_the_target_is_made_of_has_gradients_too():
    for i in (1, 2, 3):  # x0, alpha, sigma: by the reference
        given = inputs((3, 5))
        given[i].requires_grad_()
        assert_as_accurate(op, reference, *given)


@pytest.mark.kill
def test_tiles():
    _, constants, found = kernels.plan(*inputs((1, 4100), x0_dtype=torch.uint8), "v", "mse")
    assert (constants["BLOCKS"], found) == (1024, 2)


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32(monkeypatch):
    """The last program of a launch over a sample of which three quarters are more than 2^31 elements, which are not all there."""
    e, last = 3 * 2**30, 2**10
    pred, x0, one, key = lazy(e, torch.bfloat16)[None], lazy(e, torch.uint8)[None], torch.ones(1), noise_key(1)
    pred[:, -last:], x0[:, -last:] = random((1, last), torch.bfloat16), torch.arange(last)
    monkeypatch.setattr(kernels, "empty_like", lambda x: lazy(x.numel(), x.dtype).view(x.shape))
    with last_program():
        dpred = kernels.backward(e * one, pred, x0, one, one, key, None, "x0", "mse")
    end = (x[:, -last:].clone() for x in (pred, x0))
    assert dpred[:, -last:].equal(kernels.backward(last * one, *end, one, one, key, None, "x0", "mse"))


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "pred_layout", "x0_layout", "target"),
    [
        ((65, 16), "contiguous", "contiguous", "v"),
        ((5, 7), "permuted", "sliced", "flow"),
        ((2, 4100), "row_gap", "contiguous", "eps"),
        ((2, 8, 3, 5), "channels_last", "half", "v"),
    ],
)
def test_sound(shape, pred_layout, x0_layout, target):
    assert_sound(op, *inputs(shape, torch.float32, pred_layout, x0_layout), target)


@interpreter_only
@pytest.mark.kill
def test_one_launch_each_way():
    """And none of PyTorch's own."""
    pred, *rest = inputs((8, 4, 16, 16))
    loss, forward = counted(lambda: op(pred, *rest))
    _, backward = counted(lambda: torch.autograd.grad(loss, pred, loss.detach()))
    assert forward.launches == backward.launches == 1


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("target", TARGETS)
def test_x0_is_read_where_the_target_needs_it(target):
    """pred once and x0 once at most, and dpred written: but for a few numbers a sample, nothing else."""
    pred, x0, *rest = inputs((4, 4096), torch.bfloat16, x0_dtype=torch.uint8)
    with recorded() as log:
        loss = op(pred, x0, *rest, target)
        of_x0 = 0 if target == "eps" else x0.nbytes
        assert 0 <= _bytes(log) - pred.nbytes - of_x0 < 4 * 64
        forward = _bytes(log)
        torch.autograd.grad(loss, pred, loss.detach())
        assert 0 <= _bytes(log) - forward - 2 * pred.nbytes - of_x0 < 4 * 64


def _bytes(log):
    return sum(access.addresses.size * access.width for access in log)


def test_saves_its_arguments_alone():
    given = inputs((4, 3, 5))
    assert {x.data_ptr() for x in saved_by(op, *given)} == {x.data_ptr() for x in given}


def saved_by(f, *given):
    """The tensors that are kept for backward."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        f(*given)
    return saved


@pytest.mark.parametrize("prediction", TARGETS)
def test_the_objective_keeps_neither_noise_nor_target(prediction):
    """For backward it keeps what exists anyhow, the prediction and x0, and a few numbers a sample."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Parameter(random((4, 3, 16, 16)))

        def forward(self, x, t, label=None, context=None):
            return self.out

    net, x0, key = Net().to(DEVICE), clean((4, 3, 16, 16), torch.uint8), noise_key(1, samples=4, device=DEVICE)
    saved = saved_by(DiffusionObjective(net, Diffusion("cosine", prediction, "min_snr")), x0, None, None)
    saved = [x for x in saved if x.untyped_storage().data_ptr() not in {y.untyped_storage().data_ptr() for y in (net.out, x0)}]
    assert sum(x.nbytes for x in saved) <= key.nbytes + 3 * 4 * len(x0)


def test_registered():
    *given, weight = inputs((5, 6))
    assert_registered(_denoising_loss.registered, (*given, weight, "v", "mse"))
    pred, *given, weight = inputs((3, 4, 3, 5), torch.bfloat16, "channels_last", x0_dtype=torch.uint8)
    assert_registered(_denoising_loss.registered, (pred, *given, None, "eps", "huber"))
    dloss = torch.ones(3, device=DEVICE)
    assert_registered(_denoising_loss_backward.registered, (dloss, pred.detach(), *given, None, "eps", "huber"))


def test_differentiates():
    assert_differentiates(op, *inputs((3, 5), learned=True))
    assert_differentiates(op, *inputs((3, 4, 2, 3), torch.float32, "channels_last"), "flow", "charbonnier")


def test_compiles_exports_and_checkpoints():
    given = inputs((6, 4, 3, 5), torch.float32, "channels_last", learned=True)
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))


@pytest.mark.slow
def test_training_follows_the_references_loss(tmp_path, monkeypatch):
    """`fastgen train mnist --steps 3 --batch-size 4 --log-every 1 --precision fp32`, but for the held-out images at the end,
    which are thousands."""
    from fastgen.config.presets import PRESETS
    from fastgen.training.train import train

    monkeypatch.setattr("fastgen.training.train.Preview", lambda *settings: lambda step: {})
    config = dataclasses.replace(PRESETS["mnist"], steps=3, batch_size=4, log_every=1, precision="fp32", threads=1)
    losses = []
    for way in (nullcontext, disabled):
        with way():
            train(config, tmp_path / way.__name__)
        metrics = [json.loads(line) for line in (tmp_path / way.__name__ / "metrics.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in metrics if "loss" in row])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
