"""UNets of diffusers that answer at once."""

import torch
from diffusers import UNet2DConditionModel, UNet2DModel

LEVELS = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 8}


def unet(**options):
    """On grey images, as DDPM's."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return UNet2DModel(**{"sample_size": 8, "in_channels": 1, "out_channels": 1} | LEVELS | blocks | options)


def conditional(**options):
    """With cross-attention, as Stable Diffusion's."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    given = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "cross_attention_dim": 6} | LEVELS | blocks
    return UNet2DConditionModel(**given | options)


def pipeline(folder, unet, scheduler):
    """A folder with unet/ and scheduler/, as a pipeline's."""
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    return folder
