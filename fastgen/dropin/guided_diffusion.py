"""The blocks of guided-diffusion (Dhariwal & Nichol 2021), which people carry in their own trees: known by class name and by what
their code says, so that a fork that changed it is left alone."""

from types import FunctionType
from typing import Any

from torch import Tensor, nn

from fastgen.dropin.block import Block
from fastgen.dropin.norms import is_group_norm, normalize, normalize_beside
from fastgen.dropin.swap import overridden, plain


def is_group_norm32(cls: type) -> bool:
    """Whether forward is super().forward(x.float()).type(x.dtype), which group_norm does without the casts."""
    return cls.__name__ == "GroupNorm32" and _names(cls, "forward") == {"super", "forward", "float", "type", "dtype"}


def is_res_block(cls: type) -> bool:
    known = {
        "updown", "in_layers", "h_upd", "x_upd", "emb_layers", "type", "dtype", "len", "shape", "use_scale_shift_norm",
        "out_layers", "th", "chunk", "skip_connection",
    }  # fmt: skip
    return cls.__name__ == "ResBlock" and _names(cls, "_forward") == known


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


def _names(cls: type, method: str) -> set[str]:
    """What a method's code reads, globals and attributes."""
    function = getattr(cls, method, None)
    return set(function.__code__.co_names) if isinstance(function, FunctionType) else set()
