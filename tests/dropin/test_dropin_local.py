"""optimize is local: a submodule gives what its original gives, whoever calls it, and whatever was hung on it before or after."""

import copy
import pickle
import pkgutil
import types
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from torch import nn
from torch.nn.utils import parametrize

import fastgen
from tests.helpers.diffusers_models import gradients, make, small_text_unet, text_unet, unet
from tests.helpers.guided_diffusion_unet import UNetModel

EMBEDDING = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))


def features(model, arguments):
    """As feature extractors and control branches call the parts of a UNet2DConditionModel."""
    x, t, text = arguments
    emb = model.time_embedding(model.time_proj(t))
    h = model.conv_in(x)
    for block in model.down_blocks:
        h, _ = block(h, emb, encoder_hidden_states=text) if getattr(block, "has_cross_attention", False) else block(h, emb)
    return model.mid_block(h, emb, encoder_hidden_states=text)


PARTS = {
    "features": features,
    "one block": lambda m, a: m.down_blocks[0].resnets[0](m.conv_in(a[0]), EMBEDDING),
    "one embedding for all": lambda m, a: m.down_blocks[0].resnets[0](m.conv_in(a[0]), EMBEDDING[:1]),
    "embeddings for one image": lambda m, a: m.down_blocks[0].resnets[0](m.conv_in(a[0][:1]), EMBEDDING),
    "time_embedding": lambda m, a: m.time_embedding(m.time_proj(a[1])),
    "conv_norm_out": lambda m, a: m.conv_norm_out(m.conv_in(a[0])),
    "conv_act": lambda m, a: m.conv_act(input=m.conv_in(a[0])),
    "a copy": lambda m, a: copy.deepcopy(m.down_blocks)[0].resnets[0](copy.deepcopy(m.conv_act)(m.conv_in(a[0])), EMBEDDING),
}


@pytest.mark.parametrize("part", PARTS)
def test_parts(part):
    model, arguments = make(text_unet)
    with torch.no_grad():
        expected = PARTS[part](model, arguments)
        fastgen.optimize(model)
        torch.testing.assert_close(PARTS[part](model, arguments), expected, rtol=1e-4, atol=1e-5)


class Times(nn.Module):
    """A parametrization."""

    def forward(self, x):
        return 2 * x


class AttnProcessor2_0:
    """Of the name of diffusers' own."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return 0.5 * hidden_states


def half(x, *_):
    return x / 2


def exchange(model):
    model.conv_act = nn.Tanh()
    torch.manual_seed(9)
    model.time_embedding = TimestepEmbedding(8, 32)
    model.down_blocks[0].resnets[0].norm1 = type("Half", (nn.GroupNorm,), {"forward": lambda self, x: half(x)})(4, 8)
    model.down_blocks[1].resnets[0].nonlinearity = nn.Tanh()
    model.mid_block.resnets[0].norm2 = nn.Identity()
    model.up_blocks[1].attentions[0].transformer_blocks[0].norm2 = nn.RMSNorm(8)
    model.up_blocks[1].attentions[1].norm = nn.Identity()


def hook(model):
    model.conv_act = model.mid_block.resnets[0].nonlinearity  # which they share
    for module in (
        model.time_embedding,
        model.down_blocks[0].resnets[0].norm1,
        model.down_blocks[1].resnets[0].norm2,
        model.mid_block.attentions[0].transformer_blocks[0].norm1,
        model.up_blocks[0].resnets[0].nonlinearity,
        model.up_blocks[1].resnets[0].norm1,
    ):
        module.register_forward_hook(lambda module, given, got: half(got))
    model.up_blocks[0].resnets[1].norm1.register_forward_pre_hook(lambda module, given: tuple(map(half, given)))


def replace(model):
    model.conv_norm_out.forward = half
    model.down_blocks[0].resnets[0].nonlinearity.forward = half
    model.down_blocks[1].resnets[0].norm2.forward = half
    model.mid_block.resnets[0].forward = half
    model.mid_block.attentions[0].transformer_blocks[0].norm3.forward = half
    model.up_blocks[1].attentions[0].transformer_blocks[0].ff.net[0].gelu = torch.sigmoid
    model.up_blocks[1].attentions[1].transformer_blocks[0].attn1.set_processor(AttnProcessor2_0())


def parametrize_some(model):
    for module, name in (
        (model.conv_in, "weight"),
        (model.down_blocks[1].resnets[0].norm1, "weight"),
        (model.mid_block.attentions[0].transformer_blocks[0].norm1, "weight"),
        (model.conv_norm_out, "bias"),
    ):
        parametrize.register_parametrization(module, name, Times())
    model.set_attention_slice("max")
    model.mid_block.attentions[0].transformer_blocks[0].set_chunk_feed_forward(32, 1)


CHANGES = [exchange, hook, replace, parametrize_some, lambda model: model.set_default_attn_processor()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_changed_before_or_after(change, when):
    """Each in another place, so that they do not hide one another."""
    (plain, arguments), (model, _) = make(small_text_unet), make(small_text_unet)
    change(plain)
    if when == "after":
        fastgen.optimize(model)
    change(model)
    if when == "before":
        fastgen.optimize(model)
    with torch.no_grad():
        expected = plain(*arguments)[0]
        torch.testing.assert_close(model(*arguments)[0], expected, rtol=1e-4, atol=1e-5)
        fastgen.restore(model)
        assert torch.equal(model(*arguments)[0], expected)


def known_to_diffusers():
    model, arguments = make(small_text_unet)
    model.to(memory_format=torch.channels_last)
    return model, (arguments[0].to(memory_format=torch.channels_last), *arguments[1:])


def known_to_guided_diffusion():
    torch.manual_seed(0)
    return UNetModel(use_scale_shift_norm=True), (torch.randn(2, 3, 8, 8), torch.randn(2, 12))


def attributes():
    torch.manual_seed(0)
    return Lovely(), (torch.randn(2, 8, 3, 3),)


PATCHES = {
    known_to_diffusers: [
        "torch.nn:GroupNorm forward", "torch.nn:SiLU forward", "torch.nn:LayerNorm forward",
        "diffusers.models.resnet:ResnetBlock2D forward", "diffusers.models.upsampling:Upsample2D forward",
        "diffusers.models.attention_processor:Attention forward",
        "diffusers.models.attention_processor:AttnProcessor2_0 __call__",
        "diffusers.models.attention:BasicTransformerBlock forward",
        "diffusers.models.activations:GEGLU forward", "diffusers.models.activations:GEGLU gelu",
        "diffusers.models.transformers.transformer_2d:Transformer2DModel _get_output_for_continuous_inputs",
        "diffusers:UNet2DConditionModel forward",
    ],
    known_to_guided_diffusion: [
        "tests.helpers.guided_diffusion_unet:ResBlock _forward", "tests.helpers.guided_diffusion_unet:AttentionBlock _forward",
        "tests.helpers.guided_diffusion_unet:QKVAttentionLegacy forward",
        "tests.helpers.guided_diffusion_unet:GroupNorm32 forward", "torch.nn:Sequential forward",
    ],
    attributes: [f"{__name__}:Lovely forward"],
}  # fmt: skip


@pytest.fixture
def patch(monkeypatch):
    """patch("torch.nn:SiLU forward"): half as much again as what the class computes."""

    def patch(target):
        cls, method = target.split(" ")
        original = getattr(pkgutil.resolve_name(cls), method)

        def louder(self, *args, **kwargs):
            got = original(self, *args, **kwargs)
            return 1.5 * got if isinstance(got, torch.Tensor) else (1.5 * got[0],)

        monkeypatch.setattr(pkgutil.resolve_name(cls), method, louder)

    return patch


@cache
def built(build):
    """A model as it is made, the same optimized, their arguments and their output."""
    (plain, arguments), (model, _) = build(), build()
    fastgen.optimize(model)
    return plain, model, arguments, plain(*arguments)[0]


@torch.no_grad()
@pytest.mark.parametrize(("build", "target"), [(build, target) for build, targets in PATCHES.items() for target in targets])
def test_a_class_that_is_patched(build, target, patch):
    """After optimize, and before it."""
    plain, model, arguments, unpatched = built(build)
    patch(target)
    expected = plain(*arguments)[0]
    assert not torch.allclose(expected, unpatched, rtol=1e-2)
    after = model(*arguments)[0]
    fastgen.optimize(plain)
    before = plain(*arguments)[0]
    fastgen.restore(plain)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=1e-5)


def test_a_hook_on_all_modules_sees_them_all():
    seen = []
    for optimized in (False, True):
        model, arguments = make(unet)
        if optimized:
            fastgen.optimize(model)
        kinds = []
        hook = torch.nn.modules.module.register_module_forward_hook(
            lambda module, given, got, kinds=kinds: kinds.append(type(module).__name__)
        )
        try:
            model(*arguments)
        finally:
            hook.remove()
        seen.append(kinds)
    assert seen[0] == seen[1]


def test_restored_under_hooks_of_accelerate():
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    model, arguments = make(unet)
    expected = model(*arguments)[0]
    fastgen.optimize(model)
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    fastgen.restore(model)
    assert torch.equal(model(*arguments)[0], expected)
    remove_hook_from_module(model, recurse=True)
    assert torch.equal(model(*arguments)[0], expected)


def test_subclasses_that_override_what_forward_calls_are_left():
    from diffusers.models.activations import GEGLU

    class ReGLU(GEGLU):
        def gelu(self, gate):
            return F.relu(gate)

    report = fastgen.optimize(nn.ModuleList([ReGLU(4, 6), type("Named", (GEGLU,), {})(4, 6)]))
    assert [(entry.kind, entry.text) for entry in report.left] == [("ReGLU", "its class has a gelu of its own")]
    assert [entry.kind for entry in report.changed] == ["Named"]


def test_another_source_is_left(monkeypatch):
    from diffusers.models.activations import GEGLU

    def forward(self, hidden_states):
        return self.proj(hidden_states).chunk(2, -1)[0]

    monkeypatch.setattr(GEGLU, "forward", forward)
    report = fastgen.optimize(nn.ModuleList([GEGLU(4, 6)]))
    assert [entry.text for entry in report.left] == ["its forward is not that of diffusers 0.30 to 0.42"]


def swish(x):
    return x * torch.sigmoid(x)


class Lovely(nn.Module):
    """Blocks as MONAI, CompVis and taming-transformers write them: norm and activation are attributes, or a function."""

    def __init__(self, dims=2):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(2, 8, eps=0.1) for _ in range(3))
        self.norms = nn.ModuleList([nn.GroupNorm(4, 8)])
        self.act = nn.SiLU()
        self.conv1, self.conv2 = conv(8, 8, 1), conv(8, 8, 1)
        self.scale = 2.0

    def forward(self, x, embedding=None, *, skip=True):
        h = self.conv1(self.act(self.norm1(x)))
        if skip:
            h = self.norm2(h)
        else:
            h = h + 1
            h = h - self.norm2(h)
        h = self.act(h)
        h = self.norm3(h)
        h = swish(h)
        h = F.silu(self.norms[0](h))
        h = self.conv2(self.act(h))  # no norm is before it
        return (super().extra_repr() and h) or self.act(self.norm1(h)) + self.scale * x


@pytest.mark.parametrize("dims", [2, 3])
def test_norms_and_activations_that_are_attributes(dims, monkeypatch):
    torch.manual_seed(0)
    model = Lovely(dims)
    x = torch.randn(2, 8, *[3] * dims)
    expected = {skip: model(x, skip=skip) for skip in (True, False)}
    report = fastgen.optimize(model)
    pairs = "norm1 + act, norm2 + act, norm3 + swish, norms[0] + F.silu"
    assert [entry.text for entry in report.changed if entry.kind == "Lovely"] == [pairs]
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for skip, right in expected.items():
            torch.testing.assert_close(twin(x, skip=skip), right)
    activated = []
    monkeypatch.setattr(
        "fastgen.dropin.norms.group_norm", lambda x, *_, activation=None, **options: activated.append(activation) or x
    )
    model(x)
    assert activated == ["silu"] * 5
    fastgen.restore(model)
    assert type(model) is Lovely


def test_forms_of_sequentials():
    class ConvNormAct(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8), nn.SiLU())

    class Backwards(nn.Sequential):
        def __iter__(self):
            return reversed([*self._modules.values()])

    x = torch.randn(2, 3, 4, 4)
    model = nn.ModuleList([ConvNormAct(), Backwards(nn.SiLU(), nn.GroupNorm(2, 8), nn.SiLU())])
    expected = model[0](x)
    report = fastgen.optimize(model)
    assert ("0", "GroupNorm + SiLU") in {(entry.name, entry.text) for entry in report.changed}
    assert [(entry.name, entry.text) for entry in report.left] == [("1", "its class has a __iter__ of its own")]
    torch.testing.assert_close(model[0](input=x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model[0])(x), expected)
    torch.testing.assert_close(torch.jit.script(model[0])(x), expected)


def test_a_forward_replaced_after_optimize_is_called():
    model, arguments = make(unet)
    fastgen.optimize(model)
    model.forward = types.MethodType(lambda self, x, t: (self.conv_act(self.conv_norm_out(self.conv_in(x))),), model)
    h = model.conv_in(arguments[0])
    norm = model.conv_norm_out
    expected = F.silu(F.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps))
    torch.testing.assert_close(model(*arguments)[0], expected)


def test_on_the_meta_device():
    model, arguments = make(text_unet)
    fastgen.optimize(model.to("meta"))
    assert model(*(x.to("meta") for x in arguments))[0].shape == arguments[0].shape


@pytest.mark.kernels
def test_forward_mode_and_functional_transforms():
    """Kernels have no derivatives of this kind: their references take over."""
    torch.manual_seed(0)
    model = Lovely()
    x = torch.randn(2, 8, 3, 3)
    expected = torch.func.jvp(model, (x,), (x,))[1], torch.func.grad(lambda x: model(x).square().mean())(x)
    fastgen.optimize(model)
    torch.testing.assert_close(torch.func.jvp(model, (x,), (x,))[1], expected[0])
    torch.testing.assert_close(torch.func.grad(lambda x: model(x).square().mean())(x), expected[1])


def test_half():
    model, arguments = make(unet)
    exact = gradients(model, arguments)["output"]
    low = tuple(x.half() if x.is_floating_point() else x for x in arguments)
    before = model.half()(*low)[0]
    fastgen.optimize(model)
    after = model(*low)[0]
    assert (after - exact).norm() <= 2 * (before - exact).norm()
