"""The diffusion contract: a schedule, what the network predicts, and how the loss is weighted.

Each is a row of a table of names that configurations use: `SCHEDULES` (schedules.py), `PREDICTIONS` (prediction.py) and
`WEIGHTINGS` (weighting.py).
"""

from typing import Any, NamedTuple

from torch import Tensor, nn

from fastgen.config.diffusers import prediction_of, read_scheduler
from fastgen.diffusion.denoiser import Denoiser
from fastgen.diffusion.prediction import PREDICTIONS, SIGMA_DATA, Preconditioning, Prediction
from fastgen.diffusion.scheduler import schedule_of
from fastgen.diffusion.schedules import SCHEDULES, Schedule
from fastgen.diffusion.weighting import WEIGHTINGS
from fastgen.errors import lookup
from fastgen_kernels.q_sample import Target


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
    """A schedule (its name or an object of `fastgen.diffusion.schedules`), a prediction and a weighting.

    Raises ValueError for an unknown name, and for eps-prediction on a schedule with zero terminal SNR, where x_1 holds no x0
    that eps could give back.
    """

    def __init__(self, schedule: Schedule | str, prediction: Prediction = "flow", weighting: str = "uniform"):
        self.schedule: Schedule = lookup("schedule", schedule, SCHEDULES)() if isinstance(schedule, str) else schedule
        self.prediction, self.weighting = prediction, weighting
        lookup("prediction", prediction, PREDICTIONS)
        lookup("weighting", weighting, WEIGHTINGS)
        if prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError("prediction: expected 'v', 'x0', 'flow' or 'edm' on a schedule with zero terminal SNR, got 'eps'")

    @classmethod
    def from_scheduler(cls, scheduler: Any, weighting: str = "uniform") -> "Diffusion":
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
        """What training needs of t (N,), from one look at the schedule."""
        alpha, sigma = self.schedule.marginal(t)
        c_in, _, c_out = PREDICTIONS[self.prediction](alpha, sigma)
        weight = WEIGHTINGS[self.weighting](self.schedule, t, c_out)
        if self.prediction != "edm":
            return Terms(alpha, sigma, c_in, self.prediction, alpha, sigma, weight)
        # (x0 - c_skip·x_t) / c_out is a v of other coefficients.
        assert c_in is not None
        return Terms(alpha, sigma, c_in, "v", -SIGMA_DATA * alpha * c_in, -sigma / SIGMA_DATA * c_in, weight)

    def weight(self, t: Tensor) -> Tensor:
        """The weight of the prediction's squared error at t, of t's shape."""
        return self.terms(t).weight

    def denoiser(self, net: nn.Module, **options: Any) -> Denoiser:
        """denoise(x_t, t) -> x0_hat for the samplers; the options are those of `Denoiser`: label, context, guidance and what
        shapes it, clip."""
        return Denoiser(self.schedule, self.prediction, net, **options)
