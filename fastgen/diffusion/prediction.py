"""What the network predicts, as the coefficients that turn its output into x0: `PREDICTIONS` is the table of names."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Prediction = Literal["eps", "x0", "v", "flow", "edm"]
SIGMA_DATA = 0.5  # the deviation of images in [-1, 1], as EDM has it


class Preconditioning(NamedTuple):
    """x0_hat = c_skip · x_t + c_out · net(c_in · x_t, t); c_in None reads x_t as it is."""

    c_in: Tensor | None
    c_skip: Tensor
    c_out: Tensor


def _eps(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """eps = (x_t - alpha·x0) / sigma (DDPM, arXiv:2006.11239, eq. 9)."""
    return Preconditioning(None, 1 / alpha, -sigma / alpha)


def _x0(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    return Preconditioning(None, torch.zeros_like(alpha), torch.ones_like(alpha))


def _v(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """v = alpha·eps - sigma·x0 (Salimans & Ho 2022, arXiv:2202.00512, section 4), on any schedule."""
    power = alpha**2 + sigma**2
    return Preconditioning(None, alpha / power, -sigma / power)


def _flow(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """flow = eps - x0 (rectified flow, arXiv:2209.03003, eq. 1, towards noise), on any schedule."""
    total = alpha + sigma
    return Preconditioning(None, 1 / total, -sigma / total)


def _edm(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """Input and target of unit variance (Karras et al. 2022, arXiv:2206.00364, table 1), in x_t / alpha on any schedule."""
    deviation = (sigma**2 + (SIGMA_DATA * alpha) ** 2).sqrt()  # of x_t
    return Preconditioning(1 / deviation, alpha * (SIGMA_DATA / deviation) ** 2, sigma * SIGMA_DATA / deviation)


PREDICTIONS: dict[str, Callable[[Tensor, Tensor], Preconditioning]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}
