"""The blocks that the models are built of. N batch, C channels, *S spatial, D width of an embedding.

A block with a residual connection returns x and its branch, not their sum, which the next GroupNorm makes: see `Residual`.
"""

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.errors import expect, is_whole
from fastgen.functional import add_group_norm, attention, attention_qkv
from fastgen_kernels.group_norm import Activation


def expect_sizes(**sizes: Any) -> None:
    """Raises ValueError for a size that is not a whole number >= 1, by its name."""
    for name, size in sizes.items():
        expect(name, size, is_whole(size, 1), "a whole number >= 1")


def level_widths(channels: int, multipliers: tuple[int, ...]) -> list[int]:
    """The width of each level. Raises ValueError for multipliers that are not one or more whole numbers >= 1."""
    given = isinstance(multipliers, tuple | list) and len(multipliers) > 0 and all(is_whole(m, 1) for m in multipliers)
    expect("multipliers", multipliers, given, "one whole number >= 1 or several")
    return [channels * m for m in multipliers]


_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def conv(dims: int, in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """A convolution over `dims` spatial dimensions, 1 to 3: (N, in_channels, *S) to (N, out_channels, *S), at stride 2 to
    (N, out_channels, *S/2), rounded up. kernel: odd."""
    return _CONV[dims](in_channels, out_channels, kernel, stride=stride, padding=kernel // 2)


def zero_init(module: nn.Module) -> nn.Module:
    """The module with zeros in every parameter, in place: a residual block that ends in it is the identity at first."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def patchify(x: Tensor, patch: int) -> Tensor:
    """(N, C, *S) to (N, C·patch^dims, *S/patch): a pixel-unshuffle over one to three spatial dimensions."""
    if x.dim() == 4:
        return F.pixel_unshuffle(x, patch)
    dims = x.dim() - 2
    x = x.reshape(*x.shape[:2], *[part for side in x.shape[2:] for part in (side // patch, patch)])
    return x.permute(0, 1, *range(3, 2 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)).flatten(1, 1 + dims)


def unpatchify(x: Tensor, patch: int) -> Tensor:
    """(N, C·patch^dims, *S/patch) to (N, C, *S), the inverse of patchify."""
    if x.dim() == 4:
        return F.pixel_shuffle(x, patch)
    dims = x.dim() - 2
    sides = [side * patch for side in x.shape[2:]]
    x = x.unflatten(1, (-1, *[patch] * dims))
    order = [axis for i in range(2, 2 + dims) for axis in (i + dims, i)]
    return x.permute(0, 1, *order).reshape(*x.shape[:2], *sides)


class Residual(NamedTuple):
    """A residual connection, x + branch, both (N, C, *S), before the addition: the GroupNorm that reads it adds in the same pass
    over memory. Without a branch it is x."""

    x: Tensor
    branch: Tensor | None = None

    def sum(self) -> Tensor:
        """x + branch, (N, C, *S)."""
        return self.x if self.branch is None else self.x + self.branch


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm with what surrounds it in a UNet fused: see `fastgen.functional.add_group_norm`."""

    def forward(  # type: ignore[override]  # a Residual for a tensor
        self, h: Residual, *, activation: Activation | None = None, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The norm of h.sum(), and h.sum(), each (N, C, *S). scale, shift: (N, C), of the norm's output."""
        options: dict[str, Any] = {"activation": activation, "scale": scale, "shift": shift}
        return add_group_norm(h.x, h.branch, self.num_groups, self.weight, self.bias, self.eps, **options)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the second norm scaled and shifted by linear functions of an embedding
    (ADM, Dhariwal & Nichol 2021, arXiv:2105.05233, section 3). Without `emb_dim` there is no embedding. A 1x1 convolution changes
    x's channels where in_channels and out_channels differ.
    """

    def __init__(
        self, dims: int, in_channels: int, out_channels: int, groups: int, emb_dim: int | None = None, dropout: float = 0.0
    ):
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = conv(dims, in_channels, out_channels)
        self.emb = None if emb_dim is None else nn.Linear(emb_dim, 2 * out_channels)
        self.norm2 = GroupNorm(groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(conv(dims, out_channels, out_channels))
        self.skip = nn.Identity() if in_channels == out_channels else conv(dims, in_channels, out_channels, kernel=1)

    def forward(self, h: Residual, emb: Tensor | None = None) -> tuple[Residual, Tensor]:
        """h: (N, in_channels, *S). emb: (N, emb_dim), already activated. The result, (N, out_channels, *S), and h.sum()."""
        y, x = self.norm1(h, activation="silu")
        y = self.conv1(y)
        scale, shift = (None, None) if self.emb is None else self.emb(emb).chunk(2, dim=1)
        y, _ = self.norm2(Residual(y), activation="silu", scale=scale, shift=shift)
        return Residual(self.skip(x), self.conv2(self.dropout(y))), x


class SelfAttention(nn.Module):
    """x + out(attention(qkv(norm(x)))), (N, C, *S), over all positions of S (DDPM, Ho et al. 2020, arXiv:2006.11239, appendix B).
    num_heads: a divisor of C."""

    def __init__(self, dims: int, channels: int, groups: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(groups, channels)
        self.qkv = conv(dims, channels, 3 * channels, kernel=1)
        self.out = zero_init(conv(dims, channels, channels, kernel=1))

    def forward(self, h: Residual) -> Residual:
        y, x = self.norm(h)
        return Residual(x, self.out(attention_qkv(self.qkv(y), self.num_heads)))


class CrossAttention(nn.Module):
    """x + out(attention(q(norm(x)), k(context), v(context))), (N, C, *S); context: (N, L, context_dim) (Rombach et al. 2022,
    arXiv:2112.10752, section 3.3). num_heads: a divisor of C."""

    def __init__(self, dims: int, channels: int, groups: int, num_heads: int, context_dim: int):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(groups, channels)
        self.q = conv(dims, channels, channels, kernel=1)
        self.kv = nn.Linear(context_dim, 2 * channels)
        self.out = zero_init(conv(dims, channels, channels, kernel=1))

    def forward(self, h: Residual, context: Tensor) -> Residual:
        y, x = self.norm(h)
        q = self.q(y).flatten(2).unflatten(1, (self.num_heads, -1)).transpose(2, 3)  # [N, H, S, D/H]
        k, v = self.kv(context).unflatten(2, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # [N, H, L, D/H] each
        y = attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return Residual(x, self.out(y))


class Upsample(nn.Module):
    """(N, C, *S) to (N, C, *2S): nearest neighbours, then a convolution."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.conv = conv(dims, channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
