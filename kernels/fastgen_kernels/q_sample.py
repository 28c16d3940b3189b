"""Diffuse clean data: x_t = alpha · x0 + sigma · noise, and what the network is to predict from it.

target "eps":  noise
target "x0":   x0
target "v":    alpha · noise - sigma · x0        (Salimans & Ho, arXiv:2202.00512, appendix D)
target "flow": noise - x0                        (Liu et al., arXiv:2209.03003, equation 1, time reversed)
"""

from typing import Literal, overload

import torch
from torch import Tensor

from fastgen_kernels.checks import check_batched, check_choice, check_float, check_shape
from fastgen_kernels.layout import compute_dtype, like, per_sample
from fastgen_kernels.philox import fresh_key, philox_normal

Target = Literal["eps", "x0", "v", "flow"]
TARGETS = ("eps", "x0", "v", "flow")


@overload
def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: Target = "eps",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]: ...


@overload
def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: None,
    dtype: torch.dtype | None = None,
) -> Tensor: ...


def q_sample(
    x0: Tensor,
    alpha: Tensor,
    sigma: Tensor,
    *,
    noise: Tensor | None = None,
    key: Tensor | None = None,
    target: Target | None = "eps",
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor] | Tensor:
    """x_t = alpha·x0 + sigma·noise and the target of the prediction, each of x0's shape; x_t alone for target None.

    x0: (N, ...) float, or uint8, read as x/127.5 - 1.
    alpha, sigma: (N,) float, the schedule at each sample's time; fp32 or better, as bf16 loses the noise at small t.
    noise: x0's shape, any float; or
    key: int64 (N, 4), from which standard normal noise is drawn; a fresh one when neither is given.
    dtype: of what is returned; by default x0's, fp32 for uint8.

    The arithmetic is in fp32, in fp64 for fp64 x0 or dtype. The results have x0's memory format; the target may be the
    tensor given as x0 or noise. Gradients flow to every float argument.

    Raises TypeError for other dtypes, ValueError for shapes that differ, an unknown target, or noise and key together.
    """
    check_diffused("q_sample", x0, alpha, sigma)
    check_float("q_sample", noise=noise)
    check_shape("q_sample", x0.shape, "of x0", noise=noise)
    check_choice("q_sample", "target", target, (*TARGETS, None))
    if noise is not None and key is not None:
        raise ValueError("q_sample: noise and key must not both be given, got both")
    if dtype is None:
        dtype = torch.float32 if x0.dtype == torch.uint8 else x0.dtype
    if not dtype.is_floating_point:
        raise TypeError(f"q_sample: dtype must be a float, got {dtype}")
    if noise is None:
        noise = philox_normal(x0.shape, fresh_key(x0.shape[0], x0.device) if key is None else key)
    return q_sample_reference(x0, alpha, sigma, noise, target, dtype)


def q_sample_reference(
    x0: Tensor, alpha: Tensor, sigma: Tensor, noise: Tensor, target: Target | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor] | Tensor:
    compute = compute_dtype(x0.dtype, dtype)
    clean, noise = as_signal(x0, compute), noise.to(compute)
    alpha, sigma = per_sample(alpha.to(compute), x0), per_sample(sigma.to(compute), x0)
    x_t = like((alpha * clean + sigma * noise).to(dtype), x0)
    if target is None:
        return x_t
    return x_t, like(make_target(target, clean, noise, alpha, sigma).to(dtype), x0)


def as_signal(x0: Tensor, dtype: torch.dtype) -> Tensor:
    """x0 in dtype, uint8 scaled to [-1, 1]."""
    return x0.to(dtype) / 127.5 - 1 if x0.dtype == torch.uint8 else x0.to(dtype)


def make_target(target: Target, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The target, in the dtype of the arguments, which broadcast."""
    if target == "eps":
        return noise
    if target == "x0":
        return x0
    if target == "v":
        return alpha * noise - sigma * x0
    return noise - x0


def check_diffused(op: str, x0: Tensor, alpha: Tensor, sigma: Tensor) -> None:
    """Raise for clean data or a schedule that q_sample and denoising_loss do not take."""
    if x0.dtype != torch.uint8:
        check_float(op, x0=x0)
    check_float(op, alpha=alpha, sigma=sigma)
    check_batched(op, x0=x0)
    check_shape(op, x0.shape[:1], "(N,)", alpha=alpha, sigma=sigma)
