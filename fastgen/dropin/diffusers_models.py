"""Optimizations of diffusers' models across their blocks. The models are known by their attributes, as the blocks are."""

from typing import Any

import torch.nn.functional as F
from torch import nn

from fastgen.dropin.diffusers_blocks import ResnetBlock2D
from fastgen.dropin.norms import pair
from fastgen.dropin.report import Changed, Left, Outcome
from fastgen.dropin.swap import Swapped, has_set, overridden, plain, set_attribute

# The blocks that pass the time embedding to nothing but ResnetBlock2D, and to the spatial norms that attention may have.
_KNOWN = {
    "DownBlock2D", "AttnDownBlock2D", "CrossAttnDownBlock2D", "ResnetDownsampleBlock2D", "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn", "UpBlock2D", "AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D",
}  # fmt: skip


def fuse_output(model: Any) -> Outcome | None:
    """Makes conv_norm_out and conv_act one op; None for a model without this norm, or one that is optimized already."""
    norm, activation = model.conv_norm_out, model.conv_act
    if norm is None or isinstance(norm, Swapped):
        return None
    if not plain(norm, nn.GroupNorm) or not plain(activation, nn.SiLU):
        return Left(f"conv_norm_out is {type(norm).__name__}, conv_act {type(activation).__name__}, or hooked")
    pair(norm, activation)
    return Changed("conv_norm_out + conv_act")


def activate_embedding_once(model: Any) -> Outcome | None:
    """Computes SiLU of the time embedding once, not in each block, by setting options that diffusers has; None where this was
    done already."""
    # UNet2DConditionModel can activate whatever has been added to the embedding, UNet2DModel the embedding alone.
    owner, name = (model, "time_embed_act") if hasattr(model, "time_embed_act") else (model.time_embedding, "post_act")
    if has_set(owner, name):
        return None
    what = "SiLU of the time embedding in each block: "
    blocks = [*model.down_blocks, *([] if model.mid_block is None else [model.mid_block]), *model.up_blocks]
    if unknown := {type(block).__name__ for block in blocks} - _KNOWN:
        return Left(f"{what}it has {', '.join(sorted(unknown))}")
    if any(getattr(module, "spatial_norm", None) is not None for module in model.modules()):
        return Left(f"{what}it has spatial norms, which take the embedding too")
    readers: list[Any] = [m for m in model.modules() if getattr(m, "time_emb_proj", None) is not None]
    if not all(isinstance(m, ResnetBlock2D) and not m.skip_time_act and plain(m.nonlinearity, nn.SiLU) for m in readers):
        return Left(f"{what}not every block does it")
    if owner is not model and model.class_embedding is not None:
        return Left(f"{what}a class embedding is added to it")
    if getattr(owner, name) is not None or overridden(owner):
        return Left(f"{what}something else is done to it")
    set_attribute(owner, name, F.silu)  # no module: it would be one child more
    for reader in readers:
        set_attribute(reader, "skip_time_act", True)
    return Changed("SiLU of the time embedding once")
