"""The UNet of DDPM and ADM: what denoises pixels and latents."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fastgen.errors import expect, is_number, is_whole
from fastgen.functional import timestep_embedding
from fastgen.models.layers import (
    CrossAttention,
    GroupNorm,
    ResBlock,
    Residual,
    SelfAttention,
    Upsample,
    conv,
    expect_sizes,
    level_widths,
    patchify,
    unpatchify,
    zero_init,
)
from fastgen_kernels.checks import check_float, check_range, check_shape
from fastgen_kernels.messages import shown


class UNet(nn.Module):
    """net(x, t, label=None, context=None) -> out.

    x: (N, in_channels, *S), S of `dims` dimensions, 1 to 3, each a multiple of `multiple`. t: (N,) in [0, 1]. label: int64 (N,),
    in [0, num_classes]; num_classes, or no label at all, is the null label. context: (N, L, context_dim).
    out: (N, out_channels, *S).

    channels: width at the first level; multipliers: width of each level over it, each level half the size of the one before;
    blocks: residual blocks per level; attention_levels: the levels (0 is the first) whose blocks attend; mid_attention: whether
    the lowest level attends between its blocks; head_dim: channels of a head (at most; a narrower level has one head); groups: of
    every GroupNorm; patch: side of the pixel-unshuffle at the stem; checkpointing: recompute each block in backward instead of
    keeping its activations.

    Raises ValueError for sizes below 1 and widths that groups or heads do not divide, and in forward for a size, label or context
    that does not fit; the values of t and label are checked on a CPU alone, since a GPU would wait. The design is that of DDPM
    (Ho et al. 2020, arXiv:2006.11239, appendix B) with ADM's scale and shift (Dhariwal & Nichol 2021, arXiv:2105.05233, section
    3).
    """

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int | None = None,
        dims: int = 2,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 4),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (),
        mid_attention: bool = True,
        head_dim: int = 64,
        groups: int = 32,
        patch: int = 1,
        dropout: float = 0.0,
        num_classes: int | None = None,
        context_dim: int | None = None,
        checkpointing: bool = False,
    ):
        super().__init__()
        expect("dims", dims, is_whole(dims, 1, 3), "1, 2 or 3")
        expect_sizes(in_channels=in_channels, channels=channels, blocks=blocks, head_dim=head_dim, groups=groups, patch=patch)
        for name, size in (("out_channels", out_channels), ("num_classes", num_classes), ("context_dim", context_dim)):
            expect(name, size, size is None or is_whole(size, 1), "None or a whole number >= 1")
        expect("dropout", dropout, is_number(dropout, 0, 1) and dropout != 1, "a number in [0, 1)")
        levels = isinstance(attention_levels, tuple | list | set | frozenset | range)
        levels = levels and all(is_whole(level, 0) for level in attention_levels)
        expect("attention_levels", attention_levels, levels, "levels, whole numbers >= 0")
        widths = level_widths(channels, multipliers)
        _check_widths(widths, groups, head_dim, attention_levels)
        self.in_channels, self.out_channels = in_channels, out_channels or in_channels
        self.dims, self.patch, self.checkpointing = dims, patch, checkpointing
        self.channels, self.num_classes, self.context_dim = channels, num_classes, context_dim
        self.multiple = patch * 2 ** (len(widths) - 1)
        emb_dim = 4 * channels

        def block(cin: int, cout: int, attend: bool) -> Block:
            return Block(dims, cin, cout, groups, emb_dim, dropout, max(1, cout // head_dim) if attend else 0, context_dim)

        self.time = nn.Sequential(nn.Linear(channels, emb_dim), nn.SiLU(), nn.Linear(emb_dim, emb_dim))
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, emb_dim)
        self.stem = conv(dims, in_channels * patch**dims, channels)

        self.down = nn.ModuleList()
        skips, width = [channels], channels
        for level, cout in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(width, cout, level in attention_levels))
                width = cout
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(conv(dims, width, width, stride=2))
                skips.append(width)

        self.mid = nn.ModuleList([block(width, width, mid_attention), block(width, width, False)])

        self.up = nn.ModuleList()
        for level, cout in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), cout, level in attention_levels))
                width = cout
            if level > 0:
                self.up.append(Upsample(dims, width))

        self.norm = GroupNorm(groups, width)
        self.head = zero_init(conv(dims, width, self.out_channels * patch**dims))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """As the class says. out is in x's dtype, or in autocast's."""
        self._check(x, t, label, context)
        emb = self._embed(t, label)

        h, skips = Residual(self.stem(patchify(x, self.patch))), []
        for layer in [*self.down, self.mid[0]]:
            h, x = self._run(layer, h, emb, context)  # x is what the layer was given
            skips.append(x)
        h, _ = self._run(self.mid[1], h, emb, context)

        for layer in self.up:
            if isinstance(layer, Block):
                h = Residual(torch.cat([h.sum(), skips.pop()], dim=1))
            h, _ = self._run(layer, h, emb, context)

        y, _ = self.norm(h, activation="silu")
        return unpatchify(self.head(y), self.patch)

    def _embed(self, t: Tensor, label: Tensor | None) -> Tensor:
        """Time and class as one embedding, activated once for all blocks: [N, 4·channels]."""
        emb = self.time(timestep_embedding(t, self.channels))
        if self.label is not None:
            if label is None:
                label = torch.full_like(t, self.label.num_embeddings - 1, dtype=torch.int64)
            emb = emb + self.label(label)
        return nn.functional.silu(emb)

    def _run(self, layer: nn.Module, h: Residual, emb: Tensor, context: Tensor | None) -> tuple[Residual, Tensor]:
        """What comes out of the layer, and what went in, its sum made."""
        run = partial(checkpoint, layer, use_reentrant=False) if self.checkpointing and self.training else layer
        if isinstance(layer, Block):
            return run(h, emb, context)
        x = h.sum()
        return Residual(run(x)), x

    def _check(self, x: Tensor, t: Tensor, label: Tensor | None, context: Tensor | None) -> None:
        check_float(x=x, t=t)
        if x.dim() != self.dims + 2 or x.shape[1] != self.in_channels or any(s % self.multiple or s == 0 for s in x.shape[2:]):
            expected = ", ".join(["N", str(self.in_channels)] + [f"multiple of {self.multiple}"] * self.dims)
            raise ValueError(f"x: expected ({expected}), got {tuple(x.shape)}")
        check_shape(x.shape[:1], "(N,)", t=t)
        if label is not None:
            if self.num_classes is None:
                raise ValueError("label: expected None from a UNet without num_classes, got labels")
            if getattr(label, "dtype", None) not in (torch.int64, torch.int32):
                raise TypeError(f"label: expected int64 (N,), got {getattr(label, 'dtype', shown(label))}")
            check_shape(x.shape[:1], "(N,)", label=label)
            check_range("label", label, 0, self.num_classes)
        if (context is None) != (self.context_dim is None):
            raise ValueError(
                f"context: expected {'None' if self.context_dim is None else f'(N, L, {self.context_dim})'}, "
                f"got {None if context is None else tuple(context.shape)}"
            )


class Block(nn.Module):
    """A residual block; self-attention where num_heads > 0; cross-attention where there is a context_dim too."""

    def __init__(
        self,
        dims: int,
        in_channels: int,
        out_channels: int,
        groups: int,
        emb_dim: int,
        dropout: float,
        num_heads: int,
        context_dim: int | None,
    ):
        super().__init__()
        self.res = ResBlock(dims, in_channels, out_channels, groups, emb_dim, dropout)
        self.attention = SelfAttention(dims, out_channels, groups, num_heads) if num_heads else None
        self.cross = (
            CrossAttention(dims, out_channels, groups, num_heads, context_dim) if num_heads and context_dim is not None else None
        )

    def forward(self, h: Residual, emb: Tensor, context: Tensor | None = None) -> tuple[Residual, Tensor]:
        """h: (N, in_channels, *S). emb: (N, emb_dim). context: (N, L, context_dim). The result, (N, out_channels, *S), and
        h.sum(), which the skip connection takes."""
        h, x = self.res(h, emb)
        if self.attention is not None:
            h = self.attention(h)
        if self.cross is not None:
            h = self.cross(h, context)
        return h, x


def _check_widths(widths: list[int], groups: int, head_dim: int, attention_levels: tuple[int, ...]) -> None:
    for width in widths:
        if width % groups:
            raise ValueError(f"groups: expected a divisor of every level's channels {widths}, got {groups}")
        if width > head_dim and width % head_dim:
            raise ValueError(f"head_dim: expected a divisor of every wider level's channels {widths}, got {head_dim}")
    if any(level not in range(len(widths)) for level in attention_levels):
        raise ValueError(f"attention_levels: expected levels from 0 to {len(widths) - 1}, got {tuple(attention_levels)}")
