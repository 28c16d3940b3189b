"""denoise(x_t, t) -> x0_hat: a network, its conditions and how they guide it."""

import math

import torch
from torch import Tensor, nn

from fastgen.diffusion.prediction import PREDICTIONS, Prediction
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect
from fastgen.functional import to_x0

ALWAYS = (0.0, 1.0)


class Denoiser:
    """denoise(x_t, t) -> x0_hat, the network's estimate of the clean sample.

    x_t: (N, C, *S). t: (N,) or a 0-dim tensor on x_t's device. label: int64 (N,). context: (N, L, D).

    guidance: w of out = other + w · (net(x_t, label, context) - other), where w = 1 is the network itself, in one forward of N.
    What `other` is makes the kind of guidance:
      by default           the network without a condition: the null label, a context of zeros (classifier-free guidance, Ho &
                           Salimans 2022, arXiv:2207.12598, eq. 6), in one forward of 2N
      negative_label,      the network under the condition to keep away from, of label's and context's shape, in the same forward
      negative_context
      guide                a weaker network that predicts the same, under the same condition unless a negative one is given
                           (autoguidance, Karras et al. 2024, arXiv:2406.02507, section 4)

    interval: w acts where low < t <= high, and is 1 elsewhere (Kynkäänniemi et al. 2024, arXiv:2404.07724, section 3,
    in t for sigma). Every step computes `other`, so that none waits for the device.
    rescale: phi in [0, 1] brings the deviation of the guided output back to that of the network's own, sample by sample (Lin et
    al. 2023, arXiv:2305.08891, section 3.4).
    clip: x0_hat is clamped to [-clip, clip] where it is given.

    Raises ValueError for guidance that is not finite, or other than 1 with nothing to guide away from, a label that the network
    does not have, a negative condition of another shape, an interval or rescale out of range.
    """

    def __init__(
        self,
        schedule: Schedule,
        prediction: Prediction,
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
    ):
        expect("guidance", guidance, math.isfinite(guidance), "a finite number")
        expect("interval", interval, 0 <= interval[0] < interval[1] <= 1, "two numbers with 0 <= low < high <= 1")
        expect("rescale", rescale, 0 <= rescale <= 1, "a number in [0, 1]")
        check_label("label", label, net)
        self.schedule, self.prediction, self.net, self.label, self.context = schedule, prediction, net, label, context
        self.guidance, self.guide, self.interval, self.rescale, self.clip = guidance, guide, interval, rescale, clip
        if guidance != 1:
            given = any(c is not None for c in (label, context, guide))
            expect("guidance", guidance, given, "1 where there is neither label nor context")
            null = null_label(net)
            known = label is None or guide is not None or negative_label is not None or null is not None
            expect("guidance", guidance, known, "1 for a network without a null label")
            self.other_label = _other("label", label, negative_label, guide, null)
            self.other_context = _other("context", context, negative_context, guide, 0.0)
            check_label("negative_label", self.other_label, guide or net)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.expand(x.shape[0])
        c_in, c_skip, c_out = PREDICTIONS[self.prediction](*self.schedule.marginal(t))
        x_in = x if c_in is None else x * _per_sample(c_in, x)
        if self.guidance == 1:
            x0 = to_x0(self.net(x_in, t, self.label, self.context), x, c_skip, c_out)
        else:
            out, other = self._out_and_other(x_in, t)
            w = self._weight(t)
            factor = rescaling(out, other, w, self.rescale)
            x0 = to_x0(out, x, c_skip, c_out if factor is None else c_out * factor, uncond=other, guidance=w)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _out_and_other(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        if self.guide is not None:
            out = self.net(x, t, self.label, self.context)
            return out, self.guide(x, t, self.other_label, self.other_context)
        label, context = _pair(self.label, self.other_label), _pair(self.context, self.other_context)
        return self.net(torch.cat([x, x]), torch.cat([t, t]), label, context).chunk(2)

    def _weight(self, t: Tensor) -> float | Tensor:
        """w, or w by sample where it acts at some times only: chosen on the device."""
        if self.interval == ALWAYS:
            return self.guidance
        low, high = self.interval
        return torch.where((t > low) & (t <= high), torch.full_like(t, self.guidance), 1.0)


def rescaling(out: Tensor, other: Tensor, w: float | Tensor, phi: float) -> Tensor | None:
    """phi · std(out) / std(guided) + 1 - phi, (N,), over the elements of a sample; None for phi = 0."""
    if phi == 0:
        return None
    dtype = torch.promote_types(out.dtype, torch.float32)
    out, other = out.to(dtype).flatten(1), other.to(dtype).flatten(1)
    guided = other + (w[:, None] if isinstance(w, Tensor) else w) * (out - other)
    deviation, of_guided = out.std(1), guided.std(1)
    ratio = torch.where(of_guided > 0, deviation / of_guided, 1.0)
    return phi * ratio + (1 - phi)


def null_label(net: nn.Module) -> int | None:
    """The label that stands for none, num_classes; None for a network that has no classes, or no label beyond them."""
    return getattr(net, "num_classes", None) if getattr(net, "has_null_label", True) else None


def check_label(argument: str, label: Tensor | None, net: nn.Module) -> None:
    """Raises ValueError for a label beyond the network's classes and its null label."""
    num_classes = getattr(net, "num_classes", None)
    if label is None or num_classes is None or label.numel() == 0:
        return
    if label.is_cuda and torch.cuda.is_current_stream_capturing():
        return  # what a CUDA graph records cannot be waited for; it has been run, and checked, before
    last = num_classes if null_label(net) is not None else num_classes - 1
    low, high = int(label.min()), int(label.max())
    expect(argument, low if low < 0 else high, low >= 0 and high <= last, f"labels from 0 to {last}")


def _other(
    name: str, condition: Tensor | None, negative: Tensor | None, guide: nn.Module | None, null: float | None
) -> Tensor | None:
    """The condition that is guided away from."""
    if negative is not None:
        shape = None if condition is None else tuple(condition.shape)
        expect(f"negative_{name}", tuple(negative.shape), tuple(negative.shape) == shape, f"the shape of {name}, {shape}")
        return negative
    return condition if condition is None or null is None or guide is not None else torch.full_like(condition, null)


def _pair(condition: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if condition is None or other is None else torch.cat([condition, other])


def _per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    return coefficient.view(-1, *[1] * (x.dim() - 1))
