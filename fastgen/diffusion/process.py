"""The diffusion contract: a schedule, what the network predicts, and how the loss is weighted.

Each is a row of a table of names that configurations use: `SCHEDULES` (schedules.py), `PREDICTIONS` and `WEIGHTINGS` (here).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.config.diffusers import prediction_of, read_scheduler
from fastgen.config.names import PredictionName, ScheduleName, WeightingName
from fastgen.config.sampling import Guidance
from fastgen.diffusion.denoiser import ALWAYS, Denoiser
from fastgen.diffusion.scheduler import schedule_of
from fastgen.diffusion.schedules import SCHEDULES, Schedule
from fastgen.errors import expect, lookup
from fastgen_kernels.q_sample import Target

SIGMA_DATA = 0.5  # the deviation of images in [-1, 1], as EDM has it


# What the network predicts, as the coefficients that turn its output into x0


class Preconditioning(NamedTuple):
    """x0_hat = c_skip · x_t + c_out · net(c_in · x_t, t); c_in None reads x_t as it is."""

    c_in: Tensor | None
    c_skip: Tensor
    c_out: Tensor


def _eps(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """eps = (x_t - alpha·x0) / sigma (DDPM, arXiv:2006.11239, eq. 9)."""
    return Preconditioning(None, 1 / alpha, -sigma / alpha)


def _x0(alpha: Tensor, sigma: Tensor) -> Preconditioning:
    """x0 itself (DDPM, section 3.2)."""
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


# How the loss is weighted over t


def _uniform(schedule: Schedule, t: Tensor, c_out: Tensor) -> Tensor:
    """1 on the prediction's own error."""
    return torch.ones_like(c_out)


def _min_snr(schedule: Schedule, t: Tensor, c_out: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, gamma) on the error of x0 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    return schedule.log_snr(t).exp().clamp(max=gamma) * c_out**2


def _p2(schedule: Schedule, t: Tensor, c_out: Tensor) -> Tensor:
    """1 / (1 + SNR) on the error of eps, SNR / (1 + SNR) on that of x0 (Choi et al. 2022, arXiv:2204.00227, eq. 8 with k = gamma
    = 1)."""
    return schedule.log_snr(t).sigmoid() * c_out**2


def _edm_weight(schedule: Schedule, t: Tensor, c_out: Tensor) -> Tensor:
    """(sigma² + sigma_data²) / (sigma · sigma_data)² on the error of x0, where sigma is sigma / alpha: 1 on EDM's own prediction
    (Karras et al. 2022, arXiv:2206.00364, table 1)."""
    return (schedule.log_snr(t).exp() + SIGMA_DATA**-2) * c_out**2


def _vlb(schedule: Schedule, t: Tensor, c_out: Tensor) -> Tensor:
    """-SNR'(t) / 2 on the error of x0 (Kingma et al. 2021, arXiv:2107.00630, section 5): with t uniform the loss is the diffusion
    term of the variational bound, in nats per element."""
    return schedule.snr_decay(t) / 2 * c_out**2


# A weight multiplies the squared error of the prediction. One that is stated on the error of x0 becomes that by c_out²,
# since x0_hat - x0 = c_out · (prediction - target): so a weighting means the same for every prediction. Those that grow with
# the SNR have no value at t = 0.
WEIGHTINGS: dict[str, Callable[[Schedule, Tensor, Tensor], Tensor]] = {
    "uniform": _uniform,
    "min_snr": _min_snr,
    "p2": _p2,
    "edm": _edm_weight,
    "vlb": _vlb,
}


class Terms(NamedTuple):
    """What the loss needs of t, each (N,): x_t = alpha·x0 + sigma·eps, which the network reads times c_in, or as it is; what its
    output is compared with, as denoising_loss takes it; and the weight of the squared error."""

    alpha: Tensor
    sigma: Tensor
    c_in: Tensor | None
    target: Target
    target_alpha: Tensor
    target_sigma: Tensor
    weight: Tensor


class Diffusion:
    """A schedule (its name or an object of `fastgen.schedules`), a prediction and a weighting.

    Raises ValueError for an unknown name, and for eps-prediction on a schedule with zero terminal SNR, where x_1 holds no x0
    that eps could give back.
    """

    def __init__(
        self, schedule: Schedule | ScheduleName, prediction: PredictionName = "flow", weighting: WeightingName = "uniform"
    ):
        self.schedule: Schedule = lookup("schedule", schedule, SCHEDULES)() if isinstance(schedule, str) else schedule
        expect("schedule", self.schedule, isinstance(self.schedule, Schedule), f"one of {', '.join(SCHEDULES)}, or a Schedule")
        self.prediction, self.weighting = prediction, weighting
        lookup("prediction", prediction, PREDICTIONS)
        lookup("weighting", weighting, WEIGHTINGS)
        if prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError("prediction: expected 'v', 'x0', 'flow' or 'edm' on a schedule with zero terminal SNR, got 'eps'")

    @classmethod
    def from_scheduler(cls, scheduler: Any, weighting: WeightingName = "uniform") -> "Diffusion":
        """The diffusion of a diffusers scheduler: of the scheduler itself, its config, or the path of its
        scheduler_config.json, or of the folder that holds it.

        T betas are the chain with index i at t = (i + 1) / T, the only noise levels its networks know; a flow's shift is its
        schedule's. What concerns sampling alone is not read. Raises ValueError that names the key of the config for what
        cannot be represented.
        """
        config = read_scheduler(scheduler)
        return cls(schedule_of(config), prediction_of(config), weighting)

    def preconditioning(self, t: Tensor) -> Preconditioning:
        """The coefficients that turn the network's output at t into x0_hat, each of t's shape."""
        return PREDICTIONS[self.prediction](*self.schedule.marginal(t))

    def terms(self, t: Tensor) -> Terms:
        """What the loss needs of t (N,), from one look at the schedule."""
        alpha, sigma = self.schedule.marginal(t)
        c_in, _, c_out = PREDICTIONS[self.prediction](alpha, sigma)
        weight = WEIGHTINGS[self.weighting](self.schedule, t, c_out)
        if self.prediction != "edm":
            return Terms(alpha, sigma, c_in, self.prediction, alpha, sigma, weight)
        # (x0 - c_skip·x_t) / c_out is a v of other coefficients.
        assert c_in is not None
        return Terms(alpha, sigma, c_in, "v", -SIGMA_DATA * alpha * c_in, -sigma / SIGMA_DATA * c_in, weight)

    def weight(self, t: Tensor) -> Tensor:
        """The weight of the prediction's squared error at t, fp32 or fp64, of t's shape (N,)."""
        return self.terms(t).weight

    def denoiser(
        self,
        net: nn.Module,
        *,
        label: Tensor | None = None,
        context: Tensor | None = None,
        guidance: float = 1.0,
        negative_label: Tensor | None = None,
        negative_context: Tensor | None = None,
        guide: nn.Module | None = None,
        interval: tuple[float, float] = ALWAYS,
        rescale: float = 0.0,
        clip: float | None = None,
    ) -> Denoiser:
        """denoise(x_t, t) -> x0_hat for the samplers. The options are those of `Denoiser`, and of `Guidance` in
        fastgen/config/sampling.py, and so are the errors."""
        return Denoiser(
            self.schedule,
            PREDICTIONS[self.prediction],
            net,
            Guidance(guidance, interval, rescale),
            label=label,
            context=context,
            negative_label=negative_label,
            negative_context=negative_context,
            guide=guide,
            clip=clip,
        )
