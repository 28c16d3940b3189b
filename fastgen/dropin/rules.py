"""The submodules that `optimize` knows. To know another is to add a line to a table, and a mixin.

A rule is rule(module) -> Outcome | None. It changes the module where it can and says what it changed, or why it left the module;
it returns None where it does not apply.
"""

from itertools import pairwise

from torch import nn

from fastgen.dropin import diffusers_blocks
from fastgen.dropin.block import Block
from fastgen.dropin.diffusers_models import activate_embedding_once, fuse_output
from fastgen.dropin.guided_diffusion import AttentionBlock, ResBlock, is_attention_block, is_group_norm32, is_res_block
from fastgen.dropin.norms import GroupNorm, Sequential, is_group_norm
from fastgen.dropin.report import Changed, Left, Outcome
from fastgen.dropin.swap import Swapped, overridden, swap

BLOCKS = {
    "diffusers.models.resnet.ResnetBlock2D": diffusers_blocks.ResnetBlock2D,
    "diffusers.models.upsampling.Upsample2D": diffusers_blocks.Upsample2D,
    "diffusers.models.attention_processor.Attention": diffusers_blocks.Attention,
    "diffusers.models.attention.BasicTransformerBlock": diffusers_blocks.BasicTransformerBlock,
    "diffusers.models.activations.GEGLU": diffusers_blocks.GEGLU,
    "diffusers.models.transformers.transformer_2d.Transformer2DModel": diffusers_blocks.Transformer2DModel,
}
OUTPUTS = {
    "diffusers.models.unets.unet_2d.UNet2DModel",
    "diffusers.models.unets.unet_2d_condition.UNet2DConditionModel",
    "diffusers.models.autoencoders.vae.Encoder",
    "diffusers.models.autoencoders.vae.Decoder",
}
UNETS = {name for name in OUTPUTS if "UNet" in name}


def output(module: nn.Module) -> Outcome | None:
    """diffusers' last norm and its activation as one op."""
    return fuse_output(module) if _home(module) in OUTPUTS else None


def group_norm(module: nn.Module) -> Outcome | None:
    """nn.GroupNorm, and guided-diffusion's GroupNorm32, as one op."""
    if not isinstance(module, nn.GroupNorm) or isinstance(module, Swapped):
        return None
    if type(module).forward is not nn.GroupNorm.forward and not is_group_norm32(type(module)):
        return Left("its class has a forward of its own")
    if reason := overridden(module):
        return Left(reason)
    swap(module, GroupNorm)
    return Changed("group_norm")


def sequential(module: nn.Module) -> Outcome | None:
    """GroupNorm and SiLU beside each other in an nn.Sequential as one op."""
    if type(module) is not nn.Sequential:
        return None
    children = list(module)
    if not any(is_group_norm(norm) and type(act) is nn.SiLU for norm, act in pairwise(children)):
        return None
    swap(module, Sequential)
    return Changed("GroupNorm + SiLU")


def block(module: nn.Module) -> Outcome | None:
    """The residual and attention blocks of diffusers and guided-diffusion, by their mixins."""
    mixin: type[Block] | None = BLOCKS.get(_home(module))
    if is_res_block(type(module)):
        mixin = ResBlock
    elif is_attention_block(type(module)):
        mixin = AttentionBlock
    if mixin is None or isinstance(module, Swapped):
        return None
    if "forward" in module.__dict__:
        return Left("its forward is replaced on the instance")
    if reason := mixin.obstacle(module):
        return Left(reason)
    swap(module, mixin)
    return Changed(mixin.fuses)


def embedding(module: nn.Module) -> Outcome | None:
    """SiLU of a UNet's time embedding once, not in each block."""
    return activate_embedding_once(module) if _home(module) in UNETS else None


# Each is applied to the whole model before the next: pairs that a parent calls, norms, what contains norms, what contains blocks.
RULES = output, group_norm, sequential, block, embedding


def _home(module: nn.Module) -> str:
    """The class whose forward the module has, with its module's name; for an optimized module that is one of ours."""
    for cls in type(module).__mro__:
        if "forward" in vars(cls):
            return f"{cls.__module__}.{cls.__qualname__}"
    return ""
