"""The reconstruction term of a VAE's ELBO, -log p(x | logits) in nats, summed over the elements of a sample:

likelihood "bernoulli": log(1 + exp(l)) - x l                                 grey values taken as probabilities
likelihood "gaussian":  ((x - sigmoid(l)) / std)^2 / 2 + log(std) + log(2 pi) / 2

Source: Kingma & Welling, arXiv:1312.6114, appendix C.
"""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen_kernels.checks import (
    check_batched,
    check_choice,
    check_device,
    check_float,
    check_float_or_uint8,
    check_number,
    check_range,
    check_shape,
)
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.layout import compute_dtype, empty_like, like
from fastgen_kernels.library import define

Likelihood = Literal["bernoulli", "gaussian"]
LIKELIHOODS = ("bernoulli", "gaussian")
SMALLEST = math.nextafter(0.0, 1.0)


def reconstruction_nll(logits: Tensor, x: Tensor, *, likelihood: Likelihood = "bernoulli", std: float = 1.0) -> Tensor:
    """The negative log-likelihood of each sample, in nats: (N,) fp32, fp64 for fp64 logits.

    logits: (N, ...) float, any strides: the decoded image before the sigmoid.
    x: logits' shape, any strides, float in [0, 1], or uint8, read as x/255; a constant or with its own graph. The range is
        checked on a CPU alone, since a GPU would wait.
    std: the deviation of "gaussian"; "bernoulli" has none.

    Raises TypeError for other types and dtypes, ValueError for shapes or devices that differ, x out of range, an unknown
    likelihood or a std that is not a finite number > 0.
    """
    check_float(logits=logits)
    check_float_or_uint8(x=x)
    check_batched(logits=logits)
    check_shape(logits.shape, "of logits", x=x)
    check_device(logits.device, "of logits", x=x)
    check_choice("likelihood", likelihood, LIKELIHOODS)
    check_number("std", std, "a finite number > 0", low=SMALLEST)
    if x.dtype != torch.uint8:
        check_range("x", x, 0, 1)

    if use_triton(logits) and not x.requires_grad:  # the kernel has no gradient for x
        return _reconstruction_nll(logits, x, likelihood, std)
    return reconstruction_nll_reference(logits, x, likelihood, std)


def reconstruction_nll_reference(logits: Tensor, x: Tensor, likelihood: Likelihood, std: float) -> Tensor:
    """-log p(x | logits) in nats, summed over the elements of each sample: (N,) fp32, fp64 for fp64 logits.

    logits: (N, ...) float. x: logits' shape, float in [0, 1], or uint8, read as x/255. std: of "gaussian".

    The arguments have passed reconstruction_nll's checks.
    """
    compute = compute_dtype(logits.dtype)
    logits, x = logits.to(compute), like(as_probability(x, compute), logits)
    if likelihood == "bernoulli":
        nll = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    else:
        nll = 0.5 * ((x - logits.sigmoid()) / std) ** 2 + (math.log(std) + 0.5 * math.log(2 * math.pi))
    return nll.sum(tuple(range(1, nll.dim()))) if nll.dim() > 1 else nll


def as_probability(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in dtype, uint8 scaled to [0, 1]."""
    return x.to(dtype) / 255 if x.dtype == torch.uint8 else x.to(dtype)


def _fake_forward(logits: Tensor, *arguments: Any) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=compute_dtype(logits.dtype))


def _fake_backward(dnll: Tensor, logits: Tensor, *arguments: Any) -> Tensor:
    return empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.constants = inputs[2:]


def _gradients(ctx: Any, dnll: Tensor) -> tuple[Tensor | None, ...]:
    return _reconstruction_nll_backward(dnll, *ctx.saved_tensors, *ctx.constants), None, None, None


_reconstruction_nll_backward = define(
    "reconstruction_nll_backward(Tensor dnll, Tensor logits, Tensor x, str likelihood, float std) -> Tensor",
    "fastgen_kernels.reconstruction_nll_triton:backward",
    _fake_backward,
)
_reconstruction_nll = define(
    "reconstruction_nll(Tensor logits, Tensor x, str likelihood, float std) -> Tensor",
    "fastgen_kernels.reconstruction_nll_triton:forward",
    _fake_forward,
    setup_context=_setup_context,
    backward=_gradients,
)
