"""The submodules that `optimize` knows. To know another is to add a line to a table, and a mixin.

A rule is rule(module) -> Outcome | None. It changes the module where it can and says what it changed, or why it left the module;
it returns None where it does not apply.
"""

from itertools import pairwise
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastgen.dropin import diffusers_blocks
from fastgen.dropin.block import Block
from fastgen.dropin.diffusers_sources import full_name
from fastgen.dropin.guided_diffusion import AttentionBlock, ResBlock, is_attention_block, is_group_norm32, is_res_block
from fastgen.dropin.norms import GroupNorm, Sequential, is_group_norm
from fastgen.dropin.pairs import pairs_of, swap_forward
from fastgen.dropin.report import Changed, Left, Outcome
from fastgen.dropin.swap import Swapped, overridden, overrides, swap

BLOCKS = {
    mixin.of: mixin
    for mixin in (
        diffusers_blocks.ResnetBlock2D,
        diffusers_blocks.Upsample2D,
        diffusers_blocks.Attention,
        diffusers_blocks.BasicTransformerBlock,
        diffusers_blocks.GEGLU,
        diffusers_blocks.Transformer2DModel,
    )
}


def group_norm(module: nn.Module) -> Outcome | None:
    """nn.GroupNorm, and guided-diffusion's GroupNorm32, as one op."""
    if not isinstance(module, nn.GroupNorm) or isinstance(module, Swapped):
        return None
    if is_parametrized(module):
        return Left("it is parametrized")
    cls: Any = type(module)
    if not is_group_norm32(cls) and (others := overrides(cls, nn.GroupNorm)):
        return Left(f"its class has a {others[0]} of its own")
    if reason := GroupNorm.unknown(cls):
        return Left(reason)
    if reason := overridden(module):
        return Left(reason)
    swap(module, GroupNorm)
    return Changed("group_norm")


def sequential(module: nn.Module) -> Outcome | None:
    """GroupNorm and SiLU beside each other in an nn.Sequential, or a subclass that computes nothing else, as one op."""
    if not isinstance(module, nn.Sequential) or isinstance(module, Swapped):
        return None
    children = list(module.children())
    if not any(is_group_norm(norm) and type(act) is nn.SiLU for norm, act in pairwise(children)):
        return None
    if others := overrides(type(module), nn.Sequential):
        return None if "forward" in others else Left(f"its class has a {others[0]} of its own")
    if reason := Sequential.unknown(type(module)):
        return Left(reason)
    if "forward" in module.__dict__:
        return Left("its forward is replaced on the instance")
    swap(module, Sequential)
    return Changed("GroupNorm + SiLU")


def block(module: nn.Module) -> Outcome | None:
    """The residual and attention blocks of diffusers and guided-diffusion, by their mixins."""
    if isinstance(module, Swapped):
        return None
    cls: Any = type(module)
    mixin: type[Block] | None = next((BLOCKS[name] for name in map(full_name, cls.__mro__) if name in BLOCKS), None)
    if mixin is None and is_res_block(cls):
        mixin = ResBlock
    elif mixin is None and is_attention_block(cls):
        mixin = AttentionBlock
    if mixin is None:
        return None
    if reason := mixin.unknown(cls):
        return Left(reason)
    if "forward" in module.__dict__:
        return Left("its forward is replaced on the instance")
    mixin.learn(module)
    if reason := mixin.obstacle(module):
        return Left(reason)
    swap(module, mixin)
    return Changed(mixin.fuses)


def pair(module: nn.Module) -> Outcome | None:
    """A norm and its activation that the forward of any other module calls one after the other as one op."""
    if isinstance(module, Swapped):
        return None
    pairs, others = pairs_of(module)
    if not pairs:
        return Left(", ".join(sorted(others))) if others else None
    if "forward" in module.__dict__:
        return Left("its forward is replaced on the instance")
    swap_forward(module, pairs)
    return Changed(", ".join(sorted(f"{norm} + {act}".replace("self.", "") for act, norm in pairs)))


# Each is applied to the whole model before the next: norms, then what contains them.
RULES = group_norm, sequential, block, pair
