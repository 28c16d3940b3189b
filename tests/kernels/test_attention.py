import math

import pytest
import torch
import torch.nn.functional as F

from fastgen.functional import attention, attention_qkv
from tests.helpers.op_info import op_info

# N, H, S, S_k, D
SHAPES = [
    (2, 3, 5, 5, 4),
    (2, 1, 7, 3, 5),  # odd sizes, fewer keys than queries
    (1, 2, 1, 9, 8),
    (2, 2, 4, 1, 8),  # one key: its value
    (2, 2, 40, 300, 16),  # more than 256 keys
]


def exact(q, k, v, scale=None, key_padding_mask=None):
    """The formula, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    scores = (math.sqrt(1 / q.shape[-1]) if scale is None else scale) * torch.einsum("nhsd,nhtd->nhst", q, k)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    if key_padding_mask is not None:
        weights = weights * ~key_padding_mask[:, None, None]
    return torch.einsum("nhst,nhtd->nhsd", weights / weights.sum(-1, keepdim=True).clamp(min=1e-30), v)


def heads(shape, dtype=torch.float32, seed=0):
    """q, k and v, strided as they come out of a linear layer."""
    n, h, queries, keys, d = shape
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, s, h, d, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2).requires_grad_()
        for s in (queries, keys, keys)
    ]


def gradients(f, *inputs, **kwargs):
    y = f(*inputs, **kwargs)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y, *torch.autograd.grad(y, inputs, upstream.to(inputs[0].dtype).to(y.dtype))


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(shape, masked, scale):
    mask = torch.rand(shape[0], shape[3], generator=torch.Generator().manual_seed(2)) < 0.4 if masked else None
    qkv = heads(shape)
    ours = gradients(attention, *qkv, scale=scale, key_padding_mask=mask)
    for a, b in zip(ours, gradients(exact, *qkv, scale=scale, key_padding_mask=mask), strict=True):
        torch.testing.assert_close(a, b.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_dtypes(shape, dtype):
    qkv = heads(shape, dtype)
    for scale in (None, 0.3):
        ours, theirs, exacts = (gradients(f, *qkv, scale=scale) for f in (attention, F.scaled_dot_product_attention, exact))
        for a, stock, truth in zip(ours, theirs, exacts, strict=True):
            assert a.dtype == dtype
            allowed = 2 * (stock - truth).abs().max() + torch.finfo(dtype).eps * (dtype.itemsize >= 4)
            assert (a - truth).abs().max() <= allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keys", [6, 300])
def test_all_keys_masked(keys, dtype):
    q, k, v = heads((3, 2, 5, keys, 8), dtype)
    mask = torch.zeros(3, keys, dtype=torch.bool)
    mask[1] = True
    out, *grads = gradients(attention, q, k, v, key_padding_mask=mask)
    for x in (out, *grads):
        assert x.isfinite().all()
        assert (x[1] == 0).all()
        assert (x[0] != 0).any()


@pytest.mark.parametrize("shape", [(0, 2, 5, 5, 4), (2, 2, 0, 3, 4), (2, 2, 3, 0, 4)])
def test_empty(shape):
    n, h, queries, keys, d = shape
    for mask in (None, torch.zeros(n, keys, dtype=torch.bool)):
        out, *grads = gradients(attention, *heads(shape), key_padding_mask=mask)
        assert out.shape == (n, h, queries, d)
        assert not any(x.any() for x in (out, *grads))


def test_expanded_gradient():
    qkv = heads((2, 3, 5, 5, 4))
    ours = torch.autograd.grad(attention(*qkv).sum(), qkv)  # stride 0
    for a, b in zip(ours, torch.autograd.grad(exact(*qkv).sum(), qkv), strict=True):
        torch.testing.assert_close(a, b)


def test_gradcheck():
    mask = torch.tensor([[False, True, False], [True, True, True]])
    inputs = heads((2, 2, 2, 3, 3), torch.float64)
    assert torch.autograd.gradcheck(lambda *qkv: attention(*qkv, key_padding_mask=mask), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_casts_as_sdpa_does(dtype):
    qkv = heads((2, 3, 5, 5, 4), dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, theirs = attention(*qkv), F.scaled_dot_product_attention(*qkv)
        mixed = attention(qkv[0].bfloat16(), qkv[1].float(), qkv[2].bfloat16()) if dtype == torch.float32 else ours
    assert ours.dtype == mixed.dtype == theirs.dtype
    torch.testing.assert_close(ours, exact(*(x.to(ours.dtype) for x in qkv)).to(ours.dtype))
    assert mixed.equal(ours)
    assert all(g.dtype == dtype for g in gradients(attention, *qkv)[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_op_info(dtype):
    info = op_info("nn.functional.scaled_dot_product_attention")
    samples = [(s.input, *s.args) for s in info.sample_inputs("cpu", dtype) if s.input.dim() == 4]
    assert samples
    for q, k, v in samples:
        ours, stock, truth = attention(q, k, v), info.op(q, k, v), exact(q, k, v)
        assert (ours - truth).abs().max() <= 2 * (stock - truth).abs().max()


@pytest.mark.parametrize("keys", [1, 4, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_query_that_is_nan_stays_nan(keys, dtype):
    q, k, v = heads((1, 2, 3, keys, 8), dtype)
    with torch.no_grad():
        q[0, 1, 2, 5] = torch.nan
        assert attention(q, k, v).isnan().nonzero()[:, :3].unique(dim=0).tolist() == [[0, 1, 2]]


def stacked(q, k, v, order):
    """(N, 3C, T) of (N, H, T, D)."""
    axis = {"qkv_major": 1, "head_major": 2}[order]
    return torch.stack([x.transpose(2, 3) for x in (q, k, v)], axis).flatten(1, 3)


LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "half of channels_last": lambda x: LAYOUTS["channels_last"](torch.cat((x, x), 1))[:, : x.shape[1]],
    "permuted": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}


@pytest.mark.parametrize("order", ["qkv_major", "head_major"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spatial", [(), (15,), (3, 5), (1, 1), (5, 3, 1)])
def test_qkv(spatial, layout, order):
    q, k, v = heads((2, 3, math.prod(spatial), math.prod(spatial), 4))
    qkv = LAYOUTS[layout](stacked(q, k, v, order).detach().reshape(2, 36, *spatial)).requires_grad_()
    out, grad = gradients(attention_qkv, qkv, num_heads=3, order=order)
    assert out.shape == (2, 12, *spatial)
    assert (out.movedim(1, -1) if "channels_last" in layout else out).is_contiguous()

    expected = exact(q, k, v).transpose(2, 3).reshape(out.shape)
    torch.testing.assert_close(out, expected.float())
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    grads = torch.autograd.grad(expected, (q, k, v), upstream.double())
    torch.testing.assert_close(grad, stacked(*grads, order).reshape(qkv.shape))


def test_qkv_of_a_linear_layer():
    x = torch.randn(2, 7, 3 * 12)  # (N, T, 3C)
    out = attention_qkv(x.transpose(1, 2), 3).transpose(1, 2)
    assert out.is_contiguous()
    q, k, v = (y.unflatten(2, (3, 4)).transpose(1, 2) for y in x.chunk(3, 2))
    torch.testing.assert_close(out, exact(q, k, v).transpose(1, 2).flatten(2).float())


def test_qkv_empty():
    assert attention_qkv(torch.ones(0, 12, 3, 3), 2).shape == (0, 4, 3, 3)
    assert attention_qkv(torch.ones(2, 12, 0, 3), 2).shape == (2, 4, 0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles(dtype):
    def both(q, k, v, qkv, mask):
        return attention(q, k, v, key_padding_mask=mask), attention_qkv(qkv, 2)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    qkv = torch.randn(2, 12, 3, 5, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_()
    inputs = (*heads((2, 3, 5, 6, 4), dtype), qkv)
    mask = torch.arange(6) > torch.tensor([[2], [-1]])
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            results = [f(*inputs, mask) for f in (compiled, both)]
        for ours, eager in zip(*results, strict=True):
            torch.testing.assert_close(ours, eager)
        grads = [torch.autograd.grad(sum(y.float().square().sum() for y in ys), inputs) for ys in results]
        for ours, eager in zip(*grads, strict=True):
            torch.testing.assert_close(ours, eager)


Q, QKV = torch.ones(2, 3, 5, 4), torch.ones(2, 24, 5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: attention(Q[0], Q, Q), ValueError, r"q: expected \(N, H, S, D\), got shape \(3, 5, 4\)"),
        (
            lambda: attention(Q, Q[:1], Q),
            ValueError,
            r"k: expected shape \(N, H, S_k, D\) = \(2, 3, 5, 4\), got \(1, 3, 5, 4\)",
        ),
        (lambda: attention(Q, Q, Q[:, :, :3]), ValueError, r"v: expected shape .*got \(2, 3, 3, 4\)"),
        (lambda: attention(Q, Q[0], Q), ValueError, r"k: expected shape .*got \(3, 5, 4\)"),
        (lambda: attention(Q, Q.half(), Q), TypeError, "k, v: expected torch.float32 as q is, got torch.float16"),
        (lambda: attention(Q.int(), Q, Q), TypeError, "q: expected float16, .* got torch.int32"),
        (lambda: attention(Q, Q, Q, key_padding_mask=torch.ones(2, 5)), TypeError, "key_padding_mask: expected bool"),
        (lambda: attention(Q, Q, Q, key_padding_mask=torch.ones(2, 4) > 0), ValueError, r"= \(2, 5\), got \(2, 4\)"),
        (lambda: attention_qkv(QKV[:, :23], 2), ValueError, r"qkv: expected \(N, 3C, \*S\), got shape \(2, 23, 5\)"),
        (lambda: attention_qkv(QKV[0, :, 0], 2), ValueError, r"qkv: expected \(N, 3C, \*S\), got shape \(24,\)"),
        (lambda: attention_qkv(QKV, 3), ValueError, "num_heads: expected a divisor of C = 8, got 3"),
        (
            lambda: attention_qkv(QKV, 2, order="x"),
            ValueError,
            "order: expected one of 'qkv_major', 'head_major', got 'x'",
        ),
        (lambda: attention_qkv(QKV.int(), 2), TypeError, "qkv: expected float16"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
