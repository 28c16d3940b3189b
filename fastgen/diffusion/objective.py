"""Objectives: modules that return a loss per sample, (N,) fp32. They are what DDP, FSDP2 and torch.compile wrap."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastgen import noise_streams
from fastgen.config.names import TimeDrawName
from fastgen.diffusion.conditions import Condition
from fastgen.diffusion.denoiser import expect_labels, expect_output, null_label
from fastgen.diffusion.process import Diffusion
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect, is_number, lookup
from fastgen.functional import at, denoising_loss, fresh_key, philox_normal, philox_uniform, q_sample
from fastgen.pixels import uint8_to_signed
from fastgen_kernels.checks import check_finite_values, check_float_or_uint8, check_key, check_shape
from fastgen_kernels.diffusion_loss import KINDS, Kind


class DiffusionObjective(nn.Module):
    """The weighted denoising loss (DDPM, arXiv:2006.11239, eq. 14, for every schedule, prediction and weighting).

    times: how t is drawn, a name in TIME_DRAWS. loss: "mse", "l1", "huber" or "charbonnier". label_dropout: the share of samples
    that lose their label and context, so that guidance has an unconditional model. strata: the global batch size of "stratified"
    and "low_discrepancy" times, the batch's own when None. condition: made from x0 and concatenated to x_t, as further
    channels. Raises ValueError for an unknown `times` and for a label_dropout outside of [0, 1].
    """

    def __init__(
        self,
        net: nn.Module,
        diffusion: Diffusion,
        *,
        times: TimeDrawName = "uniform",
        loss: Kind = "mse",
        label_dropout: float = 0.0,
        strata: int | None = None,
        condition: Condition | None = None,
    ):
        super().__init__()
        lookup("times", times, TIME_DRAWS)
        lookup("loss", loss, dict.fromkeys(KINDS))
        expect("label_dropout", label_dropout, is_number(label_dropout, 0, 1), "a number in [0, 1]")
        expect("net", net, callable(net), "a network")
        expect("diffusion", diffusion, isinstance(diffusion, Diffusion), "a fastgen.Diffusion")
        self.net, self.diffusion = net, diffusion
        self.times, self.loss, self.label_dropout, self.strata = times, loss, label_dropout, strata
        self.condition, self.null_label = condition, null_label(net)

    def forward(
        self, x0: Tensor, label: Tensor | None = None, context: Tensor | None = None, *, key: Tensor | None = None
    ) -> Tensor:
        """The loss of each sample, (N,) fp32.

        x0: (N, C, *S), floating in [-1, 1] or uint8. label: int64 (N,), context: (N, L, D), as the network takes them. key: int64
        (N, 4), which the noise is drawn from, and t, label dropout and the condition from other streams of it; from torch's
        generator when None. Raises ValueError for labels to drop where the network has no null label."""
        check_float_or_uint8(x0=x0)
        if x0.dtype != torch.uint8:
            check_finite_values(x0=x0)
        key = fresh_key(x0.shape[0], x0.device) if key is None else key
        check_key(key, x0.shape[0])
        if label is not None:
            expect_labels("label", label)
            check_shape(x0.shape[:1], "(N,)", label=label)
        t = TIME_DRAWS[self.times](at(key, stream=noise_streams.TIME), self.strata, self.diffusion.schedule)
        label, context = self._drop(label, context, key)

        terms = self.diffusion.terms(t)
        x_t = q_sample(x0, terms.alpha, terms.sigma, key=key, target=None)  # the noise, which the loss draws again from the key
        if terms.c_in is not None:
            x_t = x_t * terms.c_in.view(-1, *[1] * (x_t.dim() - 1))
        if self.condition is not None:
            beside = self.condition(uint8_to_signed(x0), at(key, stream=noise_streams.CONDITION))
            x_t = torch.cat([x_t, beside.to(x_t.dtype)], dim=1)
        pred, coefficients = self.net(x_t, t, label, context), (terms.target_alpha, terms.target_sigma)
        expect_output(pred, x0.shape)
        return denoising_loss(pred, x0, *coefficients, key, terms.weight, target=terms.target, kind=self.loss)

    def _drop(self, label: Tensor | None, context: Tensor | None, key: Tensor) -> tuple[Tensor | None, Tensor | None]:
        if self.label_dropout == 0 or (label is None and context is None):
            return label, context
        drop = philox_uniform((key.shape[0],), at(key, stream=noise_streams.LABEL)) < self.label_dropout
        if label is not None:
            if self.null_label is None:
                raise ValueError(f"label_dropout: expected 0 for a network without a null label, got {self.label_dropout}")
            label = torch.where(drop, self.null_label, label)
        if context is not None:
            context = torch.where(drop[:, None, None], 0.0, context)
        return label, context


def _uniform(key: Tensor, strata: int | None, schedule: Schedule) -> Tensor:
    return philox_uniform((key.shape[0],), key)


def _stratified(key: Tensor, strata: int | None, schedule: Schedule) -> Tensor:
    """Sample i of B lies in [i / B, (i + 1) / B): the batch covers [0, 1] evenly."""
    strata = strata or key.shape[0]
    return (key[:, 3] % strata + philox_uniform((key.shape[0],), key)) / strata


def _low_discrepancy(key: Tensor, strata: int | None, schedule: Schedule) -> Tensor:
    """Sample i of B is at (u + i / B) mod 1, with one u for the whole batch (VDM, Kingma et al. 2021, arXiv:2107.00630,
    appendix I.1)."""
    strata = strata or key.shape[0]
    first = F.pad(key[:, :3], (0, 1))  # every sample draws what sample 0 does, in whatever part of the batch it is
    t = (philox_uniform((key.shape[0],), first) + key[:, 3] % strata / strata) % 1
    return t.clamp(min=2**-24)  # the sum may round to 1, whose remainder is 0, where some weights are infinite


def _logit_normal(key: Tensor, strata: int | None, schedule: Schedule) -> Tensor:
    """t = sigmoid(n), n ~ N(0, 1) (Stable Diffusion 3, Esser et al. 2024, arXiv:2403.03206, section 3.1)."""
    return philox_normal((key.shape[0],), key).sigmoid()


def _edm(key: Tensor, strata: int | None, schedule: Schedule) -> Tensor:
    """ln(sigma / alpha) ~ N(-1.2, 1.2²) (Karras et al. 2022, arXiv:2206.00364, table 1), clamped to the schedule's range."""
    return schedule.time(-2 * (1.2 * philox_normal((key.shape[0],), key) - 1.2))


TIME_DRAWS = {
    "uniform": _uniform,
    "stratified": _stratified,
    "low_discrepancy": _low_discrepancy,
    "logit_normal": _logit_normal,
    "edm": _edm,
}
