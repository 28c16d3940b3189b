"""How the loss is weighted over t: `WEIGHTINGS` is the table of names."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastgen.diffusion.prediction import SIGMA_DATA
from fastgen.diffusion.schedules import Schedule


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
