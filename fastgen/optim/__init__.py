"""Optimizers, and the moving averages of weights that they keep."""

from fastgen.optim.adamw_ema import AdamWEMA
from fastgen.optim.profiles import Profile, constant, power
from fastgen.optim.reconstruction import Snapshot, coefficients, reconstruct

__all__ = ["AdamWEMA", "Profile", "Snapshot", "coefficients", "constant", "power", "reconstruct"]
