"""The kernels of attention against scaled_dot_product_attention, by the laboratory's checks."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import triton

from fastgen.functional import attention, attention_qkv
from fastgen.models.layers import GroupNorm, Residual, SelfAttention
from fastgen_kernels.attention import (
    _attention,
    _attention_backward,
    _attention_qkv,
    _attention_qkv_backward,
    attention_qkv_reference,
    backward_triton,
    choice,
    forward_triton,
)
from fastgen_kernels.attention.heads_triton import places, wide
from fastgen_kernels.attention.plan import Plan
from proof.counters import of_operations
from proof.interpreter import recorded
from proof.laboratory import accuracy
from proof.laboratory.accuracy import results
from proof.laboratory.allocations import poisoned
from proof.laboratory.child import died
from proof.laboratory.compiling import (
    assert_checkpoints,
    assert_compiles,
    assert_differentiates,
    assert_exports,
    assert_registered,
)
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.soundness import assert_sound
from proof.laboratory.strategies import examples, given, gradient_layouts, st
from proof.laboratory.tensors import random, upstream
from tests.helpers.all_pairs import all_pairs
from tests.helpers.op_info import op_info

pytestmark = pytest.mark.kernels

# Weights are rounded to the dtype before they are multiplied with values, ours and PyTorch's; what they add up to may be small.
assert_as_accurate = partial(accuracy.assert_as_accurate, cancels=True)
ALGORITHMS = ("short", "tiled")
KERNELS = Path(__file__).parents[2] / "kernels"


def op(q, k, v, mask=None, scale=None):
    return attention(q, k, v, scale=scale, key_padding_mask=mask)


def peer(q, k, v, mask=None, scale=None):
    """PyTorch's own, which gives NaN to samples of which all keys are left out."""
    nothing = None if mask is None else mask.all(1)[:, None, None, None]
    allowed = None if mask is None else ~mask[:, None, None, :] | nothing
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
    return out if mask is None else out.masked_fill(nothing, 0)


def heads(shape, dtype=torch.float32, layout="linear", seed=1):
    """q, k and v of (N, H, S, K, D). linear: as a linear layer gives them; channels: their positions innermost, as a convolution
    does."""
    n, h, s, keys, d = shape
    made = []
    for i, t in enumerate((s, keys, keys)):
        if layout == "channels":
            x = random((n, h, d, t), dtype, seed=seed + i).detach().transpose(2, 3)
        elif layout == "linear":
            x = random((n, t, h, d), dtype, seed=seed + i).detach().transpose(1, 2)
        else:
            x = random((n, h, t, d), dtype, layout, seed=seed + i).detach()
        made.append(x.requires_grad_())
    return made


def padding(n, keys):
    """Some keys of each sample, all of the second one."""
    mask = torch.rand(n, keys, generator=torch.Generator().manual_seed(2)) < 0.4
    mask[1:2] = True
    return mask.to(DEVICE)


def force(monkeypatch, algorithm):
    """That algorithm, with tiles so small that small tensors take several."""

    def plan(q, keys):
        return Plan("short", 16, max(16, triton.next_power_of_2(keys)), 4) if algorithm == "short" else Plan("tiled", 16, 16, 4)

    monkeypatch.setattr(forward_triton, "forward_plan", plan)
    monkeypatch.setattr(backward_triton, "backward_plan", plan)
    monkeypatch.setattr("fastgen_kernels.attention.one_tile", lambda *_: algorithm == "short")


@pytest.fixture(params=ALGORITHMS)
def algorithm(request, monkeypatch):
    force(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize(
    ("shape", "layout", "masked"),
    [
        pytest.param((2, 2, 19, 35, 16), "linear", True, marks=pytest.mark.kill),
        pytest.param((3, 1, 33, 18, 40), "channels", False, marks=pytest.mark.kill),
        ((1, 2, 7, 50, 80), "linear", False),
        ((2, 1, 16, 16, 96), "contiguous", True),
        ((6, 4, 1, 9, 24), "linear", False),
        pytest.param((2, 3, 5, 9, 9), "linear", False, marks=pytest.mark.kill),
        ((3, 4, 20, 30, 5), "row_gap", False),
    ],
)
def test_accurate(algorithm, shape, layout, masked):
    mask = padding(shape[0], shape[3]) if masked else None
    assert_as_accurate(op, peer, *heads(shape, layout=layout), mask)


@pytest.mark.kill
@pytest.mark.parametrize("scale", [0.3, -2.0, 0.0])
def test_scale(algorithm, scale):
    """More exact than fp32, in which a kernel is given numbers."""
    given = *heads((1, 2, 18, 17, 16), torch.float64), None, scale
    torch.testing.assert_close(results(op, *given), results(peer, *given), rtol=1e-11, atol=1e-11)


@pytest.mark.kill
@pytest.mark.parametrize("shape", [(2, 2, 4, 1, 16), (1, 1, 1, 1, 1)])
def test_one_key(algorithm, shape):
    """Its value, whatever the query."""
    q, k, v = heads(shape)
    named = results(op, q, k, v)
    assert named["output 0"].equal(v.expand_as(q))
    torch.testing.assert_close(named["gradient of input 2"], upstream(q).sum(2, keepdim=True))
    for x in (named["gradient of input 0"], named["gradient of input 1"]):
        assert x.abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("d", [16, pytest.param(40, marks=pytest.mark.kill)])
def test_every_dtype(algorithm, dtype, d):
    assert_as_accurate(op, peer, *heads((2, 2, 20, 34, d), dtype))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 1, 70, 64, 64), torch.float32),
        ((1, 1, 40, 300, 128), torch.float32),
        pytest.param((1, 1, 20, 24, 40), torch.float16, marks=pytest.mark.kill),
        ((1, 2, 65, 200, 32), torch.float16),
        ((1, 1, 20, 200, 40), torch.float16),  # backward in padded columns
        ((1, 1, 40, 100, 80), torch.bfloat16),
        ((1, 1, 70, 200, 128), torch.bfloat16),
        ((1, 1, 130, 300, 64), torch.float16),
        ((1, 1, 20, 24, 256), torch.float16),
    ],
)
def test_the_tiles_that_are_launched(shape, dtype):
    assert_as_accurate(op, peer, *heads(shape, dtype))


@interpreter_only
@pytest.mark.parametrize("shape", [(1, 1, 20, 49, 40), (1, 1, 70, 128, 64), (1, 1, 20, 70, 72), (1, 1, 20, 150, 16)])
def test_the_tiles_of_other_architectures(monkeypatch, shape):
    """Those of a class that is left to SDPA too: a benchmark launches them."""
    monkeypatch.setattr(choice, "capability", lambda device: (8, 0))
    assert_as_accurate(op, peer, *heads(shape, torch.bfloat16))


PRECISION = """
import torch
from fastgen_kernels.attention.plan import constants, forward_plan

def precision(dtype=torch.float32):
    q = torch.empty(1, 1, 1, 16, dtype=dtype)
    return constants(q, forward_plan(q, 16))["PRECISION"]

print(precision())
torch.backends.cuda.matmul.allow_tf32 = True
print(precision(), precision(torch.float16), precision(torch.float64))
torch.set_float32_matmul_precision("highest")
print(precision())
torch.backends.cuda.matmul.fp32_precision = "tf32"
print(precision())
torch.backends.cuda.matmul.fp32_precision = "ieee"
print(precision())
"""


def test_tf32_only_where_pytorch_may_use_it():
    """In a process of its own: the switch cannot be put back. Its older and its newer name are heeded."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run([sys.executable, "-c", PRECISION], capture_output=True, text=True, cwd=KERNELS, env=environment)
    assert run.stdout.split() == ["ieee", "tf32", "ieee", "ieee", "ieee", "tf32", "ieee"], run.stderr


@pytest.mark.kill
@pytest.mark.parametrize("sign", [1, -1])
def test_large_scores(algorithm, sign):
    """Whose exponential overflows in fp64, or is 0."""
    q, k, v = heads((1, 2, 20, 40, 16), torch.float64)
    with torch.no_grad():
        q[..., 0], k[..., 0] = 4 * sign, 1000  # adds 1,000 to the scores, or takes it off
    assert_as_accurate(op, peer, q, k, v)


@pytest.mark.kill
@pytest.mark.parametrize("mask", [None, "all"])
def test_rows_without_keys(algorithm, mask):
    """Zeros, and zero gradients; the logarithm for backward is infinite."""
    q, k, v = heads((2, 1, 18, 20 if mask else 0, 16))
    given = torch.ones(2, 20, dtype=torch.bool, device=DEVICE) if mask else None
    with poisoned():
        named = results(op, q, k, v, given)
    assert not any(x.any() for x in named.values())
    assert _attention(q, k, v, given, 0.25)[1].isposinf().all()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5, 16), (2, 2, 0, 3, 16)])
def test_empty(shape):
    for mask in (None, torch.zeros(shape[0], shape[3], dtype=torch.bool, device=DEVICE)):
        named = results(op, *heads(shape), mask)
        assert named["output 0"].shape == (*shape[:3], shape[4])
        assert not any(x.any() for x in named.values())


@pytest.mark.kill
def test_nan_stays_where_it_is(algorithm):
    """In a query in its own row, in a key in its head."""
    q, k, v = heads((2, 2, 18, 20, 16))
    with torch.no_grad():
        q[0, 0, 17, 3] = torch.nan
        k[1, 1, 5, 2] = torch.nan
    out = op(q, k, v)
    spoiled = torch.zeros(2, 2, 18, dtype=torch.bool, device=DEVICE)
    spoiled[0, 0, 17] = spoiled[1, 1] = True
    assert out.isnan().equal(spoiled[..., None].expand_as(out))


@pytest.mark.kill
def test_a_masked_key_may_be_anything(algorithm):
    q, k, v = heads((2, 1, 18, 20, 16))
    mask = padding(2, 20)
    expected = results(op, q, k, v, mask)
    with torch.no_grad():
        k[mask[:, None, :, None].expand_as(k)] = torch.inf
    spoiled = results(op, q, k, v, mask)
    torch.testing.assert_close(spoiled["output 0"], expected["output 0"], rtol=0, atol=0)


@pytest.mark.kill
def test_gradients_of_what_needs_them(algorithm):
    given = heads((2, 1, 18, 20, 16))
    together = results(op, *given)
    for wanted in range(3):
        some = [x.detach().requires_grad_(i == wanted) for i, x in enumerate(given)]
        alone = results(op, *some)
        assert set(alone) == {"output 0", f"gradient of input {wanted}"}
        torch.testing.assert_close(alone, {name: together[name] for name in alone}, rtol=0, atol=0)


@pytest.mark.parametrize("gradients", ["expanded", "channels_last", "sliced"])
def test_any_gradient(algorithm, gradients):
    assert_as_accurate(op, peer, *heads((2, 2, 6, 20, 16)), gradients=gradients)


def test_expanded_inputs(algorithm):
    """All heads with the same keys, in one place of memory."""
    q, k, v = heads((2, 1, 18, 20, 16))
    shared = (lambda q, k, v, f=f: f(q.expand(2, 3, 18, 16), k.expand(2, 3, 20, 16), v.expand(2, 3, 20, 16)) for f in (op, peer))
    assert_as_accurate(*shared, q, k, v)


@pytest.mark.slow
@examples(20)
@given(
    st.integers(0, 2), st.integers(1, 2), st.integers(1, 40), st.integers(8, 40), st.sampled_from((3, 16, 24, 40)),
    st.sampled_from(("linear", "channels", "contiguous", "row_gap")), gradient_layouts(), st.sampled_from(ALGORITHMS),
    st.booleans(),
)  # fmt: skip
def test_any_tensors(n, h, s, keys, d, layout, gradients, algorithm, masked):
    """In fp64: where rows are few, the largest error in fp32 is luck. Of several keys: of one, gradients are 0."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        force(monkeypatch, algorithm)
        mask = padding(n, keys) if masked else None
        assert_as_accurate(op, peer, *heads((n, h, s, keys, d), torch.float64, layout), mask, gradients=gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_op_info(dtype):
    info = op_info("nn.functional.scaled_dot_product_attention")
    samples = [s for s in info.sample_inputs(DEVICE, dtype, requires_grad=True) if s.input.dim() == 4]
    plain = [s for s in samples if not s.kwargs.get("is_causal") and s.kwargs.get("attn_mask") is None]
    plain = [s for s in plain if not s.kwargs.get("dropout_p") and not s.kwargs.get("enable_gqa")]
    assert plain
    for s in plain:
        for call in (s, s.noncontiguous()):
            assert_as_accurate(op, peer, call.input, *call.args[:2])


@interpreter_only
@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((2, 2, 19, 18, 40), "linear"),
        pytest.param((2, 1, 17, 18, 40), "linear", marks=pytest.mark.kill),
        ((2, 2, 17, 20, 16), "channels"),
    ],
)
def test_sound(algorithm, shape, layout):
    assert_sound(op, *heads(shape, layout=layout), padding(shape[0], shape[3]))


def spread(x, dim, stride):
    strides = [stride if i == dim else other for i, other in enumerate(x.stride())]
    copy = lazy(1 + sum((size - 1) * stride for size, stride in zip(x.shape, strides, strict=True)), x.dtype)
    return copy.as_strided(x.shape, strides).copy_(x.detach()).requires_grad_(x.requires_grad)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(
    ("dim", "stride", "shape"),
    [
        (0, 2**30, (3, 1, 1, 9, 16)),
        (1, 2**31, (1, 2, 1, 9, 16)),
        (2, 2**27, (1, 1, 20, 20, 16)),  # what begins beyond 2^31, and with the tile of 32 keys what reaches there
        (3, 2**27, (1, 1, 1, 9, 40)),
    ],
)
def test_far_apart(algorithm, dim, stride, shape):
    """Samples, heads, positions, and columns. The mask's samples and positions too."""
    near, mask = heads(shape, torch.float16, "contiguous"), padding(shape[0], shape[3])

    def run():
        far = [spread(x, dim, stride) for x in near]
        masked = spread(mask, {0: 0, 2: 1}.get(dim), stride)
        torch.testing.assert_close(results(op, *far, masked), results(op, *near, mask), rtol=0, atol=0)

    report = died(run)
    assert report is None, report


@pytest.mark.kill
@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (2**29, 0, True),
        (2**29 - 1, 1, False),  # 2^31 - 1 elements from the first
        (1, 715_827_882, True),
        (1, 715_827_881, False),
        (4, 1, False),
    ],
)
def test_wide(row, column, expected):
    x = torch.empty_strided((2, 2, 9, 4), (1, 1, row, column), device="meta")
    assert wide(5, None, x) == expected


@pytest.mark.kill
@pytest.mark.parametrize("stride", [0, 1, 5, 9, 16, 18, 40, 72])
def test_stride_of_a_head(stride):
    """As two factors, of which the second is known to the compiler."""
    strides = places(x=torch.empty_strided((2, 2, 9, 4), (1, stride, 1, 1), device="meta"))["x_strides"]
    assert strides[1] * strides[4].value == stride
    assert strides[4].value == (8 if stride % 8 == 0 else 1)


def test_bitwise_the_same(algorithm):
    given = heads((2, 2, 40, 50, 16), torch.bfloat16)
    torch.testing.assert_close(results(op, *given), results(op, *given), rtol=0, atol=0)


@interpreter_only
@pytest.mark.parametrize(("algorithm", "backward"), [("short", ["keys_kernel"]), ("tiled", ["queries_kernel", "keys_kernel"])])
def test_launches(monkeypatch, algorithm, backward):
    force(monkeypatch, algorithm)
    with recorded() as log:
        y = op(*heads((1, 1, 18, 20, 16)))
        assert log.launches == [f"{algorithm}_kernel"]
        y.sum().backward()
        assert log.launches == [f"{algorithm}_kernel", *backward]


def test_what_is_saved_for_backward(algorithm):
    """q, k, v and a number a row; where keys take several tiles the output, which the next layer keeps anyhow."""
    q, k, v = heads((2, 2, 40, 50, 16), torch.bfloat16)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda saved: saved):
        out = op(q, k, v)
    expected = [q.nbytes, k.nbytes, v.nbytes, 4 * out[..., 0].numel()] + [out.nbytes] * (algorithm == "tiled")
    assert sorted(x.nbytes for x in saved) == sorted(expected)


def test_output_lies_as_q(algorithm):
    for layout in ("linear", "channels", "contiguous"):
        q, k, v = heads((2, 2, 18, 20, 16), layout=layout)
        assert op(q, k, v).stride() == q.stride()


def stack(shape, dtype=torch.float32, layout="contiguous"):
    return random(shape, dtype, layout, seed=5).requires_grad_()


@pytest.mark.kill
@pytest.mark.parametrize(
    ("algorithm", "spatial", "layout", "order"),
    all_pairs(
        ALGORITHMS, [(17,), (3, 6), (2, 3, 4)], ["contiguous", "channels_last", "permuted"], ["qkv_major", "head_major"]
    ),
    indirect=["algorithm"],
)
def test_qkv(algorithm, spatial, layout, order):
    op, peer = (partial(f, num_heads=2, order=order) for f in (attention_qkv, attention_qkv_reference))
    assert_as_accurate(op, peer, stack((2, 96, *spatial), layout=layout))


@pytest.mark.kill
def test_qkv_of_one_position():
    qkv = stack((3, 96))
    named = results(partial(attention_qkv, num_heads=2), qkv)
    assert named["output 0"].equal(qkv[:, 64:])
    assert named["gradient of input 0"][:, :64].abs().max() <= 1e-5


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_qkv_in_its_memory_format(algorithm, layout):
    """In place and out, without a copy: the gradient too."""
    qkv = stack((2, 96, 4, 6), torch.bfloat16, layout)
    out = attention_qkv(qkv, 2)
    [grad] = torch.autograd.grad(out, qkv, out.detach())
    for x in (out, grad):
        assert x.is_contiguous(memory_format=torch.channels_last if layout == "channels_last" else torch.contiguous_format)
    q, k, v = (x.transpose(2, 3) for x in qkv.detach().view(2, 3, 2, 16, 24).unbind(1))
    assert out.view(2, 2, 16, 24).transpose(2, 3).equal(op(q, k, v))


@interpreter_only
@pytest.mark.parametrize(
    ("algorithm", "layout"), [("short", "contiguous"), ("tiled", "channels_last")], indirect=["algorithm"]
)
def test_qkv_sound(algorithm, layout):
    assert_sound(partial(attention_qkv, num_heads=2), stack((2, 96, 5, 4), layout=layout))


@interpreter_only
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_the_block_of_a_unet_copies_nothing(layout):
    """norm, qkv, attention, out, and the sum in the norm that comes next: besides its kernels and convolutions no operation that
    moves memory, in backward either."""
    block, norm = (m.to(torch.bfloat16, memory_format=layout) for m in (SelfAttention(2, 32, 4, 2), GroupNorm(4, 32)))
    x = torch.randn(1, 32, 5, 4, dtype=torch.bfloat16).to(memory_format=layout).requires_grad_()
    with recorded() as log, of_operations() as operations:
        out = norm(block(Residual(x)))
    assert operations.names == ["convolution.default"] * 2
    assert log.launches == ["held_kernel", "short_kernel", "held_kernel"]

    upstream = [torch.randn_like(y) for y in out]
    with of_operations() as operations:
        grads = torch.autograd.grad(out, [x, *block.parameters(), *norm.parameters()], upstream)
    assert operations.names == ["convolution_backward.default"] * 2
    assert all(y.is_contiguous(memory_format=layout) for y in (*out, grads[0]))


def test_qkv_empty():
    for shape in ((0, 96, 4, 4), (2, 96, 0, 4)):
        named = results(partial(attention_qkv, num_heads=2), stack(shape))
        assert named["output 0"].shape == (shape[0], 32, *shape[2:])


def test_autocast_casts():
    q, k, v = heads((1, 2, 18, 20, 16))
    qkv = stack((1, 96, 18))
    with torch.autocast(DEVICE, torch.bfloat16):
        outs = attention(q, k, v), attention_qkv(qkv, 2)
        assert [out.dtype for out in outs] == [torch.bfloat16] * 2
    grads = torch.autograd.grad(outs, (q, k, v, qkv), [torch.ones_like(out) for out in outs])
    assert {g.dtype for g in grads} == {torch.float32}


def test_registered():
    q, k, v = heads((2, 2, 5, 6, 4))
    mask = padding(2, 6)
    assert_registered(_attention.registered, (q, k, v, mask, 0.5))
    out, lse = (x.detach() for x in _attention(q, k, v, mask, 0.5))
    data = [x.detach() for x in (q, k, v)]
    assert_registered(_attention_backward.registered, (out.clone(), *data, mask, out, lse, 0.5, [True, False, True]))
    for layout in ("contiguous", "channels_last"):
        qkv = stack((2, 24, 3, 2), layout=layout)
        assert_registered(_attention_qkv.registered, (qkv, 2, "qkv_major"))
        out, lse = (x.detach() for x in _attention_qkv(qkv, 2, "qkv_major"))
        assert_registered(_attention_qkv_backward.registered, (out.clone(), qkv.detach(), out, lse, 2, "qkv_major"))


@pytest.mark.slow
def test_differentiates(algorithm):
    assert_differentiates(op, *heads((1, 2, 3, 4, 3)), torch.tensor([[False, True, False, False]], device=DEVICE))
    assert_differentiates(partial(attention_qkv, num_heads=2), stack((2, 12, 3)))


def test_compiles_exports_and_checkpoints():
    for check in (assert_compiles, assert_exports, assert_checkpoints):
        check(op, *heads((5, 2, 6, 7, 4)))
        check(partial(attention_qkv, num_heads=2), stack((5, 24, 3, 2), layout="channels_last"))


@pytest.mark.slow
def test_inductor():
    assert_compiles(op, *heads((5, 2, 6, 7, 4)), backends=("inductor",))
