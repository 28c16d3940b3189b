"""nn.GroupNorm anywhere, and the SiLU that follows it."""

from typing import Any

from torch import Tensor, nn

from fastgen.dropin.swap import Swapped, overridden, plain, set_attribute, swap
from fastgen.functional import add_group_norm, group_norm


def normalize(module: Any, x: Tensor, **options: Any) -> Tensor:
    """group_norm of x (N, C, *S) with the module's groups, parameters and eps. options: group_norm's others."""
    return group_norm(x, module.num_groups, module.weight, module.bias, module.eps, **options)


def normalize_beside(module: Any, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The same, and x, for the branch that passes by the norm."""
    return add_group_norm(x, None, module.num_groups, module.weight, module.bias, module.eps, **options)


class GroupNorm(Swapped, nn.GroupNorm):
    """x: (N, C, *S), of 0 to 3 spatial dimensions; others go to the former forward. The memory format is kept. Sums are in fp32
    and the result is in x's dtype, under autocast too, as guided-diffusion's GroupNorm32 computes with casts."""

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self, x) if 2 <= x.dim() <= 5 else super().forward(x)


class GroupNormSiLU(GroupNorm):
    """A GroupNorm with the SiLU that its parent calls next, unless a hook is to see what lies between."""

    following: tuple[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        return normalize(self, x, activation="silu") if fuses(self, *self.following) else super().forward(x)


class FusedSiLU(Swapped, nn.SiLU):
    """The SiLU after a GroupNormSiLU, which has computed it already: the identity."""

    preceding: tuple[nn.Module]

    def forward(self, x: Tensor) -> Tensor:
        return x if fuses(*self.preceding, self) else super().forward(x)


class Sequential(Swapped, nn.Sequential):
    """nn.Sequential in which GroupNorm and SiLU beside each other are one op."""

    def forward(self, x: Any) -> Any:
        modules = list(self)
        while modules:
            module, *modules = modules
            if modules and is_group_norm(module) and plain(modules[0], nn.SiLU) and overridden(module) is None:
                x = normalize(module, x, activation="silu")
                modules = modules[1:]
            else:
                x = module(x)
        return x


def pair(norm: nn.Module, activation: nn.Module) -> None:
    """Makes one op of a norm and the activation that is called on its output and nowhere else."""
    swap(norm, GroupNormSiLU)
    swap(activation, FusedSiLU)
    set_attribute(norm, "following", (activation,))  # in a tuple, so that it is no child
    set_attribute(activation, "preceding", (norm,))


def is_group_norm(module: nn.Module) -> bool:
    """Whether `optimize` changed the module to `GroupNorm`."""
    return isinstance(module, GroupNorm)


def fuses(norm: nn.Module, activation: nn.Module) -> bool:
    """Whether a norm and its activation may be one op: nothing is to see what passes between them."""
    return overridden(norm) is None and overridden(activation) is None
