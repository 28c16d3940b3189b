"""A forward and backward pass of models of diffusers, untouched and after `fastgen.optimize`."""

from copy import deepcopy
from functools import partial

import pytest
import torch

import fastgen
from fastgen.device import computes_bf16

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytest.importorskip("diffusers", reason="the models are diffusers', which is not installed")


def unet(**options):
    """ddpm-cifar10's, a quarter as wide."""
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        **options,
    )
    return model, (torch.randn(8, 3, 32, 32), torch.randint(0, 1000, (8,)))


def text_unet():
    """Stable Diffusion's, a tenth as wide."""
    from diffusers import UNet2DConditionModel

    widths = {"block_out_channels": (32, 64, 128, 128), "cross_attention_dim": 96, "attention_head_dim": 2}
    return UNet2DConditionModel(**widths), (torch.randn(2, 4, 32, 32), torch.randint(0, 1000, (2,)), torch.randn(2, 77, 96))


def autoencoder():
    """Stable Diffusion's, a quarter as wide."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return AutoencoderKL(block_out_channels=(32, 64, 128, 128), **blocks), (torch.randn(2, 3, 64, 64),)


MODELS = {
    "UNet2DModel": unet,
    "UNet2DModel, scale and shift": partial(unet, resnet_time_scale_shift="scale_shift"),
    "UNet2DConditionModel": text_unet,
    "AutoencoderKL": autoencoder,
}


def step(model, arguments, precision):
    def run():
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision == "bf16 autocast"):
            output = model(*arguments)[0]
        output.float().square().mean().backward()
        model.zero_grad()

    return run


@pytest.mark.parametrize("precision", ["fp32", "bf16 autocast", "bf16"])
@pytest.mark.parametrize("name", MODELS)
def test_optimized(compare, name, precision):
    if precision != "fp32" and not computes_bf16(DEVICE):
        pytest.skip("needs a processor that computes bf16: one that does not takes ten times as long as in fp32")
    torch.manual_seed(0)
    model, arguments = MODELS[name]()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    arguments = [x.to(DEVICE, dtype) if x.is_floating_point() else x.to(DEVICE) for x in arguments]
    model = model.to(DEVICE, dtype)
    optimized = deepcopy(model)
    fastgen.optimize(optimized)
    steps = {"untouched": step(model, arguments, precision), "optimized": step(optimized, arguments, precision)}
    compare(f"{name}, forward and backward, {precision}", steps, rounds=30, peers={"optimized": ["untouched"]})
