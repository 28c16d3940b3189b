"""The reparameterization trick and the divergence that goes with it in a VAE:

    z = mu + exp(logvar/2) · eps
    kl = (mu^2 + exp(logvar) - 1 - logvar) / 2          of N(mu, exp(logvar)) from N(0, 1), in nats

Source: Kingma & Welling, arXiv:1312.6114, section 2.4 and appendix B.
"""

from typing import Any, Literal, cast

from torch import Tensor

from fastgen_kernels.checks import (
    check_batched,
    check_choice,
    check_device,
    check_float,
    check_key,
    check_optional_float,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import compute_dtype, empty_like, like
from fastgen_kernels.library import define
from fastgen_kernels.messages import shown
from fastgen_kernels.philox import fresh_key, philox_normal


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    eps: Tensor | None = None,
    key: Tensor | None = None,
    clamp: tuple[float, float] = (-30.0, 20.0),
    reduce: Literal["sample", "none"] = "sample",
) -> tuple[Tensor, Tensor]:
    """A draw z of N(mu, exp(logvar)), of mu's shape, dtype and memory format, and its KL from N(0, I) in nats.

    mu, logvar: (N, ...) float of one shape, any strides: the halves of one tensor as they are.
    eps: mu's shape, float, the standard normal draw; or
    key: int64 (N, 4), from which it is drawn; a fresh one when neither is given.
    clamp: the range logvar is clamped to, for z and kl alike; outside it logvar has no gradient, on its ends it has.
    reduce: "sample" for kl (N,), summed over a sample; "none" for kl of mu's shape.

    The arithmetic and kl are in fp32, in fp64 for fp64 mu.

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ, a clamp that is no range, an
    unknown reduce, or eps and key together.
    """
    check_float(mu=mu, logvar=logvar)
    check_optional_float(eps=eps)
    check_batched(mu=mu)
    check_shape(mu.shape, "of mu", logvar=logvar, eps=eps)
    check_device(mu.device, "of mu", logvar=logvar, eps=eps)
    check_choice("reduce", reduce, ("sample", "none"))
    if not (isinstance(clamp, tuple | list) and len(clamp) == 2 and _ordered(*clamp)):
        raise ValueError(f"clamp: expected two numbers, the lower one first, got {shown(clamp)}")
    if eps is not None and key is not None:
        raise ValueError("eps, key: expected one of the two, got both")
    if key is not None:
        check_key(key, mu.shape[0])
        check_device(mu.device, "of mu", key=key)
    elif eps is None:
        key = fresh_key(mu.shape[0], mu.device)

    if use_triton(mu) and not (eps is not None and eps.requires_grad):  # the kernel has no gradient for eps
        return _reparameterize_kl(mu, logvar, eps, key, *clamp, reduce == "none")
    eps = philox_normal(mu.shape, cast(Tensor, key)) if eps is None else eps
    return reparameterize_kl_reference(mu, logvar, eps, clamp, reduce)


def _ordered(low: object, high: object) -> bool:
    return isinstance(low, int | float) and isinstance(high, int | float) and low <= high


def reparameterize_kl_reference(
    mu: Tensor, logvar: Tensor, eps: Tensor, clamp: tuple[float, float], reduce: Literal["sample", "none"]
) -> tuple[Tensor, Tensor]:
    """z = mu + exp(logvar/2)·eps in mu's dtype, and kl = (mu² + exp(logvar) - 1 - logvar)/2 in nats, both with logvar clamped.

    mu, logvar, eps: (N, ...) float. clamp: the least and the largest logvar. reduce: "sample" for kl (N,), "none" for mu's shape.

    The arithmetic and kl are in fp32, in fp64 for fp64 mu. The arguments have passed reparameterize_kl's checks.
    """
    compute = compute_dtype(mu.dtype)
    mean, logvar = mu.to(compute), logvar.to(compute).clamp(*clamp)
    z = mean + (logvar / 2).exp() * eps.to(compute)
    kl = (mean.square() + logvar.expm1() - logvar) / 2
    if reduce == "sample":
        # An axis is put in so that (N,) latents, one element a sample, have something to sum over.
        return like(z.to(mu.dtype), mu), kl.unsqueeze(1).sum(tuple(range(1, mu.dim() + 1)))
    return like(z.to(mu.dtype), mu), like(kl, mu)


def _fake_forward(
    mu: Tensor, logvar: Tensor, eps: Tensor | None, key: Tensor | None, low: float, high: float, per_element: bool
) -> tuple[Tensor, Tensor]:
    compute = compute_dtype(mu.dtype)
    return empty_like(mu), empty_like(mu, compute) if per_element else mu.new_empty(mu.shape[0], dtype=compute)


def _fake_backward(dz: Tensor | None, dkl: Tensor | None, mu: Tensor, logvar: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return empty_like(mu), empty_like(mu, logvar.dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.constants = inputs[4:]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dz: Tensor | None, dkl: Tensor | None) -> tuple[Tensor | None, ...]:
    if dz is None and dkl is None:
        return (None,) * 7
    return *_reparameterize_kl_backward(dz, dkl, *ctx.saved_tensors, *ctx.constants), *(None,) * 5


_reparameterize_kl_backward = define(
    "reparameterize_kl_backward(Tensor? dz, Tensor? dkl, Tensor mu, Tensor logvar, Tensor? eps, Tensor? key, float low,"
    " float high, bool per_element) -> (Tensor, Tensor)",
    "fastgen_kernels.reparameterize_kl_triton:backward",
    _fake_backward,
)
_reparameterize_kl = define(
    "reparameterize_kl(Tensor mu, Tensor logvar, Tensor? eps, Tensor? key, float low, float high, bool per_element)"
    " -> (Tensor, Tensor)",
    "fastgen_kernels.reparameterize_kl_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
