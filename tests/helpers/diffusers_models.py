"""Small models of diffusers, each with what its forward takes."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from torch import nn

IMAGES = {"sample_size": 16, "in_channels": 3, "out_channels": 3, "norm_num_groups": 8, "attention_head_dim": 8}
CODES = {"norm_num_groups": 8, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
TIME = torch.tensor([3, 500])


def unet(**options):
    options = {
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        **IMAGES,
        **options,
    }
    return UNet2DModel(**options), (torch.randn(2, 3, 16, 16), TIME)


def resampling_unet():
    down, up = ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
    options = {"down_block_types": down, "up_block_types": up, "resnet_time_scale_shift": "scale_shift"}
    return unet(**options, downsample_type="resnet", upsample_type="resnet", dropout=0.0)


def class_unet():
    model, arguments = unet(num_class_embeds=5)
    return model, (*arguments, torch.tensor([1, 4]))


def skip_unet():
    """Song's, whose sums are divided by the square root of 2."""
    return unet(down_block_types=("SkipDownBlock2D",) * 2, up_block_types=("SkipUpBlock2D",) * 2, add_attention=False)


def text_unet(**options):
    options = {
        "sample_size": 16,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 24,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
        **options,
    }
    return UNet2DConditionModel(**options), (torch.randn(2, 4, 16, 16), TIME, torch.randn(2, 7, 24))


def small_text_unet():
    return text_unet(block_out_channels=(8, 16), attention_head_dim=4, norm_num_groups=4)


def linear_text_unet():
    return text_unet(use_linear_projection=True, num_class_embeds=None, time_embedding_act_fn=None)


def autoencoder():
    return AutoencoderKL(block_out_channels=(16, 32), **CODES), (torch.randn(2, 3, 32, 32),)


def vq(**options):
    return VQModel(block_out_channels=(32, 64), num_vq_embeddings=16, **CODES, **options), (torch.randn(2, 3, 32, 32),)


def spatial_vq():
    return vq(norm_type="spatial")


MODELS = [
    unet, resampling_unet, class_unet, skip_unet, text_unet, linear_text_unet, autoencoder, vq, spatial_vq,
]  # fmt: skip


def make(build):
    """The model, with no parameter left at zero, and its arguments."""
    torch.manual_seed(1)
    model, arguments = build()
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model, arguments


def gradients(model, arguments):
    """The output, and the gradient of each parameter for a fixed gradient of the output."""
    model.zero_grad()
    output = model(*arguments)[0]
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return {"output": output.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def to(dtype, arguments):
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in arguments)
