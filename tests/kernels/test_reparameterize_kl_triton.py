"""The kernels of reparameterize_kl against its reference, by the laboratory's checks."""

import json
from functools import partial

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, reparameterize_kl
from fastgen_kernels import reparameterize_kl_triton as kernels
from fastgen_kernels.reparameterize_kl import _reparameterize_kl, _reparameterize_kl_backward, reparameterize_kl_reference
from proof.interpreter import last_program, recorded
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
from proof.laboratory.far import lazy
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import dtypes, examples, given, gradient_layouts, layouts, shapes, st
from proof.laboratory.tensors import FLOATS, GRADIENTS, random
from tests.helpers.command import run

pytestmark = pytest.mark.kernels

CASES = [
    ((3,), "contiguous"),  # one element a sample
    ((130, 16), "contiguous"),  # many small samples to a program
    ((9, 50), "contiguous"),  # E not a multiple of 4
    ((9, 50), "permuted"),
    ((3, 4100), "contiguous"),  # two rounds of the loop, the second of one block
    ((3, 8, 7, 5), "contiguous"),
    ((3, 8, 7, 5), "channels_last"),  # taken by quarters of the channels
    ((2, 3, 5, 7), "channels_last"),  # C not a multiple of 4
    ((2, 3, 5, 7), "permuted"),
    ((2, 4, 2, 3, 5), "channels_last"),
    ((0, 3, 4), "contiguous"),
    ((3, 0), "contiguous"),
]
KILLING = [CASES[i] for i in (1, 2, 4, 6, 7, 10, 11)]
CLAMPS = [(-1.5, 1.0), (1.0, 2.0)]  # both ends at work; 0 outside


def op(mu, logvar, eps, clamp=(-30.0, 20.0), reduce="sample"):
    """eps is the noise, or the key that it is drawn from."""
    given = {"key": eps} if eps.dtype == torch.int64 else {"eps": eps}
    return reparameterize_kl(mu, logvar, clamp=clamp, reduce=reduce, **given)


def reference(mu, logvar, eps, clamp=(-30.0, 20.0), reduce="sample"):
    """Noise that is drawn is the kernels', which tests/kernels/test_philox_triton.py compares with the reference's."""
    eps = philox_normal(mu.shape, eps) if eps.dtype == torch.int64 else eps
    return reparameterize_kl_reference(mu, logvar, eps, clamp, reduce)


def inputs(shape, dtype=torch.float32, layout="contiguous", *, draw=True):
    """mu and logvar, the halves of one tensor where there are channels, as an encoder puts them out; the key or eps."""
    if len(shape) == 1:
        mu, logvar = (random(shape, dtype, layout, seed) for seed in (0, 1))
    else:
        mu, logvar = random((shape[0], 2 * shape[1], *shape[2:]), dtype, layout).chunk(2, 1)
    noise = noise_key(2**40 + 3, 4, 5, shape[0], DEVICE) if draw else random(shape, dtype, layout, seed=2)
    return mu.detach().requires_grad_(), logvar.detach().requires_grad_(), noise


@pytest.mark.parametrize(
    ("shape", "layout"), [pytest.param(*case, marks=[pytest.mark.kill] if case in KILLING else []) for case in CASES]
)
@pytest.mark.parametrize(("draw", "reduce"), [(True, "sample"), (False, "none")])
def test_accurate(shape, layout, draw, reduce):
    assert_as_accurate(op, reference, *inputs(shape, layout=layout, draw=draw), CLAMPS[draw], reduce)


@pytest.mark.kill
@pytest.mark.parametrize(("draw", "reduce"), [(False, "sample"), (True, "none")])
def test_the_other_options(draw, reduce):
    assert_as_accurate(op, reference, *inputs((9, 50), draw=draw), CLAMPS[draw], reduce)


@pytest.mark.kill
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("draw", "reduce"), [(True, "sample"), (False, "none")])
def test_every_dtype(dtype, draw, reduce):
    assert_as_accurate(op, reference, *inputs((3, 8, 7, 5), dtype, draw=draw), CLAMPS[0], reduce)


@pytest.mark.parametrize("gradients", GRADIENTS)
def test_any_gradient(gradients):
    for reduce in ("sample", "none"):
        assert_as_accurate(op, reference, *inputs((2, 4, 3, 5)), CLAMPS[0], reduce, gradients=gradients)


@pytest.mark.kill
@pytest.mark.parametrize(("only", "reduce"), [(0, "sample"), (1, "sample"), (0, "none"), (1, "none")])
def test_one_gradient_alone(only, reduce):
    ours, peer = (lambda *given, f=f: f(*given)[only] for f in (op, reference))
    assert_as_accurate(ours, peer, *inputs((3, 50)), CLAMPS[0], reduce)


def test_dtypes_of_mu_and_logvar_may_differ():
    mu, logvar, eps = inputs((9, 50), draw=False)
    assert_as_accurate(op, reference, mu.detach().bfloat16().requires_grad_(), logvar, eps.half())


@pytest.mark.slow
@examples(40)
@given(
    shapes(max_elements=2**10),
    layouts(),
    layouts(),
    dtypes(),
    gradient_layouts(),
    st.booleans(),
    st.sampled_from(("sample", "none")),
)
def test_any_tensors(shape, mu_layout, logvar_layout, dtype, gradients, draw, reduce):
    mu, logvar = random(shape, dtype, mu_layout).requires_grad_(), random(shape, dtype, logvar_layout, 1).requires_grad_()
    noise = noise_key(1, samples=shape[0], device=DEVICE) if draw else random(shape, dtype, logvar_layout, 2)
    assert_as_accurate(op, reference, mu, logvar, noise, CLAMPS[0], reduce, gradients=gradients)


@pytest.mark.kill
def test_near_zero_and_at_the_ends():
    """Where exp(logvar) - 1 - logvar cancels, where it grows, on the clamp's ends, at NaN and infinities."""
    special = [
        0.0,
        1e-8,
        -1e-4,
        1e-3,
        -0.03,
        0.1,
        0.3,
        0.4999,
        -0.4999,
        0.5001,
        -0.5001,
        5.0,
        -30.0,
        20.0,
        -31.0,
        21.0,
        -1e30,
        torch.inf,
    ]
    logvar = torch.tensor([[*special, -torch.inf, torch.nan]], device=DEVICE).repeat(8, 1).requires_grad_()
    mu = torch.zeros_like(logvar).requires_grad_()
    key = noise_key(0, samples=8, device=DEVICE)
    assert_as_accurate(op, reference, mu, logvar, key, (-30.0, 20.0), "none")
    _, kl = op(mu, logvar, key, (-30.0, 20.0), "none")
    exact = torch.tensor(special[:9], dtype=torch.float64).expm1() - torch.tensor(special[:9], dtype=torch.float64)
    exact[:4] = torch.tensor([x**2 / 2 + x**3 / 6 for x in special[:4]])  # where fp64 cancels too
    torch.testing.assert_close(2 * kl[0, :9].cpu().double(), exact, rtol=1e-6, atol=0)


@pytest.mark.kill
@pytest.mark.parametrize(("parts", "reduce"), [(2, "sample"), (3, "sample"), (2, "none")])
def test_large_samples_are_taken_in_parts(monkeypatch, parts, reduce):
    monkeypatch.setattr(kernels, "splits", lambda n, tiles: parts)
    monkeypatch.setattr("fastgen_kernels.blocks_triton.tile", lambda blocks: (1, 16))
    assert_as_accurate(op, reference, *inputs((2, 3, 101)), CLAMPS[0], reduce)  # five tiles, the last of 12 blocks


@interpreter_only
@pytest.mark.kill
def test_elements_beyond_int32(monkeypatch):
    """The last programs of launches over a sample of more than 2^31 elements, which are not all there."""
    e, last = 2**31 + 2**13, 2**10
    mu, logvar, eps = (lazy(e, torch.bfloat16)[None] for _ in range(3))
    for x, seed in ((mu, 0), (logvar, 1), (eps, 2)):
        x[:, -last:] = random((1, last), torch.bfloat16, seed=seed)
    monkeypatch.setattr(kernels, "splits", lambda n, tiles: tiles)
    with last_program():
        z, _ = kernels.forward(mu, logvar, eps, None, *CLAMPS[0], False)
        dmu, dlogvar = kernels.backward(z, None, mu, logvar, eps, None, *CLAMPS[0], False)
    end = [x[:, -last:].clone() for x in (mu, logvar, eps)]
    expected, _ = kernels.forward(*end, None, *CLAMPS[0], False)
    gradients = kernels.backward(expected, None, *end, None, *CLAMPS[0], False)
    for ours, truth in zip((z, dmu, dlogvar), (expected, *gradients), strict=True):
        assert ours[:, -last:].equal(truth)


@pytest.mark.kill
def test_a_key_of_any_strides():
    mu, logvar, key = inputs((5, 7))
    for reduce in ("sample", "none"):
        ours, expected = (op(mu, logvar, k, reduce=reduce) for k in (key.t().contiguous().t(), key))
        assert all(x.equal(y) for x, y in zip(ours, expected, strict=True))


@pytest.mark.kill
def test_blocks_of_a_program():
    x, strided = torch.empty(1, 2**13), torch.empty(1, 3, 2**13)[..., ::2]
    assert kernels.plan(x, x, None, None, x, *CLAMPS[0], False)[1]["BLOCKS"] == 1024
    assert kernels.plan(strided, strided, None, None, strided, *CLAMPS[0], False)[1]["BLOCKS"] == 512


@interpreter_only
@pytest.mark.parametrize(
    ("shape", "layout", "draw", "reduce"),
    [
        ((65, 16), "contiguous", True, "sample"),
        pytest.param((5, 7), "contiguous", True, "sample", marks=pytest.mark.kill),
        ((5, 7), "contiguous", False, "none"),
        ((2, 4100), "row_gap", True, "sample"),
        ((2, 8, 3, 5), "channels_last", True, "none"),
        ((2, 3, 3, 5), "permuted", False, "sample"),
    ],
)
def test_sound(shape, layout, draw, reduce):
    assert_sound(op, *inputs(shape, layout=layout, draw=draw), CLAMPS[0], reduce)


@interpreter_only
def test_one_launch_each_way():
    mu, logvar, key = inputs((8, 4, 16, 16))
    with recorded() as log:
        z, kl = op(mu, logvar, key)
        assert log.launches == ["forward_kernel"]
        torch.autograd.grad([z, kl], [mu, logvar], [z.detach(), kl.detach()])
        assert log.launches == ["forward_kernel", "backward_kernel"]


def test_noise_is_that_of_the_key_in_both_directions():
    """dlogvar / dz is eps · exp(logvar/2) / 2: backward draws what forward drew, in either memory format."""
    for layout in ("contiguous", "channels_last"):
        mu, _, key = inputs((4, 8, 3, 5), layout=layout)
        logvar = torch.zeros_like(mu).requires_grad_()
        z, _ = op(mu, logvar, key)
        (grad,) = torch.autograd.grad(z, logvar, torch.ones_like(z))
        eps = philox_normal(mu.shape, key)
        torch.testing.assert_close(z - mu, eps)
        torch.testing.assert_close(2 * grad, eps)


def test_registered():
    for shape, layout, draw in [((5, 6), "contiguous", False), ((3, 4, 3, 5), "channels_last", True)]:
        mu, logvar, noise = inputs(shape, layout=layout, draw=draw)
        given = *((None, noise) if draw else (noise, None)), -3.0, 2.0, not draw
        assert_registered(_reparameterize_kl.registered, (mu, logvar, *given))
        upstream = [y.detach() for y in _reparameterize_kl(mu, logvar, *given)]
        assert_registered(_reparameterize_kl_backward.registered, (*upstream, mu.detach(), logvar.detach(), *given))


@pytest.mark.parametrize(("layout", "reduce"), [("contiguous", "none"), ("channels_last", "sample")])
def test_differentiates(layout, reduce):
    assert_differentiates(partial(op, reduce=reduce), *inputs((3, 4, 2, 3), layout=layout))


def test_compiles_exports_and_checkpoints():
    given = inputs((6, 4, 3, 5), layout="channels_last")
    assert_compiles(op, *given)
    assert_exports(op, *given)
    assert_checkpoints(op, *given)
    assert_ignores_autocast(op, *given)


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *inputs((6, 4, 3, 5)), backends=("inductor",))


@interpreter_only
@pytest.mark.slow
def test_training_follows_the_references_loss(tmp_path):
    losses = []
    for environment in ({"TRITON_INTERPRET": "1"}, {"FASTGEN_KERNELS": "off"}):
        out = tmp_path / str(len(losses))
        command = f"train mnist-vae --steps 3 --log-every 1 --batch-size 32 --precision fp32 --out {out}"
        done = run(*command.split(), cwd=tmp_path, **environment)
        assert done.returncode == 0, done.stderr
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([row.get("loss", row.get("held_out_loss")) for row in metrics])
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
