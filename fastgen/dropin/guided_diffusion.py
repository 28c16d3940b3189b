"""The blocks of guided-diffusion (Dhariwal & Nichol 2021), which people carry in their own trees: known by class name and by what
their code says, so that a fork that changed it is left alone."""

from types import FunctionType
from typing import Any

from torch import Tensor, nn

from fastgen.dropin.block import Block
from fastgen.dropin.norms import is_group_norm, normalize, normalize_beside
from fastgen.dropin.swap import overridden, plain
from fastgen.functional import attention_qkv
from fastgen_kernels.attention import Order


def is_group_norm32(cls: type) -> bool:
    """Whether it is guided-diffusion's GroupNorm32, super().forward(x.float()).type(x.dtype), which group_norm computes without
    the casts."""
    return cls.__name__ == "GroupNorm32" and _names(cls, "forward") == {"super", "forward", "float", "type", "dtype"}


def is_res_block(cls: type) -> bool:
    """Whether it is guided-diffusion's ResBlock: _forward reads the same names as there."""
    known = {
        "updown", "in_layers", "h_upd", "x_upd", "emb_layers", "type", "dtype", "len", "shape", "use_scale_shift_norm",
        "out_layers", "th", "chunk", "skip_connection",
    }  # fmt: skip
    return cls.__name__ == "ResBlock" and _names(cls, "_forward") == known


def is_attention_block(cls: type) -> bool:
    """Whether it is guided-diffusion's AttentionBlock: _forward reads the same names as there."""
    known = {"shape", "reshape", "qkv", "norm", "attention", "proj_out"}
    return cls.__name__ == "AttentionBlock" and _names(cls, "_forward") == known


class ResBlock(Block):
    """The embedding is added before the second norm, or scales and shifts what that gives."""

    fuses = "norm + SiLU; embedding + norm + SiLU"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        for name in ("in_layers", "out_layers"):
            layers = getattr(module, name)
            if overridden(layers) or not is_group_norm(layers[0]) or overridden(layers[0]) or not plain(layers[1], nn.SiLU):
                return f"its {name} begin with {', '.join(type(layer).__name__ for layer in layers[:2])}, or have hooks"
        return None

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.obstacle(self):
            return super()._forward(x, emb)  # type: ignore[misc]  # the former class has it
        norm1, _, conv1 = self.in_layers
        norm2, _, dropout, conv2 = self.out_layers
        h, x = normalize_beside(norm1, x, activation="silu")
        if self.updown:
            h, x = self.h_upd(h), self.x_upd(x)
        h = conv1(h)
        emb = self.emb_layers(emb).type(h.dtype)
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = normalize(norm2, h, activation="silu", scale=scale, shift=shift)
        else:
            h = normalize(norm2, h, activation="silu", pre_bias=emb)
        return self.skip_connection(x) + conv2(dropout(h))


class AttentionBlock(Block):
    """q, k and v are read where the convolution wrote them, and the attention's weights are never stored."""

    fuses = "group_norm and attention in place"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        for name in ("norm", "attention"):
            if reason := overridden(getattr(module, name)):
                return f"its {name} is called: {reason}"
        if not is_group_norm(module.norm):
            return f"its norm is {type(module.norm).__name__}"
        return None if _order(type(module.attention)) else f"its attention is {type(module.attention).__name__}"

    def _forward(self, x: Tensor) -> Tensor:
        order = _order(type(self.attention))
        if order is None or self.obstacle(self):
            return super()._forward(x)  # type: ignore[misc]  # the former class has it
        h, skip = normalize_beside(self.norm, x.flatten(2))
        h = attention_qkv(self.qkv(h), self.attention.n_heads, order=order)
        return (skip + self.proj_out(h)).view_as(x)


_SCALED_DOT_PRODUCT = {"shape", "n_heads", "math", "sqrt", "th", "einsum", "softmax", "float", "type", "dtype", "reshape"}


def _order(cls: type) -> Order | None:
    """How the channels of q, k and v follow one another; None for an attention of another kind."""
    names = _names(cls, "forward")
    if cls.__name__ == "QKVAttentionLegacy" and names == _SCALED_DOT_PRODUCT | {"split"}:
        return "head_major"
    return "qkv_major" if cls.__name__ == "QKVAttention" and names == _SCALED_DOT_PRODUCT | {"chunk", "view"} else None


def _names(cls: type, method: str) -> set[str]:
    """What a method's code reads, globals and attributes."""
    function = getattr(cls, method, None)
    return set(function.__code__.co_names) if isinstance(function, FunctionType) else set()
