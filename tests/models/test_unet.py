import pytest
import torch
from torch import nn

from fastgen import DiffusionModel, UNet
from fastgen.functional import add_group_norm
from fastgen.models.layers import patchify, unpatchify


def small(**options):
    torch.manual_seed(0)
    net = UNet(2, **{"channels": 16, "multipliers": (1, 2), "blocks": 1, "groups": 4, "head_dim": 8, **options})
    nn.init.normal_(net.head.weight, std=0.1)  # a fresh network's output is zero
    for module in net.modules():  # and so is each block's
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return net.eval()


SHAPES = [
    ({}, (3, 2, 8, 8)),
    ({"attention_levels": (0, 1)}, (3, 2, 8, 12)),  # not square
    ({"patch": 2}, (3, 2, 12, 8)),
    ({"dims": 1, "patch": 2, "attention_levels": (1,)}, (3, 2, 20)),
    ({"dims": 3, "attention_levels": (0, 1)}, (2, 2, 4, 2, 6)),
    ({"dims": 3, "patch": 2, "context_dim": None}, (2, 2, 4, 8, 4)),
    ({"multipliers": (1,), "mid_attention": False}, (3, 2, 7, 5)),  # odd: nothing is halved
    ({"out_channels": 5}, (1, 2, 8, 8)),
    ({}, (0, 2, 8, 8)),  # empty batch
]


@pytest.mark.parametrize(("options", "shape"), SHAPES)
def test_output_shape_and_gradients(options, shape):
    net = small(**options)
    out = net(torch.randn(shape), torch.rand(shape[0]))
    assert out.shape == (shape[0], options.get("out_channels", 2), *shape[2:])
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    if shape[0]:
        assert all(p.grad.any() for p in net.parameters() if p.dim() > 1)


def test_starts_as_zero():
    assert not UNet(1, channels=8, groups=4)(torch.randn(2, 1, 8, 8), torch.rand(2)).any()


def test_time_label_and_context_change_the_output():
    net = small(num_classes=10, context_dim=6)
    x, t, label, context = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([1, 2]), torch.randn(2, 3, 6)
    out = net(x, t, label, context)
    assert not torch.allclose(out, net(x, t / 2, label, context))
    assert not torch.allclose(out, net(x, t, label + 1, context))
    assert not torch.allclose(out, net(x, t, label, -context))


def test_no_label_is_the_null_label():
    net = small(num_classes=10)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    assert torch.equal(net(x, t), net(x, t, torch.full((2,), 10)))


def test_samples_do_not_mix():
    net = small(attention_levels=(0, 1), num_classes=10)
    x, t, label = torch.randn(4, 2, 8, 8), torch.rand(4), torch.arange(4)
    torch.testing.assert_close(net(x[2:3], t[2:3], label[2:3]), net(x, t, label)[2:3])


def test_checkpointing_gives_the_same_gradients():
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    gradients = []
    for checkpointing in (False, True):
        net = small(checkpointing=checkpointing, attention_levels=(1,)).train()
        net(x, t).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    torch.testing.assert_close(*gradients)


def test_channels_last_gives_the_same():
    net = small(attention_levels=(0, 1))
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    expected = net(x, t)
    out = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last), t)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_channels_last_weights_suffice():
    """Whatever passes between layers is then channels_last, whatever x was."""
    net = small(attention_levels=(1,), patch=2).to(memory_format=torch.channels_last)
    for name, layer in net.named_modules():

        def check(_layer, _inputs, outputs, name=name):
            for y in torch.utils._pytree.tree_leaves(outputs):
                assert y.dim() < 4 or y.is_contiguous(memory_format=torch.channels_last), name

        if layer is not net:
            layer.register_forward_hook(check)
    net(torch.randn(2, 2, 16, 12), torch.rand(2))


def test_norms_make_the_sums(monkeypatch):
    """All but those that are concatenated, halved or doubled in size."""
    sums = []

    def spy(x, residual, *arguments, **options):
        sums.append(residual is not None)
        return add_group_norm(x, residual, *arguments, **options)

    monkeypatch.setattr("fastgen.models.layers.add_group_norm", spy)
    small(blocks=2)(torch.randn(2, 2, 8, 8), torch.rand(2))
    down, mid, up = [False, False, True, False], [True, False, True, True, False], [False, False] * 3
    assert sums == [*down, *down, *mid, *up, *up, True]


def test_compiles_whole():
    net = small(attention_levels=(1,), num_classes=10)
    x, t, label = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([1, 2])
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label))


def test_bf16_autocast_stays_near():
    net = small(attention_levels=(0, 1), num_classes=10)
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    expected = net(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(x, t)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() < 0.03 * expected.norm()


def test_is_the_architecture_of_diffusers():
    """Block for block the parameters of UNet2DModel, which with scale_shift leaves out the norm of the middle's attention."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.UNet2DModel(
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        attention_head_dim=16,
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )
    ours = UNet(3, channels=32, multipliers=(1, 2, 2), blocks=2, groups=8, head_dim=16, attention_levels=(1,))
    mid_norm = ours.mid[0].attention.norm
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) + sum(
        p.numel() for p in mid_norm.parameters()
    )


ERRORS = [
    (
        lambda: small()(torch.randn(1, 2, 9, 8), torch.rand(1)),
        r"x: expected \(N, 2, multiple of 2, multiple of 2\), got \(1, 2, 9, 8\)",
    ),
    (lambda: small()(torch.randn(1, 3, 8, 8), torch.rand(1)), "x: expected"),
    (lambda: small(dims=1)(torch.randn(1, 2, 8, 8), torch.rand(1)), r"x: expected \(N, 2, multiple of 2\)"),
    (lambda: small()(torch.randn(1, 2, 8, 8), torch.rand(1), torch.tensor([1])), "label: expected None"),
    (lambda: small(context_dim=3)(torch.randn(1, 2, 8, 8), torch.rand(1)), r"context: expected \(N, L, 3\), got None"),
    (lambda: small(groups=5), "groups: expected a divisor"),
    (lambda: small(head_dim=12), "head_dim: expected a divisor"),
    (lambda: small(attention_levels=(2,)), "attention_levels: expected levels from 0 to 1"),
    (lambda: UNet(1, dims=4), "dims: expected 1, 2 or 3, got 4"),
]


@pytest.mark.parametrize(("call", "message"), ERRORS)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 8), (2, 3, 8, 4, 6)])
def test_patchify_is_undone(shape):
    x = torch.randn(shape)
    patches = patchify(x, 2)
    assert patches.shape == (2, 3 * 2 ** (x.dim() - 2), *[side // 2 for side in shape[2:]])
    assert torch.equal(unpatchify(patches, 2), x)


def test_patches_hold_neighbours():
    x = torch.arange(8.0).view(1, 1, 8)
    assert torch.equal(patchify(x, 2), torch.tensor([[[0.0, 2, 4, 6], [1, 3, 5, 7]]]))


def test_patches_of_volumes_hold_neighbours_in_the_order_of_pictures():
    """The last two dimensions as pixel_unshuffle, the first outside of them."""
    x = torch.randn(2, 3, 4, 6, 8)
    planes = torch.stack([nn.functional.pixel_unshuffle(x[:, :, i], 2) for i in range(4)], 2)  # [2, 3·4, 4, 3, 4]
    expected = planes.unflatten(1, (3, 4)).unflatten(3, (2, 2)).permute(0, 1, 4, 2, 3, 5, 6).flatten(1, 3)
    assert torch.equal(patchify(x, 2), expected)


def test_volumes_one_pixel_deep_are_pictures():
    """With kernels that are zero off the middle plane a UNet over volumes is the one over pictures."""
    flat, deep = small(multipliers=(1,), attention_levels=(0,)), small(multipliers=(1,), attention_levels=(0,), dims=3)
    state = flat.state_dict()
    for name, weight in deep.state_dict().items():
        if weight.dim() == 5:
            weight.zero_()[:, :, weight.shape[2] // 2] = state[name]
        else:
            weight.copy_(state[name])
    x, t = torch.randn(2, 2, 8, 8), torch.rand(2)
    torch.testing.assert_close(deep(x[:, :, None], t)[:, :, 0], flat(x, t))


def test_diffusion_model_keeps_the_shape():
    x = torch.randn(2, 3, 28, 28)
    assert DiffusionModel(3)(x, torch.rand(2)).shape == x.shape
