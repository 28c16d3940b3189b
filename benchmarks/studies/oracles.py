"""Data of which everything is known in closed form: mixtures of isotropic Gaussians, in fp64.

Under x_t = alpha·x0 + sigma·eps a mixture stays one: component k of N(mean_k, std_k²) becomes N(alpha·mean_k, alpha²·std_k² +
sigma²). So the ideal denoiser E[x0 | x_t], the score, the marginals and the likelihood at every t are formulas.
"""

import math
from dataclasses import dataclass

import torch
from scipy.integrate import solve_ivp
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture of K isotropic Gaussians in D dimensions, in fp64."""

    weights: Tensor
    """(K,), summing to 1."""
    means: Tensor
    """(K, D)."""
    stds: Tensor
    """(K,), one for all directions."""

    def components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x - alpha·mean_k (N, K, D), the variances (N, K), and log(weight_k·N(x; component k)) (N, K)."""
        offset = x[:, None] - alpha[:, None, None] * self.means
        variance = alpha[:, None] ** 2 * self.stds**2 + sigma[:, None] ** 2
        dim = x.shape[1]
        log = -(offset**2).sum(2) / (2 * variance) - dim / 2 * (2 * math.pi * variance).log()
        return offset, variance, self.weights.log() + log

    def log_prob(self, x: Tensor, alpha: Tensor | float = 1.0, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x_t), (N,) nats."""
        return self.components(x, *_columns(x, alpha, sigma))[2].logsumexp(1)

    def score(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """The gradient of log p(x_t)."""
        offset, variance, log = self.components(x, *_columns(x, alpha, sigma))
        return (log.softmax(1)[..., None] * -offset / variance[..., None]).sum(1)

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | x_t]."""
        alpha, sigma = _columns(x, alpha, sigma)
        offset, variance, log = self.components(x, alpha, sigma)
        mean = self.means + (alpha[:, None] * self.stds**2 / variance)[..., None] * offset
        return (log.softmax(1)[..., None] * mean).sum(1)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """(n, D) samples."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        eps = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[chosen] + self.stds[chosen, None] * eps

    def mean(self) -> Tensor:
        """E[x0], (D,)."""
        return (self.weights[:, None] * self.means).sum(0)

    def covariance(self) -> Tensor:
        """Cov[x0], (D, D)."""
        centred = self.means - self.mean()
        spread = (self.weights * self.stds**2).sum() * torch.eye(self.means.shape[1], dtype=torch.float64)
        return spread + (self.weights[:, None, None] * centred[:, :, None] * centred[:, None]).sum(0)


def _columns(x: Tensor, *values: Tensor | float) -> tuple[Tensor, ...]:
    return tuple(torch.as_tensor(v, dtype=torch.float64).expand(len(x)) for v in values)


def mixture(weights, means, stds) -> Mixture:
    """A Mixture of lists of numbers: weights of K, means of K by D, standard deviations of K."""
    return Mixture(*(torch.tensor(v, dtype=torch.float64) for v in (weights, means, stds)))


def _ring(dim: int) -> Mixture:
    """Three components in the first two of `dim` directions, of unequal weight and width."""
    corners = [[-0.7, -0.2], [0.6, -0.5], [0.1, 0.7]]
    return mixture([0.5, 0.3, 0.2], [corner[:dim] + [0.1] * (dim - 2) for corner in corners], [0.15, 0.25, 0.2])


GAUSSIAN = {dim: mixture([1.0], [[0.5] * dim], [0.3]) for dim in (1, 2, 16)}
MIXTURE = {1: mixture([0.6, 0.4], [[-0.5], [0.6]], [0.2, 0.3]), 2: _ring(2), 16: _ring(16)}
DATA = {f"{name}-{dim}": table[dim] for name, table in (("gaussian", GAUSSIAN), ("mixture", MIXTURE)) for dim in (1, 2, 16)}


class IdealDenoiser:
    """E[x0 | x_t] of a mixture on a schedule, as the samplers call it: t 0-dim or (N,)."""

    def __init__(self, data: Mixture, schedule):
        self.data, self.schedule = data, schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.double()
        return self.data.denoise(x.double(), self.schedule.alpha(t), self.schedule.sigma(t)).to(x.dtype)


def marginal(data: Mixture, schedule, n: int, t: float = 1.0, seed: int = 0) -> Tensor:
    """(n, D) samples of x_t."""
    alpha, sigma = (f(torch.tensor(t, dtype=torch.float64)) for f in (schedule.alpha, schedule.sigma))
    generator = torch.Generator().manual_seed(seed + 1)
    x0 = data.sample(n, seed)
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def flow(data: Mixture, schedule, x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability-flow ODE takes x from t = start to t = end: solved to 1e-11 by scipy, in the angle phi = atan(sigma /
    alpha), where d(x/r) / dphi = cos(phi)·eps_hat - sin(phi)·x0_hat has no pole, with r² = alpha² + sigma²."""
    alpha, sigma = (f(torch.tensor([start, end], dtype=torch.float64)) for f in (schedule.alpha, schedule.sigma))
    radius, angle = torch.hypot(alpha, sigma), torch.atan2(sigma, alpha)

    def slope(phi: float, y):
        y = torch.from_numpy(y).view_as(x)
        cos, sin = math.cos(phi), math.sin(phi)
        return (-cos * sin * data.score(y, cos, sin) - sin * data.denoise(y, cos, sin)).numpy().ravel()

    solved = solve_ivp(
        slope, angle.tolist(), (x / radius[0]).numpy().ravel(), "DOP853", angle[1:].tolist(), rtol=1e-11, atol=1e-12
    )
    return torch.from_numpy(solved.y[:, -1]).view_as(x) * radius[1]
