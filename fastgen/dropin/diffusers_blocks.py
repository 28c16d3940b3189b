"""The blocks of diffusers' UNets and autoencoders. They know their former class by its name and its source: diffusers need not be
installed. Whatever they are not made for goes to the former forward."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastgen.dropin.block import Block
from fastgen.dropin.diffusers_sources import FUSED, find_processors, full_name, processor_kind, unknown_source
from fastgen.dropin.norms import is_group_norm, normalize, normalize_beside, normalize_embedded
from fastgen.dropin.swap import overridden, overrides, plain
from fastgen.functional import add_layer_norm, attention, attention_qkv, geglu
from fastgen_kernels.layout import channels_last, like


class DiffusersBlock(Block):
    """A mixin for the class of this name, and for those derived from it that compute nothing else."""

    of: str

    @classmethod
    def unknown(cls, former: Any) -> str | None:
        known = next((base for base in former.__mro__ if full_name(base) == cls.of), None)
        if known is None:
            return f"its class is not {cls.of}"
        others = overrides(former, known)
        return f"its class has a {others[0]} of its own" if others else unknown_source(known)


class ResnetBlock2D(DiffusersBlock):
    """norm1 + SiLU; the time embedding + norm2 + SiLU; the sum of both branches, not divided where the divisor is 1."""

    of = "diffusers.models.resnet.ResnetBlock2D"
    fuses = "norm1 + SiLU; time embedding + norm2 + SiLU; sum without division"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        if type(module.nonlinearity) is not nn.SiLU:
            return f"its activation is {type(module.nonlinearity).__name__}, not SiLU"
        if reason := overridden(module.nonlinearity):
            return f"its activation is called: {reason}"
        return _not_read(norm1=module.norm1, norm2=module.norm2)

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        way = self.time_embedding_norm  # any other than these two leaves the embedding out
        embeds = temb is not None and temb.dim() == 2 and self.time_emb_proj is not None and way in ("default", "scale_shift")
        known = input_tensor.dim() == 4 and (embeds or (temb is None and way != "scale_shift"))
        if not known or not self.fits():
            return super().forward(input_tensor, temb, *args, **kwargs)
        h, x = normalize_beside(self.norm1, input_tensor, activation="silu")
        for resample in (self.upsample, self.downsample):
            if resample is not None:
                x, h = resample(x), resample(h)
        h = self.conv1(h)

        if embeds:
            emb = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
            h = normalize_embedded(self.norm2, h, emb, way == "scale_shift")
        else:
            h = normalize(self.norm2, h, activation="silu")

        h = self.conv2(self.dropout(h))
        x = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return _divided(x + h, self.output_scale_factor)


class Upsample2D(DiffusersBlock):
    """In channels_last at any batch size: diffusers leaves it from 64 on, for PyTorch's kernel failed beyond 2³¹ elements."""

    of = "diffusers.models.upsampling.Upsample2D"
    fuses = "channels_last at any batch size"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        return "it is a transposed convolution" if module.use_conv_transpose else None

    def forward(self, hidden_states: Tensor, output_size: Any = None, *args: Any, **kwargs: Any) -> Tensor:
        x = hidden_states
        as_made = output_size is None and self.norm is None and self.interpolate and not self.use_conv_transpose
        as_made = as_made and x.shape[1] == self.channels and self.fits()
        if not as_made or not channels_last(x) or 4 * x.numel() >= 2**31:
            return super().forward(x, output_size, *args, **kwargs)
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        if not self.use_conv:
            return x
        return self.conv(x) if self.name == "conv" else self.Conv2d_0(x)


class Attention(DiffusersBlock):
    """Its group norm without transposes; attention by the faster of kernels and SDPA, of q, k and v where they lie."""

    of = "diffusers.models.attention_processor.Attention"
    fuses = "group_norm and attention in place"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        if processor_kind(module.processor) is None:
            return f"its processor is {type(module.processor).__name__}"
        for name in ("spatial_norm", "norm_cross", "norm_q", "norm_k"):
            if getattr(module, name) is not None:
                return f"it has a {name}"
        if module.inner_kv_dim != module.inner_dim:
            return "it has fewer heads of keys than of queries"
        return None if module.group_norm is None else _not_read(group_norm=module.group_norm)

    @classmethod
    def learn(cls, module: Any) -> None:
        find_processors()

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **cross_attention_kwargs: Any,
    ) -> Tensor:
        x, context = hidden_states, encoder_hidden_states
        as_made = attention_mask is None and set(cross_attention_kwargs) <= {"temb"}  # which a spatial_norm reads
        as_made = as_made and x.dim() in (3, 4) and (context is None or context.shape[0] == x.shape[0])
        if not as_made or not self.fits():
            return super().forward(hidden_states, encoder_hidden_states, attention_mask, **cross_attention_kwargs)
        h = x if x.dim() == 3 else x.flatten(2).transpose(1, 2)  # [N, T, C]
        if self.group_norm is not None:
            h, skip = (y.transpose(1, 2) for y in normalize_beside(self.group_norm, h.transpose(1, 2)))
            x = skip if x.dim() == 3 else skip.transpose(1, 2).view(x.shape)

        fused = processor_kind(self.processor) == FUSED
        if fused and context is None:
            out = attention_qkv(self.to_qkv(h).transpose(1, 2), self.heads).transpose(1, 2)
        else:
            context = h if context is None else context
            if fused:
                projected = self.to_q(h), *self.to_kv(context).chunk(2, dim=2)
            else:
                projected = self.to_q(h), self.to_k(context), self.to_v(context)
            q, k, v = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in projected)  # [N, H, T, D]
            out = attention(q, k, v).transpose(1, 2).flatten(2)

        out = self.to_out[1](self.to_out[0](out))
        out = out if x.dim() == 3 else out.transpose(1, 2).reshape(x.shape)
        return _divided(out + x if self.residual_connection else out, self.rescale_output_factor)


class Transformer2DModel(DiffusersBlock):
    """Of images in channels_last, tokens are a view: diffusers makes contiguous images of them."""

    of = "diffusers.models.transformers.transformer_2d.Transformer2DModel"
    stands_for = ("_get_output_for_continuous_inputs",)
    fuses = "channels_last images as tokens without copies"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        return None if module.is_input_continuous else "its input is not an image"

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if not self.fits():
            return super()._get_output_for_continuous_inputs(hidden_states, residual, batch_size, height, width, inner_dim)  # type: ignore[misc]

        def image(tokens: Tensor) -> Tensor:
            return like(tokens.transpose(1, 2).reshape(batch_size, inner_dim, height, width), residual)

        h = hidden_states
        h = image(self.proj_out(h)) if self.use_linear_projection else self.proj_out(image(h))
        return h + residual


class BasicTransformerBlock(DiffusersBlock):
    """Each sum is made by the layer norm that reads it."""

    of = "diffusers.models.attention.BasicTransformerBlock"
    fuses = "sum + LayerNorm"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        if module.norm_type != "layer_norm" or module.pos_embed is not None:
            return f"its norms are {module.norm_type}" if module.pos_embed is None else "it has a positional embedding"
        for name in ("norm1", "norm2", "norm3") if module.attn2 is not None else ("norm1", "norm3"):
            norm = getattr(module, name)
            if not plain(norm, nn.LayerNorm):
                return f"its {name} is {type(norm).__name__}, or called: {overridden(norm)}"
        return None

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        timestep: Any = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        x, options = hidden_states, cross_attention_kwargs or {}
        if {"gligen", "scale"} & set(options) or self._chunk_size is not None or x.dim() != 3 or not self.fits():
            return super().forward(
                x,
                attention_mask,
                encoder_hidden_states,
                encoder_attention_mask,
                timestep,
                cross_attention_kwargs,
                *args,
                **kwargs,
            )
        context = encoder_hidden_states if self.only_cross_attention else None
        h, x = _add_layer_norm(self.norm1, x, None)
        h = self.attn1(h, encoder_hidden_states=context, attention_mask=attention_mask, **options)
        if self.attn2 is not None:
            h, x = _add_layer_norm(self.norm2, h, x)
            h = self.attn2(h, encoder_hidden_states=encoder_hidden_states, attention_mask=encoder_attention_mask, **options)
        h, x = _add_layer_norm(self.norm3, h, x)
        return self.ff(h) + x


class GEGLU(DiffusersBlock):
    """Both halves of the projection are read where they lie."""

    of = "diffusers.models.activations.GEGLU"
    stands_for = ("forward", "gelu")
    fuses = "geglu"

    @classmethod
    def obstacle(cls, module: Any) -> str | None:
        return "its gelu is replaced on the instance" if "gelu" in module.__dict__ else None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self.fits():
            return super().forward(hidden_states, *args, **kwargs)
        return geglu(self.proj(hidden_states))


def _add_layer_norm(module: Any, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """The norm of x + residual by an nn.LayerNorm, and the sum."""
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        x, residual = x + residual, None  # as PyTorch broadcasts and promotes
    return add_layer_norm(x, residual, module.weight, module.bias, module.eps)


def _not_read(**norms: nn.Module) -> str | None:
    """Why a norm's parameters are not to be read in its stead."""
    for name, norm in norms.items():
        if not is_group_norm(norm):
            return f"its {name} is {type(norm).__name__}"
        if reason := overridden(norm):
            return f"its {name} is called: {reason}"
    return None


def _divided(x: Tensor, divisor: float) -> Tensor:
    return x if divisor == 1 else x / divisor
