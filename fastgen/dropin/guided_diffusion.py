"""The blocks of guided-diffusion (Dhariwal & Nichol 2021), which people carry in their own trees: known by class name, by the
names that their code reads, and by what it computes on a small example, so that a fork that changed it is left alone."""

from collections.abc import Callable
from functools import cache
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from fastgen.dropin.block import Block
from fastgen.dropin.norms import Sequential, is_group_norm, normalize_beside, normalize_embedded
from fastgen.dropin.swap import overridden, overrides, plain
from fastgen.functional import attention_qkv
from fastgen_kernels.attention import Order


def is_group_norm32(cls: Any) -> bool:
    """Whether it is guided-diffusion's GroupNorm32, super().forward(x.float()).type(x.dtype), which group_norm computes without
    the casts."""
    return cls.__name__ == "GroupNorm32" and _is_group_norm32(cls, cls.forward)


@cache
def _is_group_norm32(cls: Any, forward: Any) -> bool:
    if _names(forward) != {"super", "forward", "float", "type", "dtype"}:
        return False

    def got() -> Tensor:
        norm: Any = cls.__new__(cls)
        nn.GroupNorm.__init__(norm, 2, 4, 0.1)
        return forward(_filled(norm), _example(2, 4, 6))

    def expected() -> Tensor:
        return _filled(nn.GroupNorm(2, 4, 0.1))(_example(2, 4, 6))

    return overrides(cls, nn.GroupNorm) == ["forward"] and _agree(got, expected)


def is_res_block(cls: Any) -> bool:
    """Whether it is guided-diffusion's ResBlock."""
    return cls.__name__ == "ResBlock" and _is_res_block(getattr(cls, "_forward", None))


@cache
def _is_res_block(forward: Any) -> bool:
    known = {
        "updown", "in_layers", "h_upd", "x_upd", "emb_layers", "type", "dtype", "len", "shape", "use_scale_shift_norm",
        "out_layers", "th", "chunk", "skip_connection",
    }  # fmt: skip
    if _names(forward) != known:
        return False
    return all(
        _agree(lambda: forward(block, *given), lambda: _residual(block, *given))  # noqa: B023
        for block, given in _res_blocks()
    )


def is_attention_block(cls: Any) -> bool:
    """Whether it is guided-diffusion's AttentionBlock."""
    return cls.__name__ == "AttentionBlock" and _is_attention_block(getattr(cls, "_forward", None))


@cache
def _is_attention_block(forward: Any) -> bool:
    if _names(forward) != {"shape", "reshape", "qkv", "norm", "attention", "proj_out"}:
        return False

    def block() -> Any:
        layers = {"norm": nn.GroupNorm(2, 4), "qkv": nn.Conv1d(4, 12, 1), "proj_out": nn.Conv1d(4, 4, 1)}
        attention = _Attention()
        return SimpleNamespace(attention=attention, **{name: _filled(layer) for name, layer in layers.items()})

    x = _example(2, 4, 3, 2)
    return _agree(lambda: forward(block(), x), lambda: _attended(block(), x, "qkv_major"))


class ResBlock(Block):
    """The embedding is added before the second norm, or scales and shifts what that gives."""

    fuses = "norm + SiLU; embedding + norm + SiLU"
    stands_for = ("_forward",)

    @classmethod
    def unknown(cls, former: Any) -> str | None:
        return None if is_res_block(former) else "its _forward is not guided-diffusion's"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        for name in ("in_layers", "out_layers"):
            layers = getattr(module, name)
            known = type(layers).forward in (nn.Sequential.forward, Sequential.forward) and not overridden(layers)
            if not known or not is_group_norm(layers[0]) or overridden(layers[0]) or not plain(layers[1], nn.SiLU):
                return f"its {name} begin with {', '.join(type(layer).__name__ for layer in layers[:2])}, or have hooks"
        return None

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if not self.fits():
            return super()._forward(x, emb)  # type: ignore[misc]  # the former class has it
        return _residual(self, x, emb)


class AttentionBlock(Block):
    """q, k and v are read where the convolution wrote them, and the attention's weights are never stored."""

    fuses = "group_norm and attention in place"
    stands_for = ("_forward",)

    @classmethod
    def unknown(cls, former: Any) -> str | None:
        return None if is_attention_block(former) else "its _forward is not guided-diffusion's"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        for name in ("norm", "attention"):
            if reason := overridden(getattr(module, name)):
                return f"its {name} is called: {reason}"
        if not is_group_norm(module.norm):
            return f"its norm is {type(module.norm).__name__}"
        attention: Any = type(module.attention)
        known = attention in _ORDERS and attention.forward is _ORDERS[attention][0]
        return None if known else f"its attention is {attention.__name__}"

    @classmethod
    def learn(cls, module: Any) -> None:
        attention: Any = type(module.attention)
        if order := _order(attention):
            _ORDERS[attention] = attention.forward, order

    def _forward(self, x: Tensor) -> Tensor:
        if not self.fits():
            return super()._forward(x)  # type: ignore[misc]  # the former class has it
        return _attended(self, x, _ORDERS[type(self.attention)][1])


def _residual(block: Any, x: Tensor, emb: Tensor) -> Tensor:
    """What a ResBlock computes."""
    norm1, _, conv1 = block.in_layers
    norm2, _, dropout, conv2 = block.out_layers
    h, x = normalize_beside(norm1, x, activation="silu")
    if block.updown:
        h, x = block.h_upd(h), block.x_upd(x)
    h = conv1(h)
    h = normalize_embedded(norm2, h, block.emb_layers(emb).type(h.dtype), block.use_scale_shift_norm)
    return block.skip_connection(x) + conv2(dropout(h))


def _attended(block: Any, x: Tensor, order: Order) -> Tensor:
    """What an AttentionBlock computes."""
    h, skip = normalize_beside(block.norm, x.flatten(2))
    h = attention_qkv(block.qkv(h), block.attention.n_heads, order=order)
    return (skip + block.proj_out(h)).view_as(x)


_SCALED_DOT_PRODUCT = {"shape", "n_heads", "math", "sqrt", "th", "einsum", "softmax", "float", "type", "dtype", "reshape"}
_ORDERS: dict[type, tuple[Any, Order]] = {}  # of the classes of attention that were met: their forward, and its order


def _order(cls: Any) -> Order | None:
    """How the channels of q, k and v follow one another; None for an attention of another kind."""
    orders: dict[str, Order] = {"QKVAttentionLegacy": "head_major", "QKVAttention": "qkv_major"}
    order = orders.get(cls.__name__)
    return order if order is not None and _attends(cls.forward, order) else None


@cache
def _attends(forward: Any, order: Order) -> bool:
    if _names(forward) != _SCALED_DOT_PRODUCT | ({"split"} if order == "head_major" else {"chunk", "view"}):
        return False
    qkv, attention = _example(2, 12, 5), SimpleNamespace(n_heads=2)
    return _agree(lambda: forward(attention, qkv), lambda: attention_qkv(qkv, 2, order=order))


def _names(function: Any) -> set[str]:
    """What a function's code reads, globals and attributes."""
    return set(function.__code__.co_names) if isinstance(function, FunctionType) else set()


def _agree(got: Callable[[], Tensor], expected: Callable[[], Tensor]) -> bool:
    """Whether both compute the same, to rounding; a fork may raise anything. The caller's random numbers stay."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
        try:
            return torch.allclose(got(), expected(), rtol=1e-4, atol=1e-4)
        except Exception:  # it wants what the example has not
            return False


def _example(*shape: int) -> Tensor:
    """Numbers of both signs, large and small, in no simple relation."""
    x = torch.arange(torch.Size(shape).numel(), dtype=torch.float32, device="cpu")
    return (3 * torch.sin(1 + x * x)).view(shape)


def _filled(module: Any) -> Any:
    """The module, with such parameters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(_example(*parameter.shape))
    return module


class _Attention:
    """Stands for an attention of two heads."""

    n_heads = 2

    def __call__(self, qkv: Tensor) -> Tensor:
        return attention_qkv(qkv, self.n_heads)


def _res_blocks() -> list[tuple[Any, tuple[Tensor, Tensor]]]:
    """Small blocks of all options, and what they are given."""
    made = []
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for updown in (False, True):
            for scale_shift in (False, True):
                layers = {
                    "in_layers": nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 6, 1)),
                    "emb_layers": nn.Sequential(nn.SiLU(), nn.Linear(3, 12 if scale_shift else 6)),
                    "out_layers": nn.Sequential(nn.GroupNorm(2, 6), nn.SiLU(), nn.Identity(), nn.Conv2d(6, 6, 1)),
                    "skip_connection": nn.Conv2d(4, 6, 1),
                    "h_upd": nn.AvgPool2d(2),
                    "x_upd": nn.MaxPool2d(2),
                }
                block = SimpleNamespace(updown=updown, use_scale_shift_norm=scale_shift)
                vars(block).update({name: _filled(layer) for name, layer in layers.items()})
                made.append((block, (_example(2, 4, 4, 4), _example(2, 3))))
    return made
