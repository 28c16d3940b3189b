"""How a moving average of weights forgets.

A power function's average gives the weights of step tau, at step t, a share in proportion to tau^gamma. It keeps its relative
width sigma_rel, the standard deviation of tau over t, whatever t is (EDM2, Karras et al. 2024, arXiv:2312.02696, section 3.1).
"""

import numpy as np

from fastgen.errors import expect, is_number
from fastgen_kernels.adamw_ema import Profile

WIDEST = 12**-0.5  # of the uniform average, gamma = 0


def constant(decay: float, warmup: float = 9.0) -> Profile:
    """The decay of update n, from 1, is min(decay, n / (n + warmup)), so that the average forgets the initial weights. 9 is
    TensorFlow's, ExponentialMovingAverage with num_updates; with 0 there is no warm-up. Raises ValueError for a decay outside
    [0, 1) or a negative warmup."""
    expect("decay", decay, is_number(decay, 0, 1) and decay != 1, "a number in [0, 1)")
    expect("warmup", warmup, is_number(warmup, 0), "a number from 0 on")
    return Profile(decay=decay, warmup=warmup)


def power(sigma_rel: float) -> Profile:
    """The decay of update t, from 1, is (1 - 1/t)^(gamma + 1) (EDM2, section 3.1). Raises ValueError as `gamma` does."""
    return Profile(exponent=gamma(sigma_rel) + 1)


def gamma(sigma_rel: float) -> float:
    """The exponent of a relative width, from sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (EDM2, section 3.1).

    Raises ValueError for a width that no exponent above 0 has."""
    expect("sigma_rel", sigma_rel, is_number(sigma_rel) and 0 < sigma_rel < WIDEST, f"a number between 0 and {WIDEST:.4f}")
    precision = sigma_rel**-2
    roots = np.roots([1, 7, 16 - precision, 12 - precision])
    return float(roots[np.isreal(roots)].real.max())


def sigma_rel(gamma: float) -> float:
    """The relative width of an exponent: the inverse of `gamma`."""
    return (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5)
