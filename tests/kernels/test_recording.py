"""Calls that are repeated from a recording give what the first call of their signature gave, bit for bit."""

from unittest.mock import patch

import pytest
import torch
import triton
from torch.utils._python_dispatch import TorchDispatchMode

from fastgen_kernels import library
from fastgen_kernels.attention import attention, attention_qkv
from fastgen_kernels.denoising_loss import denoising_loss
from fastgen_kernels.diffusion_loss import diffusion_loss
from fastgen_kernels.dispatch import disabled, repeated_on_cpu
from fastgen_kernels.geglu import _geglu, geglu
from fastgen_kernels.group_norm import add_group_norm, group_norm
from fastgen_kernels.layer_norm import add_layer_norm, layer_norm
from fastgen_kernels.philox import noise_key, philox_normal
from fastgen_kernels.q_sample import q_sample
from fastgen_kernels.reconstruction_nll import reconstruction_nll
from fastgen_kernels.recording import Recording
from fastgen_kernels.reparameterize_kl import reparameterize_kl
from fastgen_kernels.sampler_step import sampler_step
from fastgen_kernels.timestep_embedding import timestep_embedding
from fastgen_kernels.to_x0 import to_x0
from proof.laboratory.device import DEVICE

pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore")]
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def repeating():
    with repeated_on_cpu():
        yield


@pytest.fixture
def repeated(monkeypatch):
    """A list that grows by one at each call of a recording."""
    calls, call = [], Recording.__call__
    monkeypatch.setattr(Recording, "__call__", lambda self, arguments: (calls.append(1), call(self, arguments))[1])
    return calls


def randn(*shape, dtype=torch.float32, channels_last=False, grad=True):
    x = torch.randn(shape, dtype=dtype, device=DEVICE)
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_(grad)


def norm(shape=(2, 8, 3, 4), **options):
    return [randn(*shape, **options), randn(8), randn(8)]


def with_residual():
    per_sample = [randn(2, 8), randn(2, 8), randn(2, 8, dtype=BF16)]
    return [*norm(dtype=BF16, channels_last=True), randn(2, 8, 3, 4, dtype=BF16), *per_sample]


def per_sample(n):
    return torch.rand(n, device=DEVICE) + 0.5


def diffused():
    clean = torch.randint(256, (3, 5), device=DEVICE).to(torch.uint8)
    return [randn(3, 5), clean, per_sample(3), per_sample(3), noise_key(0, samples=3, device=DEVICE), per_sample(3)]


# Each op with what its launcher takes as an option, at other strides, offsets and dtypes: what makes the inputs, and the call.
CALLS = {
    "group_norm": (norm, lambda x, w, b: group_norm(x, 4, w, b)),
    "group_norm of a part": (lambda: norm((2, 16, 3, 4)), lambda x, w, b: group_norm(x[:, 8:], 4, w, b, activation="silu")),
    "group_norm without gradients": (lambda: norm(grad=False)[:1], lambda x: group_norm(x, 4)),
    "group_norm, weight alone": (lambda: [norm(grad=False)[0], randn(8)], lambda x, w: group_norm(x, 4, w)),
    "group_norm with all": (
        with_residual,
        lambda x, w, b, r, scale, shift, p: add_group_norm(
            x, r, 4, w, b, activation="silu", scale=scale, shift=shift, pre_bias=p
        ),
    ),
    "group_norm beside its input": (norm, lambda x, w, b: add_group_norm(x, None, 4, w, b)),
    "layer_norm": (lambda: [randn(2, 3, 8), randn(8), randn(8)], layer_norm),
    "add_layer_norm": (lambda: [randn(2, 3, 8), randn(2, 3, 8), randn(8)], add_layer_norm),
    "layer_norm beside its input": (lambda: [randn(2, 3, 8), randn(8)], lambda x, w: add_layer_norm(x, None, w)),
    "geglu": (lambda: [randn(2, 3, 8)], geglu),
    "attention": (lambda: [randn(2, 2, n, 16, dtype=BF16) for n in (5, 7, 7)], attention),
    "attention_qkv": (lambda: [randn(2, 48, 3, 3, dtype=BF16, channels_last=True)], lambda qkv: attention_qkv(qkv, 1)),
    "attention_qkv, head major": (
        lambda: [randn(2, 96, 9, dtype=BF16)], lambda qkv: attention_qkv(qkv, 2, order="head_major")
    ),
    "attention_qkv of fp32, where TF32 may be switched on": (lambda: [randn(2, 48, 9)], lambda qkv: attention_qkv(qkv, 1)),
    "philox_normal": (lambda: [noise_key(0, samples=3, device=DEVICE)], lambda key: philox_normal((3, 5), key)),
    "timestep_embedding": (lambda: [torch.rand(5, device=DEVICE)], lambda t: timestep_embedding(t, 6)),
    "reparameterize_kl": (
        lambda: [randn(3, 8), noise_key(0, samples=3, device=DEVICE)],
        lambda both, key: reparameterize_kl(both[:, :4], both[:, 4:], key=key),
    ),
    "q_sample": (lambda: diffused()[1:], lambda x0, a, s, key, w: q_sample(x0, a, s, key=key, target="v")),
    "denoising_loss": (diffused, denoising_loss),
    "diffusion_loss": (lambda: [randn(3, 5), randn(3, 5, grad=False), per_sample(3)], diffusion_loss),
    "reconstruction_nll": (lambda: [randn(3, 5), torch.rand(3, 5, device=DEVICE)], reconstruction_nll),
    "to_x0": (
        lambda: [randn(3, 5), randn(3, 5, grad=False), per_sample(3), per_sample(3), randn(3, 5)],
        lambda out, x, c, d, uncond: to_x0(out, x, c, d, uncond=uncond, guidance=2.0),
    ),
    "sampler_step": (
        lambda: [randn(3, 5), randn(3, 5), per_sample(4), randn(3, 5)],
        lambda x, x0, c, previous: sampler_step(x, x0, c, previous=previous),
    ),
}  # fmt: skip
LAUNCHERS = {"group_norm without gradients": 1, "philox_normal": 1, "timestep_embedding": 1, "q_sample": 1} | {
    "attention_qkv of fp32, where TF32 may be switched on": 0
}


def results(call, inputs):
    """Outputs and gradients."""
    outputs = call(*inputs)
    outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
    leaves = [x for x in inputs if x.requires_grad]
    reached = [y for y in outputs if y.requires_grad]
    if leaves and reached:
        outputs += torch.autograd.grad(reached, leaves, [torch.cos(y.detach()) for y in reached], allow_unused=True)
    return outputs


def assert_repeats(make, call, repeated, launchers):
    """The fourth call, of other values, is repeated as often as there are launchers, with the results of a first call."""
    for _ in range(3):
        results(call, make())
    before, inputs = len(repeated), make()
    ours = results(call, inputs)
    assert len(repeated) - before == launchers
    with patch("fastgen_kernels.library.repeats", lambda x: False):
        expected = results(call, inputs)
    torch.testing.assert_close(ours, expected, rtol=0, atol=0, check_stride=True)


@pytest.mark.parametrize("name", CALLS)
def test_calls(name, repeated):
    make, call = CALLS[name]
    assert_repeats(make, call, repeated, launchers=LAUNCHERS.get(name, 2))


def ready(call, *inputs):
    """The call, whose signature is recorded."""
    for _ in range(3):
        results(call, inputs)
    return call(*inputs)


def test_one_tensor_as_two_arguments(repeated):
    """What was recorded of x + x is true of x + y."""
    x, y = randn(2, 8, 3), randn(2, 8, 3)
    ready(lambda x: add_group_norm(x, x, 4), x)
    before = len(repeated)
    _, total = add_group_norm(x, y, 4)
    assert len(repeated) == before + 1
    torch.testing.assert_close(total, x + y, rtol=0, atol=0)


def test_equal_arguments_of_other_types_are_refused_as_before():
    x = randn(2, 8, 3)
    ready(lambda x: group_norm(x, 1), x)
    with pytest.raises(TypeError, match=r"num_groups: expected a whole number that divides C = 8, got 1\.0"):
        group_norm(x, 1.0)
    with pytest.raises(TypeError, match="eps: expected a finite number >= 0"):
        group_norm(x, 1, eps={})


def test_what_looks_at_operations_sees_the_op(repeated):
    """A mode and a subclass of Tensor get fastgen::geglu, with its own backward; nothing is repeated past them."""
    seen = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Subclass(torch.Tensor):
        pass

    x = randn(2, 8)
    ready(geglu, x)
    with Mode():
        torch.autograd.grad(geglu(x).sum(), x)
    assert torch.ops.fastgen.geglu.default in seen
    assert torch.ops.fastgen.geglu_backward.default in seen
    before = len(repeated)
    assert type(geglu(x.detach().as_subclass(Subclass))) is Subclass
    assert len(repeated) == before


def test_references_where_kernels_do_not_go(repeated):
    x = randn(2, 8)
    ready(geglu, x)
    before = len(repeated)
    with disabled():
        geglu(x)
    torch.func.jvp(geglu, (x.detach(),), (x.detach(),))
    torch.func.vmap(geglu)(x.detach())
    assert len(repeated) == before


def test_no_second_derivative():
    """As on the first way: an error, never zeros."""
    x = randn(2, 8)
    y = ready(geglu, x)
    (dx,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"call the op inside fastgen.disabled\(\)"):
        dx.sum().backward()


def test_tensors_that_hooks_save(repeated):
    """Saved tensors that come back with other strides are of another signature."""
    x = randn(2, 3, 8)
    expected = results(geglu, [x])
    ready(geglu, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x.mT.contiguous().mT):
        ours = results(geglu, [x])
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_hooks_of_launches_are_called(repeated):
    """A profiler's hooks hear of each launch from Triton itself."""
    x = randn(2, 8)
    ready(geglu, x)
    before = len(repeated)
    triton.knobs.runtime.launch_enter_hook.add(print)
    try:
        geglu(x)
    finally:
        triton.knobs.runtime.launch_enter_hook.remove(print)
    assert len(repeated) == before


def test_signatures_are_forgotten(monkeypatch):
    """Where sizes vary without end, memory does not grow."""
    monkeypatch.setattr(library, "REMEMBERED", 4)
    for n in (*range(1, 8), 1, 1, 1):
        torch.testing.assert_close(geglu(torch.ones(n, 2, device=DEVICE)), torch.full((n, 1), 0.8413447, device=DEVICE))
    assert len(_geglu._recordings) <= 4
