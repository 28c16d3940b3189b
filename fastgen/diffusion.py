"""The diffusion contract: a schedule, what the network predicts, and how the loss is weighted.

`PREDICTIONS` and `WEIGHTINGS` are the tables of names that configurations use; `fastgen.schedules` is the third.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from fastgen.errors import lookup
from fastgen.functional import to_x0
from fastgen.interchange.scheduler import schedule_of
from fastgen.interchange.scheduler_config import prediction_of, read_scheduler
from fastgen.schedules import SCHEDULES, Schedule
from fastgen_kernels.q_sample import Target

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


PREDICTIONS: dict[str, Callable[[Tensor, Tensor], Preconditioning]] = {
    "eps": _eps,
    "x0": _x0,
    "v": _v,
    "flow": _flow,
    "edm": _edm,
}

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


class Diffusion:
    """A schedule (its name or an object of `fastgen.schedules`), a prediction and a weighting.

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
        return PREDICTIONS[self.prediction](self.schedule.alpha(t), self.schedule.sigma(t))

    def weight(self, t: Tensor) -> Tensor:
        """The weight of the prediction's squared error at t, of t's shape."""
        return WEIGHTINGS[self.weighting](self.schedule, t, self.preconditioning(t).c_out)

    def target(self, t: Tensor) -> tuple[Target, Tensor, Tensor]:
        """What the prediction at t is compared with, as q_sample and denoising_loss take it: target, alpha and sigma."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        if self.prediction != "edm":
            return self.prediction, alpha, sigma
        # (x0 - c_skip·x_t) / c_out is a v of other coefficients.
        c_in = PREDICTIONS["edm"](alpha, sigma).c_in
        assert c_in is not None
        return "v", -SIGMA_DATA * alpha * c_in, -sigma / SIGMA_DATA * c_in

    def denoiser(
        self,
        net: nn.Module,
        *,
        label: Tensor | None = None,
        context: Tensor | None = None,
        guidance: float = 1.0,
        clip: float | None = None,
    ) -> "Denoiser":
        """denoise(x_t, t) -> x0_hat for the samplers; see Denoiser."""
        return Denoiser(self, net, label, context, guidance, clip)


class Denoiser:
    """denoise(x_t, t) -> x0_hat, the network's estimate of the clean sample.

    x_t: (N, C, *S). t: (N,) or a 0-dim tensor on x_t's device. label: int64 (N,). context: (N, L, D).
    guidance: w of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), out = uncond + w · (cond - uncond), both in
    one forward of 2N; w = 1 is the conditional model itself. The unconditional half has the null label and a context of zeros.
    clip: x0_hat is clamped to [-clip, clip] where it is given.

    Raises ValueError for guidance other than 1 with neither label nor context, or with a label and no null label.
    """

    def __init__(
        self,
        diffusion: Diffusion,
        net: nn.Module,
        label: Tensor | None,
        context: Tensor | None,
        guidance: float,
        clip: float | None,
    ):
        if guidance != 1 and label is None and context is None:
            raise ValueError(f"guidance: expected 1 where there is neither label nor context, got {guidance}")
        if guidance != 1 and label is not None and null_label(net) is None:
            raise ValueError(f"guidance: expected 1 for a network without a null label, got {guidance}")
        self.diffusion, self.net, self.guidance, self.clip = diffusion, net, guidance, clip
        self.label, self.context = label, context

    @property
    def schedule(self) -> Schedule:
        return self.diffusion.schedule

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.expand(x.shape[0])
        c_in, c_skip, c_out = self.diffusion.preconditioning(t)
        x_in = x if c_in is None else x * c_in.view(-1, *[1] * (x.dim() - 1))
        if self.guidance == 1:
            x0 = to_x0(self.net(x_in, t, self.label, self.context), x, c_skip, c_out)
        else:
            out, uncond = self._conditional_and_not(x_in, t)
            x0 = to_x0(out, x, c_skip, c_out, uncond=uncond, guidance=self.guidance)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _conditional_and_not(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        label, context = self.label, self.context
        null = null_label(self.net)
        if label is not None and null is not None:
            label = torch.cat([label, torch.full_like(label, null)])
        if context is not None:
            context = torch.cat([context, torch.zeros_like(context)])
        return self.net(torch.cat([x, x]), torch.cat([t, t]), label, context).chunk(2)


def null_label(net: nn.Module) -> int | None:
    """The label that stands for none, num_classes; None for a network that has no classes, or no label beyond them."""
    return getattr(net, "num_classes", None) if getattr(net, "has_null_label", True) else None
