"""The names that settings choose from, as types; the tables of what they name are in fastgen/diffusion/."""

from typing import Literal

ScheduleName = Literal["linear", "linear_zero_snr", "cosine", "cosine_zero_snr", "sigmoid", "rectified_flow", "edm"]
PredictionName = Literal["eps", "x0", "v", "flow", "edm"]
WeightingName = Literal["uniform", "min_snr", "p2", "edm", "vlb"]
TimeDrawName = Literal["uniform", "stratified", "low_discrepancy", "logit_normal", "edm"]
SamplerName = Literal["ddpm", "ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"]
TimeGridName = Literal["uniform", "quadratic", "karras", "log_snr", "shifted"]
