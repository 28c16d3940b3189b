"""A small model of each family that `optimize` knows: whether its numbers stay the same, and how much of it is covered.

    python -m tests.dropin.families

prints the table of docs/dropin.md for the diffusers, MONAI, torchvision and denoising-diffusion-pytorch that are installed.
"""

import copy
import importlib
import pkgutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

import fastgen

# Options of diffusers' models.
LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
FOUR_LEVELS = {"block_out_channels": (8,) * 4, "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}
TEXT = {"cross_attention_dim": 12, "attention_head_dim": 4}


def blocks(*down):
    """The kinds of a UNet's blocks on its way down, and those on its way up."""
    return {"down_block_types": down, "up_block_types": tuple(kind.replace("Down", "Up") for kind in reversed(down))}


def image(*shape):
    return torch.randn(1, *shape)


def described(*shape):
    """An image or a film, its time, and a text of five tokens."""
    return image(*shape), torch.tensor([3]), image(5, 12)


# Name in diffusers: its options; what its forward takes, by position and by keyword.
DIFFUSERS = {
    "AsymmetricAutoencoderKL": lambda: (
        {
            "down_block_out_channels": (8, 16), "up_block_out_channels": (8, 16), "norm_num_groups": 4,
            "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        (image(3, 8, 8),), {},
    ),
    "ControlNetModel": lambda: (
        LEVELS | TEXT
        | {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "conditioning_embedding_out_channels": (8, 8)},
        (*described(4, 8, 8), image(3, 16, 16)), {"return_dict": False},
    ),
    "UNet3DConditionModel": lambda: (
        LEVELS | TEXT | blocks("CrossAttnDownBlock3D", "DownBlock3D"), described(4, 3, 8, 8), {}
    ),
    "UNetSpatioTemporalConditionModel": lambda: (
        {
            "in_channels": 8, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 12,
            "num_attention_heads": (2, 4), "projection_class_embeddings_input_dim": 24, "addition_time_embed_dim": 8,
        }
        | blocks("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        (image(3, 8, 8, 8), torch.tensor([3]), image(1, 12), torch.ones(1, 3)), {},
    ),
    "AutoencoderKLTemporalDecoder": lambda: (
        {"block_out_channels": (32,), "down_block_types": ("DownEncoderBlock2D",)},
        (torch.randn(2, 3, 8, 8),), {"num_frames": 2},
    ),
    "AutoencoderKLCogVideoX": lambda: (FOUR_LEVELS, (image(3, 9, 16, 16),), {}),
    "AutoencoderKLHunyuanVideo": lambda: (FOUR_LEVELS, (image(3, 5, 16, 16),), {}),
    "AutoencoderKLMagvit": lambda: (FOUR_LEVELS, (image(3, 9, 16, 16),), {}),
    "AutoencoderKLMochi": lambda: (
        {
            "encoder_block_out_channels": (32,) * 4, "decoder_block_out_channels": (32,) * 4, "latent_channels": 4,
            "layers_per_block": (1,) * 5,
        },
        (image(3, 7, 16, 16),), {},
    ),
    "AutoencoderKLLTXVideo": lambda: (
        {
            "latent_channels": 8, "block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
            "layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5,
        },
        (image(3, 9, 32, 32),), {},
    ),
    "AutoencoderKLWan": lambda: ({"base_dim": 8, "num_res_blocks": 1}, (image(3, 5, 16, 16),), {}),
}  # fmt: skip


def of_diffusers(name):
    options, arguments, keywords = DIFFUSERS[name]()
    return pkgutil.resolve_name(f"diffusers:{name}")(**options), arguments, keywords


def of_monai(name, dims):
    nets, size = importlib.import_module("monai.networks.nets"), [8] * dims
    options = {"spatial_dims": dims, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": (8, 16)}
    options |= {"attention_levels": (False, True)}
    if name == "AutoencoderKL":
        return nets.AutoencoderKL(**options, norm_num_groups=4, latent_channels=2), (image(1, *size),), {}
    options |= {"norm_num_groups": 4, "num_head_channels": 4, "with_conditioning": True, "cross_attention_dim": 6}
    return nets.DiffusionModelUNet(**options), (image(1, *size), torch.tensor([3]), image(3, 6)), {}


def of_lucidrains():
    unet = importlib.import_module("denoising_diffusion_pytorch").Unet
    return unet(dim=8, dim_mults=(1, 2)), (image(3, 16, 16), torch.tensor([3])), {}


def of_torchvision():
    block = importlib.import_module("torchvision.ops.misc").Conv2dNormActivation

    def group_norm(channels):
        return nn.GroupNorm(2, channels)

    layers = (block(i, 8, 3, norm_layer=group_norm, activation_layer=nn.SiLU) for i in (3, 8))
    return nn.Sequential(*layers), (image(3, 8, 8),), {}


def of_helpers(name):
    model, arguments = pkgutil.resolve_name(f"tests.helpers.diffusers_models:{name}")()
    return model, arguments, {}


HELPERS = {"UNet2DModel": "unet", "UNet2DConditionModel": "text_unet", "AutoencoderKL": "autoencoder", "VQModel": "vq"}
Build = Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
# By name: the package that is needed, and what makes a small model with the arguments of its forward.
FAMILIES: dict[str, tuple[str, Build]] = {
    **{name: ("diffusers", lambda helper=helper: of_helpers(helper)) for name, helper in HELPERS.items()},
    **{name: ("diffusers", lambda name=name: of_diffusers(name)) for name in DIFFUSERS},
    **{
        f"MONAI's {name}, {dims}-D": ("monai", lambda name=name, dims=dims: of_monai(name, dims))
        for name in ("DiffusionModelUNet", "AutoencoderKL")
        for dims in (2, 3)
    },
    "denoising-diffusion-pytorch's Unet": ("denoising_diffusion_pytorch", of_lucidrains),
    "torchvision's Conv2dNormActivation": ("torchvision", of_torchvision),
}
SINGLE = ("denoising-diffusion-pytorch's Unet",)  # embeds times in fp32


@dataclass(frozen=True)
class Row:
    """output, gradient: the largest difference, over the largest number. changed, left: modules, the latter with a reason."""

    family: str
    output: float
    gradient: float
    changed: int
    norms: int
    left: int


def compared(name: str) -> Row:
    """The family's model, optimized and not: outputs, and gradients of all parameters. In fp64 where the model goes there, since
    in fp32 the order of a sum makes some models differ as much from themselves."""
    torch.manual_seed(0)
    model, arguments, keywords = FAMILIES[name][1]()
    dtype = torch.float32 if name in SINGLE else torch.float64
    model = model.to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():  # as where a model begins with layers that add nothing
                parameter.normal_(std=0.1)
    arguments = [x.to(dtype) if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in arguments]
    other = copy.deepcopy(model)
    report = fastgen.optimize(other)

    def both(net):
        torch.manual_seed(1)  # an autoencoder may draw its code
        output = net(*arguments, **keywords)
        tensors = [x for x in _tensors(output) if x.is_floating_point()]
        loss = sum(torch.cos(x.detach()).mul(x).sum() for x in tensors)
        gradients = torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True)
        return tensors, [g for g in gradients if g is not None]

    (expected, of_expected), (ours, of_ours) = both(model), both(other)
    norms = sum(isinstance(m, nn.GroupNorm) for m in model.modules())
    return Row(
        name, _difference(ours, expected), _difference(of_ours, of_expected), len(report.changed), norms, len(report.left)
    )


def _tensors(output) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif hasattr(output, "latent_dist"):
        yield output.latent_dist.mode()
    elif isinstance(output, dict):
        for x in output.values():
            yield from _tensors(x)
    elif isinstance(output, (tuple, list)):
        for x in output:
            yield from _tensors(x)


def _difference(ours, expected) -> float:
    assert len(ours) == len(expected)
    worst = max((x - y).abs().max().item() for x, y in zip(ours, expected, strict=True))
    return worst / max(y.abs().max().item() for y in expected)


def main() -> None:
    warnings.simplefilter("ignore")
    print("| family | outputs | gradients | modules changed | left, with a reason | group norms in it |")
    print("|---|---|---|---|---|---|")
    for name, (package, _) in FAMILIES.items():
        if find_spec(package) is None:
            print(f"| {name} | needs {package} | | | | |")
            continue
        try:
            row = compared(name)
        except (ImportError, AttributeError) as error:  # a release that lacks it
            print(f"| {name} | not in this release: {str(error).splitlines()[0][:80]} | | | | |")
            continue
        print(f"| {name} | {row.output:.1e} | {row.gradient:.1e} | {row.changed} | {row.left} | {row.norms} |")


if __name__ == "__main__":
    main()
