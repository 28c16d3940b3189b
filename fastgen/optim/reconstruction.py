"""Averages of any width after training, from snapshots of one or two widths during it (EDM2, Karras et al. 2024,
arXiv:2312.02696, section 3.2 and appendix C): the combination of the snapshots whose profile is nearest, by least squares."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastgen.errors import expect
from fastgen.optim.profiles import gamma


class Snapshot(NamedTuple):
    """The average of width `sigma_rel` after `updates` steps; tensors: by the names of the model's state_dict, as
    `AdamWEMA.ema_state_dict` gives them."""

    updates: int
    sigma_rel: float
    tensors: dict[str, Tensor]


def reconstruct(snapshots: Sequence[Snapshot], sigma_rel: float, updates: int | None = None) -> dict[str, Tensor]:
    """The average of width `sigma_rel` after `updates` steps, by default those of the last snapshot: a model's state_dict, summed
    in fp64, in the snapshots' dtypes.

    Tensors that are not floating are those of the last snapshot used. Raises ValueError for a width that no power function has,
    and where there is no snapshot up to `updates`.
    """
    expect("snapshots", len(snapshots), snapshots, "at least one")
    updates = max(snapshot.updates for snapshot in snapshots) if updates is None else updates
    used = sorted((snapshot for snapshot in snapshots if snapshot.updates <= updates), key=lambda snapshot: snapshot.updates)
    expect("updates", updates, used, f"a number from {min(snapshot.updates for snapshot in snapshots)} on, the first snapshot's")
    shares = coefficients([snapshot[:2] for snapshot in used], sigma_rel, updates)
    return {
        name: _sum([snapshot.tensors[name] for snapshot in used], shares) if value.is_floating_point() else value
        for name, value in used[-1].tensors.items()
    }


def coefficients(snapshots: Sequence[tuple[int, float]], sigma_rel: float, updates: int) -> list[float]:
    """The factor of each snapshot, given as (updates, sigma_rel), in the sum that is the average of width `sigma_rel` after
    `updates` steps. Raises ValueError for a width that no power function has."""
    known = [(float(t), gamma(width)) for t, width in snapshots]
    wanted = float(updates), gamma(sigma_rel)
    products = np.array([[_product(a, b) for b in known] for a in known])
    solution, *_ = np.linalg.lstsq(products, np.array([_product(a, wanted) for a in known]), rcond=None)
    return solution.tolist()


def _product(a: tuple[float, float], b: tuple[float, float]) -> float:
    """The inner product of the profiles p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1), tau in (0, t], of two (t, gamma)."""
    (t, g), (later, h) = sorted((a, b))
    return (g + 1) * (h + 1) / (g + h + 1) * (t / later) ** h / later


def _sum(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    for x, share in zip(tensors, shares, strict=True):
        total.add_(x, alpha=share)
    return total.to(tensors[0].dtype)
