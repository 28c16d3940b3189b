"""Ops at named shapes, each beside what a user of PyTorch writes: what traffic, benchmarks and the campaign run over."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.adamw_ema import Profile, Settings, adamw_ema_
from fastgen_kernels.attention import _attention_qkv, attention_qkv
from fastgen_kernels.denoising_loss import denoising_loss
from fastgen_kernels.diffusion_loss import diffusion_loss
from fastgen_kernels.geglu import geglu
from fastgen_kernels.group_norm import add_group_norm, group_norm
from fastgen_kernels.layer_norm import add_layer_norm, layer_norm
from fastgen_kernels.layout import as_ncs
from fastgen_kernels.philox import noise_key, philox_normal
from fastgen_kernels.q_sample import Target, q_sample
from fastgen_kernels.reconstruction_nll import Likelihood, reconstruction_nll
from fastgen_kernels.reparameterize_kl import reparameterize_kl
from fastgen_kernels.sampler_step import sampler_step
from fastgen_kernels.timestep_embedding import timestep_embedding, timestep_embedding_reference
from fastgen_kernels.to_x0 import to_x0
from proof.cache import second_reads

Outputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Case:
    """ours and eager take the tensors that `inputs` makes on a device and return the outputs; those that require a gradient are
    differentiated. forward and backward are the floors: the fewest bytes that must be read and written each way, backward None
    where there is nothing to differentiate; normals is how many numbers are drawn each way; second_reads is each way the share of
    what is read again that should be in the L2 cache, None where nothing is."""

    op: str
    shape: str
    inputs: Callable[[torch.device], tuple[Tensor, ...]]
    ours: Callable[..., Outputs]
    eager: Callable[..., Outputs]
    forward: int
    backward: int | None = None
    normals: int = 0
    second_reads: Callable[[], tuple[float | None, float | None]] = lambda: (None, None)


def small(op: str) -> list[Case]:
    """Shapes of an op that the interpreter runs within seconds."""
    return [case for case in CASES if case.op == op and case.forward < 2**22]


def _philox_normal(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    return Case(
        "philox_normal",
        f"{name} {_text(shape, dtype)}",
        lambda device: (noise_key(0, samples=shape[0], device=device),),
        lambda key: (philox_normal(shape, key, dtype=dtype),),
        lambda key: (torch.randn(shape, dtype=dtype, device=key.device),),
        forward=_elements(shape) * dtype.itemsize,
        normals=_elements(shape),
    )


def _reparameterize_kl(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool = False) -> Case:
    """mu and logvar are the halves of one tensor, as an encoder puts them out."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        both = torch.randn(shape[0], 2 * shape[1], *shape[2:], dtype=dtype, device=device)
        if channels_last:
            both = both.contiguous(memory_format=torch.channels_last)
        mu, logvar = both.chunk(2, 1)
        return mu.requires_grad_(), logvar.requires_grad_(), noise_key(0, samples=shape[0], device=device)

    def eager(mu: Tensor, logvar: Tensor, key: Tensor) -> Outputs:
        logvar = logvar.clamp(-30.0, 20.0)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return z, -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).flatten(1).sum(1)

    bytes_of_one = _elements(shape) * dtype.itemsize
    return Case(
        "reparameterize_kl",
        f"{name} {_text(shape, dtype)}{' channels_last' if channels_last else ''}",
        inputs,
        lambda mu, logvar, key: reparameterize_kl(mu, logvar, key=key),
        eager,
        forward=3 * bytes_of_one,
        backward=5 * bytes_of_one,
        normals=_elements(shape),
    )


def _q_sample(
    name: str, shape: tuple[int, ...], clean: torch.dtype, dtype: torch.dtype, *, target: str | None = None, draw: bool = True,
    gradient: bool = False,
) -> Case:  # fmt: skip
    """Data of dtype `clean` noised into `dtype`; draw: with noise from a key."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x0 = torch.randn(shape, device=device).mul(64).add(128).clamp(0, 255).to(clean)
        alpha, sigma = torch.rand(2, shape[0], device=device)
        noise = noise_key(0, samples=shape[0], device=device) if draw else torch.randn(shape, dtype=dtype, device=device)
        return x0.requires_grad_(gradient), alpha, sigma, noise

    def ours(x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Outputs:
        given = {"key": noise} if draw else {"noise": noise}
        made = q_sample(x0, alpha, sigma, target=target, dtype=dtype, **given)
        return made if isinstance(made, tuple) else (made,)

    def eager(x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor) -> Outputs:
        x0 = x0.float() / 127.5 - 1 if clean == torch.uint8 else x0
        noise = torch.randn_like(x0) if draw else noise
        alpha, sigma = (c.view(-1, *[1] * (x0.dim() - 1)) for c in (alpha, sigma))
        x_t = (alpha * x0 + sigma * noise).to(dtype)
        if target is None:
            return (x_t,)
        made = noise if target == "eps" else noise - x0 if target == "flow" else alpha * noise - sigma * x0
        return x_t, made.to(dtype)

    of_clean, of_noised = (_elements(shape) * x.itemsize for x in (clean, dtype))
    options = f"{f', target {target}' if target else ''}{'' if draw else ', noise given'}"
    return Case(
        "q_sample",
        f"{name} {_text(shape, clean)} to {_name(dtype)}{options}",
        inputs,
        ours,
        eager,
        forward=of_clean + of_noised * (1 + (target is not None) + (not draw)),
        backward=of_clean + of_noised * (1 + (target is not None)) if gradient else None,
        normals=_elements(shape) if draw else 0,
    )


def _diffusion_loss(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool = False) -> Case:
    """A prediction and a target of one dtype; eager computes in fp32 as ours does."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        pred, target = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
        if channels_last:
            pred, target = (x.contiguous(memory_format=torch.channels_last) for x in (pred, target))
        return pred.requires_grad_(), target, torch.rand(shape[0], device=device)

    def eager(pred: Tensor, target: Tensor, weight: Tensor) -> Outputs:
        loss = F.mse_loss(pred.float(), target.float(), reduction="none")
        return (loss.mean(tuple(range(1, loss.dim()))) * weight,)

    bytes_of_one = _elements(shape) * dtype.itemsize
    return Case(
        "diffusion_loss",
        f"{name} {_text(shape, dtype)}{' channels_last' if channels_last else ''}",
        inputs,
        lambda pred, target, weight: (diffusion_loss(pred, target, weight),),
        eager,
        forward=2 * bytes_of_one,
        backward=3 * bytes_of_one,
    )


def _denoising_loss(name: str, shape: tuple[int, ...], clean: torch.dtype, dtype: torch.dtype, target: Target) -> Case:
    """The prediction, of dtype `dtype`, of a target made from data of dtype `clean` and noise, which eager draws once."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        pred = torch.randn(shape, dtype=dtype, device=device).requires_grad_()
        x0 = torch.randn(shape, device=device).mul(64).add(128).clamp(0, 255).to(clean)
        return pred, x0, *torch.rand(3, shape[0], device=device), noise_key(0, samples=shape[0], device=device)

    def ours(pred: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, weight: Tensor, key: Tensor) -> Outputs:
        return (denoising_loss(pred, x0, alpha, sigma, key, weight, target=target),)

    def eager(pred: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor, weight: Tensor, key: Tensor) -> Outputs:
        x0 = x0.float() / 127.5 - 1 if clean == torch.uint8 else x0.float()
        noise = torch.randn_like(x0)
        alpha, sigma = (c.view(-1, *[1] * (x0.dim() - 1)) for c in (alpha, sigma))
        made = noise if target == "eps" else noise - x0 if target == "flow" else alpha * noise - sigma * x0
        loss = F.mse_loss(pred.float(), made, reduction="none")
        return (loss.mean(tuple(range(1, loss.dim()))) * weight,)

    of_pred, of_clean = (_elements(shape) * x.itemsize for x in (dtype, clean))
    of_clean = 0 if target == "eps" else of_clean
    return Case(
        "denoising_loss",
        f"{name} {_text(shape, clean)} to {_name(dtype)}, target {target}",
        inputs,
        ours,
        eager,
        forward=of_pred + of_clean,
        backward=2 * of_pred + of_clean,
        normals=_elements(shape),
    )


def _to_x0(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, guided: bool = True, gradient: bool = False) -> Case:
    """guided: both outputs of a network that runs on two halves of a batch."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        c_skip, c_out = torch.rand(2, shape[0], device=device)
        x, out, *uncond = torch.randn((2 + guided) * shape[0], *shape[1:], dtype=dtype, device=device).split(shape[0])
        return *(y.requires_grad_(gradient) for y in (out, x, *uncond)), c_skip, c_out

    def ours(out: Tensor, x: Tensor, *rest: Tensor) -> Outputs:
        *uncond, c_skip, c_out = rest
        return (to_x0(out, x, c_skip, c_out, uncond=uncond[0] if uncond else None, guidance=7.5),)

    def eager(out: Tensor, x: Tensor, *rest: Tensor) -> Outputs:
        *uncond, c_skip, c_out = rest
        out = uncond[0] + 7.5 * (out - uncond[0]) if uncond else out
        c_skip, c_out = (c.view(-1, *[1] * (x.dim() - 1)) for c in (c_skip, c_out))
        return ((c_skip * x + c_out * out).to(x.dtype),)

    bytes_of_one = _elements(shape) * dtype.itemsize
    return Case(
        "to_x0",
        f"{name} {_text(shape, dtype)}{' guided' * guided}",
        inputs,
        ours,
        eager,
        forward=(3 + guided) * bytes_of_one,
        backward=(3 + guided) * bytes_of_one if gradient else None,
    )


def _sampler_step(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, *, draw: bool = False, previous: bool = False, gradient: bool = False
) -> Case:
    """A step: of DDIM, with noise of DDPM, with the last x0_hat of DPM-Solver++(2M)."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        tensors = torch.randn(2 + previous, *shape, dtype=dtype, device=device).requires_grad_(gradient).unbind(0)
        return *tensors, torch.rand(4, device=device), noise_key(0, samples=shape[0], device=device)

    def ours(x: Tensor, x0_hat: Tensor, *rest: Tensor) -> Outputs:
        *last, row, key = rest
        return (sampler_step(x, x0_hat, row, previous=last[0] if last else None, key=key if draw else None),)

    def eager(x: Tensor, x0_hat: Tensor, *rest: Tensor) -> Outputs:
        *last, row, _ = rest
        a, b, c, s = row
        x_next = a * x + b * x0_hat
        x_next = x_next + c * last[0] if last else x_next
        return (x_next + s * torch.randn_like(x) if draw else x_next,)

    bytes_of_one = _elements(shape) * dtype.itemsize
    return Case(
        "sampler_step",
        f"{name} {_text(shape, dtype)}{' previous' * previous}{' noise' * draw}",
        inputs,
        ours,
        eager,
        forward=(3 + previous) * bytes_of_one,
        backward=(3 + previous) * bytes_of_one if gradient else None,
        normals=_elements(shape) if draw else 0,
    )


def _elements(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _text(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape))} {_name(dtype)}"


def _reconstruction_nll(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, data: torch.dtype, likelihood: Likelihood = "bernoulli", *,
    channels_last: bool = False,
) -> Case:  # fmt: skip
    """Logits of dtype `dtype` for images of dtype `data`; eager computes in fp32 as ours does."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        logits, x = torch.randn(shape, dtype=dtype, device=device), torch.rand(shape, device=device)
        x = (255 * x).to(data) if data == torch.uint8 else x.to(data)
        if channels_last:
            logits, x = (y.contiguous(memory_format=torch.channels_last) for y in (logits, x))
        return logits.requires_grad_(), x

    def eager(logits: Tensor, x: Tensor) -> Outputs:
        logits, x = logits.float(), x.float() / 255 if data == torch.uint8 else x.float()
        if likelihood == "bernoulli":
            return (F.binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1),)
        return ((0.5 * (x - logits.sigmoid()).square() + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1),)

    of_logits, of_data = (_elements(shape) * x.itemsize for x in (dtype, data))
    return Case(
        "reconstruction_nll",
        f"{name} {_text(shape, dtype)} of {_name(data)}, {likelihood}{' channels_last' if channels_last else ''}",
        inputs,
        lambda logits, x: (reconstruction_nll(logits, x, likelihood=likelihood),),
        eager,
        forward=of_logits + of_data,
        backward=2 * of_logits + of_data,
    )


def _group_norm(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, *, channels_last: bool = False, modulated: bool = False,
    residual: bool = False, groups: int = 32,
) -> Case:  # fmt: skip
    """With SiLU, under autocast: weight and bias in fp32. modulated: with scale and shift, the halves of one tensor.
    residual: add_group_norm, whose sum is a result."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        tensors = [torch.randn(shape, dtype=dtype, device=device) for _ in range(1 + residual)]
        if channels_last:
            tensors = [x.contiguous(memory_format=torch.channels_last) for x in tensors]
        parameters = [torch.randn(shape[1], device=device) for _ in range(2)]
        embedding = [torch.randn(shape[0], 2 * shape[1], dtype=dtype, device=device)] if modulated else []
        return tuple(x.requires_grad_() for x in (*parameters, *tensors, *embedding))

    def ours(weight: Tensor, bias: Tensor, x: Tensor, *rest: Tensor) -> Outputs:
        scale, shift = rest[-1].chunk(2, 1) if modulated else (None, None)
        if residual:
            return add_group_norm(x, rest[0], groups, weight, bias, activation="silu", scale=scale, shift=shift)
        return (group_norm(x, groups, weight, bias, activation="silu", scale=scale, shift=shift),)

    def eager(weight: Tensor, bias: Tensor, x: Tensor, *rest: Tensor) -> Outputs:
        total = x + rest[0] if residual else x
        y = F.group_norm(total.float(), groups, weight, bias).to(dtype)  # which autocast makes of it
        if modulated:
            scale, shift = rest[-1].view(*rest[-1].shape, *[1] * (x.dim() - 2)).chunk(2, 1)
            y = y * (1 + scale) + shift
        return (F.silu(y), total) if residual else (F.silu(y),)

    of_x = _elements(shape) * dtype.itemsize
    small = 8 * shape[1] + (2 * shape[0] * shape[1] * dtype.itemsize if modulated else 0)
    layout, options = " channels_last" * channels_last, " scale shift" * modulated + " residual" * residual
    return Case(
        "group_norm",
        f"{name} {_text(shape, dtype)}{layout}{options}",
        inputs,
        ours,
        eager,
        forward=(4 if residual else 2) * of_x + small,
        backward=(4 if residual else 3) * of_x + 2 * small,
        second_reads=lambda: second_reads(as_ncs(inputs(torch.device("meta"))[2]), groups, residual),
    )


def _attention(name: str, n: int, heads: int, d: int, side: int, *, channels_last: bool = False) -> Case:
    """qkv as a 1x1 convolution puts it out, in bf16; eager takes it apart for scaled_dot_product_attention, or what else it is
    given to attend with, and puts the output together. On a GPU ours are the kernels, also where the op would leave a shape to
    PyTorch."""
    shape = (n, 3 * heads * d, side, side)

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        qkv = torch.randn(shape, dtype=torch.bfloat16, device=device)
        return (_in_memory_format(qkv, channels_last).requires_grad_(),)

    def eager(qkv: Tensor, attend: Callable[..., Tensor] = F.scaled_dot_product_attention) -> Outputs:
        parts = qkv.reshape(n, 3, heads, d, side**2).transpose(3, 4).unbind(1)
        q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in parts)  # SDPA's fast backends want D contiguous
        out = attend(q, k, v)
        return (_in_memory_format(out.transpose(2, 3).reshape(n, heads * d, side, side), channels_last),)

    of_out = n * heads * d * side**2 * 2
    return Case(
        "attention_qkv",
        f"{name} {n}x{heads}x{side**2}x{d} bfloat16{' channels_last' * channels_last}",
        inputs,
        lambda qkv: (_attention_qkv(qkv, heads, "qkv_major")[0] if qkv.is_cuda else attention_qkv(qkv, heads),),
        eager,
        forward=4 * of_out,
        backward=7 * of_out,
    )


def _in_memory_format(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _timestep_embedding(name: str, n: int, dim: int) -> Case:
    def eager(t: Tensor) -> Outputs:
        return (timestep_embedding_reference(t, dim),)

    return Case(
        "timestep_embedding",
        f"{name} {n}x{dim}",
        lambda device: (torch.rand(n, device=device),),
        lambda t: (timestep_embedding(t, dim),),
        eager,
        forward=n * (dim + 1) * 4,
    )


def _layer_norm(name: str, shape: tuple[int, ...], dtype: torch.dtype, *, affine: bool = True, residual: bool = False) -> Case:
    """Under autocast: weight and bias in fp32. residual: add_layer_norm, whose sum is a result."""

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        tensors = [torch.randn(shape, dtype=dtype, device=device) for _ in range(1 + residual)]
        parameters = [torch.randn(shape[-1], device=device) for _ in range(2 * affine)]
        return tuple(x.requires_grad_() for x in (*tensors, *parameters))

    def ours(x: Tensor, *rest: Tensor) -> Outputs:
        return add_layer_norm(x, *rest) if residual else (layer_norm(x, *rest),)

    def eager(x: Tensor, *rest: Tensor) -> Outputs:
        total = x + rest[0] if residual else x
        y = F.layer_norm(total.float(), shape[-1:], *rest[residual:]).to(dtype)  # which autocast makes of it
        return (y, total) if residual else (y,)

    of_x, small = _elements(shape) * dtype.itemsize, 8 * shape[-1] * affine
    return Case(
        "layer_norm",
        f"{name} {_text(shape, dtype)}{' residual' * residual}{'' if affine else ' plain'}",
        inputs,
        ours,
        eager,
        forward=(4 if residual else 2) * of_x + small,
        backward=(4 if residual else 3) * of_x + 2 * small,
    )


def _geglu(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    """shape: of the output."""

    def eager(x: Tensor) -> Outputs:
        value, gate = x.chunk(2, -1)
        return (value * F.gelu(gate),)

    bytes_of_one = _elements(shape) * dtype.itemsize
    return Case(
        "geglu",
        f"{name} {_text(shape, dtype)}",
        lambda device: (torch.randn(*shape[:-1], 2 * shape[-1], dtype=dtype, device=device).requires_grad_(),),
        lambda x: (geglu(x),),
        eager,
        forward=3 * bytes_of_one,
        backward=5 * bytes_of_one,
    )


def _adamw_ema(name: str, sizes: tuple[int, ...], *, averages: int = 1, copy: bool = False) -> Case:
    """A step of parameters of those sizes. copy: in bf16, with gradients in bf16. Eager: PyTorch's fused AdamW, then foreach."""
    gradient = torch.bfloat16 if copy else torch.float32
    settings, profiles = [Settings()], [Profile(0.999, 9.0)] * averages

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        tensors = [torch.rand(size, device=device) for _ in range(3 + averages) for size in sizes]
        copies = [torch.zeros(size, dtype=gradient, device=device) for size in sizes] if copy else []
        steps = [torch.ones((), device=device) for _ in sizes]
        counts, lr = torch.zeros(2, dtype=torch.int64, device=device), torch.full((1,), 1e-3, dtype=torch.float64, device=device)
        return *(torch.rand(size, device=device).to(gradient) for size in sizes), *tensors, *copies, *steps, counts, lr

    def parts(tensors: tuple[Tensor, ...]) -> list[list[Tensor]]:
        n = len(sizes)
        return [list(tensors[i : i + n]) for i in range(0, len(tensors) - 2, n)]

    def written(*lists: list[Tensor]) -> Outputs:
        return tuple(x for tensors in lists for x in tensors)

    def ours(*tensors: Tensor) -> Outputs:
        grads, params, exp_avgs, exp_avg_sqs, *rest = parts(tensors)
        adamw_ema_(
            params, grads, exp_avgs, exp_avg_sqs, rest[-1], *tensors[-2:], settings, [0] * len(sizes), averages=rest[:averages],
            profiles=profiles, copies=rest[averages] if copy else [],
        )  # fmt: skip
        return written(params, exp_avgs, exp_avg_sqs, *rest[:-1])

    def eager(*tensors: Tensor) -> Outputs:
        grads, params, exp_avgs, exp_avg_sqs, *rest = parts(tensors)
        grads = [g.float() for g in grads] if copy else grads
        torch._foreach_add_(rest[-1], 1)
        torch._fused_adamw_(
            params, grads, exp_avgs, exp_avg_sqs, [], rest[-1], lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        for average in rest[:averages]:
            torch._foreach_lerp_(average, params, 1e-3)
        if copy:
            torch._foreach_copy_(rest[averages], params)
        return written(params, exp_avgs, exp_avg_sqs, *rest[:-1])

    n = sum(sizes)
    return Case(
        "adamw_ema",
        f"{name} {n:,}, {averages} averages{', bf16 copy and gradient' * copy}",
        inputs,
        ours,
        eager,
        forward=n * (28 + 8 * averages),  # a bf16 gradient is 2 bytes less, its copy 2 bytes more
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LAYERS = (64 * 576, 64, 96, 96 * 96)  # sizes of parameters
CONVOLUTIONS = (*((128 * 128 * 9,) * 8), *((256 * 256 * 9,) * 12))
UINT8, FP32, BF16 = torch.uint8, torch.float32, torch.bfloat16
CASES = [
    _philox_normal("CIFAR batch", (128, 3, 32, 32), FP32),
    _philox_normal("latents", (32, 4, 64, 64), BF16),
    _philox_normal("images", (64, 3, 512, 512), FP32),
    _philox_normal("images", (128, 3, 512, 512), BF16),
    _reparameterize_kl("MLP VAE", (128, 16), FP32),
    _reparameterize_kl("latents", (8, 4, 32, 32), FP32),
    _reparameterize_kl("latents", (32, 4, 64, 64), BF16),
    _reparameterize_kl("latents", (8, 16, 32, 32), BF16, channels_last=True),
    _reparameterize_kl("many latents", (1024, 16, 64, 64), FP32),
    _reparameterize_kl("many latents", (2048, 16, 64, 64), BF16),
    _reparameterize_kl("many latents", (2048, 16, 64, 64), BF16, channels_last=True),
    _reparameterize_kl("one huge sample", (1, 16, 512, 512), FP32),
    _q_sample("CIFAR", (64, 3, 32, 32), UINT8, BF16),
    _q_sample("CIFAR", (64, 3, 32, 32), FP32, FP32, target="v", draw=False),
    _q_sample("latents", (8, 4, 64, 64), FP32, FP32, target="flow", gradient=True),
    _q_sample("CIFAR", (512, 3, 32, 32), UINT8, BF16),
    _q_sample("64²", (256, 3, 64, 64), UINT8, BF16),
    _q_sample("64²", (256, 3, 64, 64), UINT8, FP32, target="flow"),
    _q_sample("SD latents", (64, 4, 64, 64), BF16, BF16, target="eps"),
    _q_sample("many latents", (1024, 16, 64, 64), FP32, FP32),
    _q_sample("many latents", (1024, 16, 64, 64), FP32, FP32, target="v", draw=False),
    _diffusion_loss("CIFAR", (64, 3, 32, 32), FP32),
    _diffusion_loss("latents", (8, 4, 64, 64), BF16, channels_last=True),
    _diffusion_loss("CIFAR", (512, 3, 32, 32), BF16),
    _diffusion_loss("64²", (256, 3, 64, 64), BF16, channels_last=True),
    _diffusion_loss("SD latents", (64, 4, 64, 64), BF16),
    _diffusion_loss("many latents", (1024, 16, 64, 64), FP32),
    _diffusion_loss("many latents", (1024, 16, 64, 64), BF16),
    _denoising_loss("CIFAR", (64, 3, 32, 32), UINT8, BF16, "flow"),
    _denoising_loss("latents", (8, 4, 64, 64), FP32, FP32, "v"),
    _denoising_loss("CIFAR", (512, 3, 32, 32), UINT8, BF16, "flow"),
    _denoising_loss("64²", (256, 3, 64, 64), UINT8, BF16, "v"),
    _denoising_loss("SD latents", (64, 4, 64, 64), BF16, BF16, "v"),
    _denoising_loss("many latents", (1024, 16, 64, 64), BF16, BF16, "flow"),
    _reconstruction_nll("MLP VAE", (128, 784), FP32, FP32),
    _reconstruction_nll("MLP VAE", (128, 784), FP32, UINT8, "gaussian"),
    _reconstruction_nll("CIFAR", (64, 3, 32, 32), BF16, UINT8, channels_last=True),
    _reconstruction_nll("CIFAR", (512, 3, 32, 32), BF16, UINT8, channels_last=True),
    _reconstruction_nll("64²", (256, 3, 64, 64), BF16, UINT8),
    _reconstruction_nll("images", (1024, 3, 128, 128), FP32, FP32),
    _reconstruction_nll("images", (1024, 3, 128, 128), BF16, BF16, "gaussian"),
    _group_norm("UNet", (8, 1280, 8, 8), BF16, channels_last=True, modulated=True),
    _group_norm("UNet", (8, 1280, 8, 8), BF16),
    _group_norm("CIFAR", (4, 128, 32, 32), BF16, channels_last=True),
    _group_norm("autoencoder", (1, 64, 64, 64), FP32, channels_last=True),
    _group_norm("autoencoder", (1, 128, 48, 48), BF16, residual=True),
    _group_norm("SD autoencoder", (1, 128, 512, 512), BF16, channels_last=True),
    _group_norm("SD autoencoder", (1, 128, 512, 512), BF16),
    _group_norm("SD autoencoder", (4, 128, 512, 512), BF16, channels_last=True),
    _group_norm("ADM", (32, 256, 64, 64), BF16, channels_last=True, modulated=True),
    _group_norm("ADM", (32, 256, 64, 64), BF16, modulated=True),
    _group_norm("SD UNet", (8, 320, 64, 64), BF16, channels_last=True),
    _group_norm("SD UNet", (8, 640, 32, 32), BF16, channels_last=True),
    _group_norm("SD UNet", (8, 1280, 16, 16), BF16, channels_last=True),
    _group_norm("SD UNet", (8, 1280, 16, 16), BF16, channels_last=True, residual=True),
    _group_norm("CIFAR", (128, 128, 32, 32), BF16, channels_last=True, modulated=True),
    _group_norm("CIFAR", (128, 128, 32, 32), BF16, modulated=True),
    _attention("small UNet", 2, 2, 64, 8, channels_last=True),
    _attention("small UNet", 2, 2, 40, 8),
    _attention("small UNet", 1, 2, 64, 16),
    *(
        _attention("UNet", n, 8, d, side, channels_last=True)
        for n, side in ((128, 8), (128, 16), (32, 32), (8, 64))
        for d in (32, 40, 64, 80, 128)
    ),
    _layer_norm("small Transformer", (8, 256, 384), BF16, affine=False),
    _layer_norm("small Transformer", (4, 256, 192), FP32, residual=True),
    _layer_norm("SD UNet", (8, 4096, 320), BF16),
    _layer_norm("SD UNet", (8, 4096, 320), BF16, residual=True),
    _layer_norm("SD UNet", (8, 1024, 640), BF16, residual=True),
    _layer_norm("SD UNet", (8, 256, 1280), BF16, residual=True),
    _layer_norm("DiT", (64, 256, 1152), BF16, affine=False),
    _layer_norm("DiT", (256, 256, 1152), BF16, residual=True),
    _layer_norm("text", (64, 1024, 768), BF16, residual=True),
    _layer_norm("text", (64, 1024, 768), FP32),
    _geglu("small Transformer", (2, 64, 1536), FP32),
    _geglu("SD UNet", (8, 4096, 1280), BF16),
    _geglu("SD UNet", (8, 1024, 2560), BF16),
    _geglu("SD UNet", (8, 256, 5120), BF16),
    _geglu("text", (64, 1024, 3072), FP32),
    _timestep_embedding("UNet batch", 128, 128),
    _timestep_embedding("UNet batch", 512, 512),
    _to_x0("latents", (8, 4, 64, 64), FP32, gradient=True),
    _to_x0("CIFAR", (64, 3, 32, 32), BF16, guided=False),
    _to_x0("CIFAR", (512, 3, 32, 32), BF16, guided=False),
    _to_x0("64²", (256, 3, 64, 64), BF16),
    _to_x0("SD latents", (64, 4, 64, 64), BF16),
    _to_x0("many latents", (1024, 16, 64, 64), BF16),
    _sampler_step("latents", (8, 4, 64, 64), FP32, previous=True, gradient=True),
    _sampler_step("CIFAR", (64, 3, 32, 32), BF16, draw=True),
    _sampler_step("CIFAR", (512, 3, 32, 32), BF16),
    _sampler_step("64²", (256, 3, 64, 64), BF16, draw=True),
    _sampler_step("SD latents", (64, 4, 64, 64), BF16, previous=True),
    _sampler_step("many latents", (1024, 16, 64, 64), BF16, previous=True, draw=True),
    _adamw_ema("layers", LAYERS),
    _adamw_ema("layers", LAYERS, averages=2),
    _adamw_ema("layers", LAYERS, copy=True),
    _adamw_ema("CIFAR UNet's convolutions", CONVOLUTIONS),
    _adamw_ema("CIFAR UNet's convolutions", CONVOLUTIONS, averages=2, copy=True),
]
