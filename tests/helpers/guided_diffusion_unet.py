"""A UNet of blocks built as guided-diffusion's are, so that `optimize` knows them."""

import math

import torch as th
import torch.nn.functional as F
from torch import nn


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class Resample(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.factor > 1 else F.avg_pool2d(x, 2)


class ResBlock(nn.Module):
    def __init__(self, channels, emb_channels, out_channels, use_scale_shift_norm=False, factor=1):
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(GroupNorm32(8, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.updown = factor != 1
        self.h_upd = Resample(factor) if self.updown else nn.Identity()
        self.x_upd = Resample(factor) if self.updown else nn.Identity()
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, (1 + use_scale_shift_norm) * out_channels))
        out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.out_layers = nn.Sequential(GroupNorm32(8, out_channels), nn.SiLU(), nn.Dropout(0.0), out)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        return self._forward(x, emb)

    def _forward(self, x, emb):
        if self.updown:
            rest, conv = self.in_layers[:-1], self.in_layers[-1]
            h = conv(self.h_upd(rest(x)))
            x = self.x_upd(x)
        else:
            h = self.in_layers(x)
        e = self.emb_layers(emb).type(h.dtype)
        while len(e.shape) < len(h.shape):
            e = e[..., None]
        if self.use_scale_shift_norm:
            norm, rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = th.chunk(e, 2, dim=1)
            h = rest(norm(h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + e)
        return self.skip_connection(x) + h


class QKVAttentionLegacy(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        n, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(n * self.n_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = th.einsum("bct,bcs->bts", q * scale, k * scale)
        weight = th.softmax(weight.float(), dim=-1).type(weight.dtype)
        return th.einsum("bts,bcs->bct", weight, v).reshape(n, -1, length)


class QKVAttention(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        n, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.chunk(3, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        heads = n * self.n_heads, ch, length
        weight = th.einsum("bct,bcs->bts", (q * scale).view(*heads), (k * scale).view(*heads))
        weight = th.softmax(weight.float(), dim=-1).type(weight.dtype)
        return th.einsum("bts,bcs->bct", weight, v.reshape(*heads)).reshape(n, -1, length)


class AttentionBlock(nn.Module):
    def __init__(self, channels, num_heads, use_new_attention_order=False):
        super().__init__()
        self.norm = GroupNorm32(8, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = (QKVAttention if use_new_attention_order else QKVAttentionLegacy)(num_heads)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x):
        return self._forward(x)

    def _forward(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.proj_out(self.attention(self.qkv(self.norm(x))))
        return (x + h).reshape(b, c, *spatial)


class UNetModel(nn.Module):
    def __init__(self, use_new_attention_order=False, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.down = ResBlock(16, 12, 32, factor=0.5, **options)
        self.middle = ResBlock(32, 12, 32, **options)
        self.attention = AttentionBlock(32, 4, use_new_attention_order)
        self.up = ResBlock(32, 12, 16, factor=2, **options)
        self.out = nn.Sequential(GroupNorm32(8, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x, emb):
        h = self.attention(self.middle(self.down(self.stem(x), emb), emb))
        return (self.out(self.up(h, emb)),)
