"""The schedule that a diffusers scheduler's configuration describes."""

import math
from typing import Any

import torch
from torch import Tensor

from fastgen.config.diffusers import FLOW, FLOW_STEPS
from fastgen.diffusion.schedules import Discrete, RectifiedFlow, Schedule, cosine, linear, zero_terminal_snr
from fastgen.errors import expect, lookup

# Schedulers whose networks are trained alike, on a chain of betas: they differ in how they sample.
CHAINS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
)


def schedule_of(config: dict[str, Any]) -> Schedule:
    """The schedule of a configuration that `read_scheduler` gave. Raises ValueError, naming the key, where there is none."""
    name = config["_class_name"]
    expect("scheduler._class_name", name, name in (*CHAINS, FLOW), f"one of {', '.join((*CHAINS, FLOW))}")
    return _flow(config) if name == FLOW else _chain(config)


def _flow(config: dict[str, Any]) -> RectifiedFlow:
    steps, shift = config.get("num_train_timesteps", FLOW_STEPS), config.get("shift", 1.0)
    expect("scheduler.num_train_timesteps", steps, steps == FLOW_STEPS, f"{FLOW_STEPS} for a flow")
    expect("scheduler.shift", shift, _is_number(shift) and 0 < shift < math.inf, "a finite number > 0")
    _expect_off(config, "use_dynamic_shifting", "invert_sigmas", "shift_terminal")
    return RectifiedFlow(shift)


def _chain(config: dict[str, Any]) -> Discrete:
    variance, prediction = config.get("variance_type"), config.get("prediction_type", "epsilon")
    expect("scheduler.variance_type", variance, not str(variance).startswith("learned"), "one that the network does not predict")
    _expect_off(config, "use_flow_sigmas")
    schedule = Discrete(_betas(config), stepwise=True)
    if config.get("rescale_betas_zero_snr"):
        schedule = zero_terminal_snr(schedule)
    defined = prediction != "epsilon" or not schedule.zero_terminal_snr
    expect("scheduler.prediction_type", prediction, defined, "sample or v_prediction where the last step leaves no signal")
    return schedule


def _betas(config: dict[str, Any]) -> Tensor:
    if config.get("trained_betas") is not None:
        betas = config["trained_betas"]
        good = isinstance(betas, list) and betas and all(_is_number(beta) and 0 <= beta <= 1 for beta in betas)
        expect("scheduler.trained_betas", betas, good, "a list of numbers in [0, 1]")
        return torch.tensor(betas, dtype=torch.float64)
    steps = config.get("num_train_timesteps", 1000)
    expect("scheduler.num_train_timesteps", steps, isinstance(steps, int) and steps >= 1, "a whole number >= 1")
    return lookup("scheduler.beta_schedule", config.get("beta_schedule", ""), _BETAS)(config, steps)


def _linear(config: dict[str, Any], steps: int) -> Tensor:
    return linear(steps, *_ends(config)).betas


def _scaled_linear(config: dict[str, Any], steps: int) -> Tensor:
    """Linear in sqrt(beta) (Rombach et al. 2022, arXiv:2112.10752)."""
    start, end = _ends(config)
    return linear(steps, start**0.5, end**0.5).betas ** 2


def _cosine(config: dict[str, Any], steps: int) -> Tensor:
    return cosine(steps).betas


def _sigmoid(config: dict[str, Any], steps: int) -> Tensor:
    """Betas, not alpha², follow a sigmoid (GeoDiff, Xu et al. 2022, arXiv:2203.02923)."""
    start, end = _ends(config)
    return torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start


_BETAS = {"linear": _linear, "scaled_linear": _scaled_linear, "squaredcos_cap_v2": _cosine, "sigmoid": _sigmoid}


def _ends(config: dict[str, Any]) -> tuple[float, float]:
    for key in ("beta_start", "beta_end"):
        value: Any = config.get(key)
        expect(f"scheduler.{key}", value, _is_number(value) and 0 <= value <= 1, "a number in [0, 1]")
    return config["beta_start"], config["beta_end"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _expect_off(config: dict[str, Any], *keys: str) -> None:
    for key in keys:
        expect(f"scheduler.{key}", config.get(key), not config.get(key), "none: it has no counterpart here")
