"""nn.GroupNorm anywhere, and the SiLU that follows it."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.dropin.swap import Swapped, overridden, patched, plain
from fastgen.functional import add_group_norm, group_norm

SILU = {F.silu}  # functions that compute it; `optimize` adds those that it finds


def normalize(module: Any, x: Tensor, **options: Any) -> Tensor:
    """group_norm of x (N, C, *S) with the module's groups, parameters and eps. options: group_norm's others."""
    return group_norm(x, module.num_groups, module.weight, module.bias, module.eps, **options)


def normalize_beside(module: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The same, and x, for the branch that passes by the norm."""
    return add_group_norm(x, None, module.num_groups, module.weight, module.bias, module.eps, **options)


def normalize_embedded(module: Any, x: Tensor, emb: Tensor, scale_shift: bool) -> Tensor:
    """SiLU of the norm of x + emb; with scale_shift, of the norm scaled by 1 + the first half of emb and shifted by the second.

    emb: (N, C), or (N, 2C) with scale_shift. An embedding of another batch or dtype, as PyTorch broadcasts and promotes them, is
    added in a pass of its own.
    """
    if emb.dim() == 2 and emb.shape[0] == x.shape[0] and emb.dtype == x.dtype:
        if not scale_shift:
            return normalize(module, x, activation="silu", pre_bias=emb)
        scale, shift = emb.chunk(2, dim=1)
        return normalize(module, x, activation="silu", scale=scale, shift=shift)
    emb = emb[(..., *[None] * (x.dim() - emb.dim()))]
    if not scale_shift:
        return normalize(module, x + emb, activation="silu")
    scale, shift = emb.chunk(2, dim=1)
    return F.silu(normalize(module, x) * (1 + scale) + shift)


def activated(activation: Any, norm: Any, x: Any) -> Any:
    """activation(norm(x)): one op where that is SiLU of a group norm and nothing is to see what passes between them."""
    if fuses(activation, norm) and is_image(x):
        return normalize(norm, x, activation="silu")
    return activation(norm(x))


def activated_modulated(activation: Any, norm: Any, x: Any, scale: Any, shift: Any) -> Any:
    """activation(norm(x) * (scale + 1) + shift), likewise; scale and shift are one number for each image and channel."""
    if fuses(activation, norm) and is_image(x) and all(_per_channel(y, x) for y in (scale, shift)):
        return normalize(norm, x, activation="silu", scale=scale.flatten(1), shift=shift.flatten(1))
    return activation(norm(x) * (scale + 1) + shift)


def _per_channel(y: Any, x: Tensor) -> bool:
    return isinstance(y, Tensor) and y.shape == (*x.shape[:2], *[1] * (x.dim() - 2)) and y.dtype == x.dtype


def fuses(activation: Any, norm: Any) -> bool:
    """Whether a norm and the activation of its output may be one op."""
    silu = plain(activation, nn.SiLU) if isinstance(activation, nn.Module) else activation in SILU
    return silu and is_group_norm(norm) and overridden(norm) is None


class GroupNorm(Swapped, nn.GroupNorm):
    """input: (N, C, *S), of 0 to 3 spatial dimensions; others go to the former forward, as do the proxies of torch.fx. The memory
    format is kept. Sums are in fp32 and the result is in the input's dtype, under autocast too, as guided-diffusion's GroupNorm32
    computes with casts."""

    def forward(self, input: Tensor) -> Tensor:
        return normalize(self, input) if is_image(input) and not patched(self) else super().forward(input)


class Sequential(Swapped, nn.Sequential):
    """nn.Sequential in which GroupNorm and SiLU beside each other are one op."""

    def forward(self, input: Any) -> Any:
        if patched(self):
            return super().forward(input)
        modules = list(self)
        while modules:
            module, *modules = modules
            if modules and is_group_norm(module) and type(modules[0]) is nn.SiLU:
                input = activated(modules[0], module, input)
                modules = modules[1:]
            else:
                input = module(input)
        return input


class FusedSiLU(Swapped, nn.SiLU):
    """nn.SiLU. Only in old pickles, where it was the identity behind a `GroupNormSiLU`."""


GroupNormSiLU = GroupNorm  # its name in old pickles, where it computed the SiLU of the module that came next too


def is_group_norm(module: Any) -> bool:
    """Whether `optimize` changed the module to `GroupNorm`, and it is one still."""
    return isinstance(module, GroupNorm) and type(module).forward is GroupNorm.forward


def is_image(x: Any) -> bool:
    """Whether x is a tensor that group_norm takes."""
    return isinstance(x, Tensor) and 2 <= x.dim() <= 5
