"""denoise(x_t, t) -> x0_hat: the contract, and a network with its conditions and guidance that keeps it."""

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from fastgen.config.sampling import Guidance
from fastgen.device import host_may_read
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect, is_number
from fastgen.functional import to_x0
from fastgen_kernels.messages import shown

ALWAYS = Guidance().interval


class Denoise(Protocol):
    """The contract of samplers, likelihoods and applications: denoise(x_t, t) -> x0_hat, an estimate of the clean sample.

    x_t: (N, *S) floating, alpha(t)·x0 + sigma(t)·eps on `schedule`. t: (N,) or 0-dim, in [0, 1]. x0_hat: of x_t's shape. Any
    callable of this form with a `schedule` is one."""

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that x_t and t follow."""
        ...

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


def expect_denoise(denoise: object) -> None:
    """Raises TypeError for an object that is not callable or has no schedule, such as a bare network or function."""
    if not callable(denoise) or getattr(denoise, "schedule", None) is None:
        found = f"{type(denoise).__name__} {getattr(denoise, '__qualname__', '')}".rstrip()
        raise TypeError(f"denoise: expected a callable with a .schedule, as Diffusion.denoiser makes it, got {found}")


class Denoiser:
    """denoise(x_t, t) -> x0_hat, the network's estimate of the clean sample.

    x_t: (N, C, *S). t: (N,) or a 0-dim tensor on x_t's device. label: int64 (N,). context: (N, L, D).
    preconditioning(alpha, sigma) -> c_in, c_skip, c_out: what the network predicts, a row of `PREDICTIONS`.

    guidance.guidance: w of out = other + w · (net(x_t, label, context) - other), where w = 1 is the network itself, in one
    forward of N. The kind of guidance depends on `other`:
      by default           the network without a condition: the null label, a context of zeros (classifier-free guidance, Ho &
                           Salimans 2022, arXiv:2207.12598, eq. 6), in one forward of 2N
      negative_label,      the network under a negative condition, of label's and context's shape, in the same forward
      negative_context
      guide                a weaker network that predicts the same, under the same condition unless a negative one is given
                           (autoguidance, Karras et al. 2024, arXiv:2406.02507, section 4)

    guidance.interval: w acts where low < t <= high, and is 1 elsewhere (Kynkäänniemi et al. 2024, arXiv:2404.07724, section 3,
    in t for sigma). Every step computes `other`, so that none waits for the device.
    guidance.rescale: phi in [0, 1] brings the deviation of the guided output back to that of the network's own, sample by sample
    (Lin et al. 2023, arXiv:2305.08891, section 3.4).
    clip: x0_hat is clamped to [-clip, clip] where it is given.

    Raises TypeError for labels that are no integers, ValueError for a clip that is not > 0, an output of another shape than x_t,
    guidance other than 1 without a label, a context or a guide, a label that the network does not have, a
    negative condition of another shape.
    """

    def __init__(
        self,
        schedule: Schedule,
        preconditioning: Callable[[Tensor, Tensor], tuple[Tensor | None, Tensor, Tensor]],
        net: nn.Module,
        guidance: Guidance,
        *,
        label: Tensor | None = None,
        context: Tensor | None = None,
        negative_label: Tensor | None = None,
        negative_context: Tensor | None = None,
        guide: nn.Module | None = None,
        clip: float | None = None,
    ):
        expect("net", net, callable(net), "a network")
        expect("guide", guide, guide is None or callable(guide), "None or a network")
        expect("clip", clip, clip is None or (is_number(clip, 0) and clip > 0), "None or a finite number > 0")
        check_label("label", label, net)
        expect_labels("negative_label", negative_label)
        self.schedule, self.preconditioning, self.net, self.label, self.context = schedule, preconditioning, net, label, context
        self.guidance, self.guide, self.clip = guidance, guide, clip
        if guidance.guidance != 1:
            given = any(c is not None for c in (label, context, guide))
            expect("guidance", guidance.guidance, given, "1 where there is neither label nor context")
            null = null_label(net)
            known = label is None or guide is not None or negative_label is not None or null is not None
            expect("guidance", guidance.guidance, known, "1 for a network without a null label")
            self.other_label = _other("label", label, negative_label, guide, null)
            self.other_context = _other("context", context, negative_context, guide, 0.0)
            check_label("negative_label", self.other_label, guide or net)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x0_hat, of the shape and dtype of x, (N, C, *S); t: (N,) or 0-dim."""
        t = t.expand(x.shape[0])
        c_in, c_skip, c_out = self.preconditioning(*self.schedule.marginal(t))
        x_in = x if c_in is None else x * c_in.view(-1, *[1] * (x.dim() - 1))
        if self.guidance.guidance == 1:
            out = expect_output(self.net(x_in, t, self.label, self.context), x.shape)
            x0 = to_x0(out, x, c_skip, c_out)
        else:
            out, other = self._out_and_other(x_in, t)
            w = self._weight(t)
            factor = rescaling(out, other, w, self.guidance.rescale)
            x0 = to_x0(out, x, c_skip, c_out if factor is None else c_out * factor, uncond=other, guidance=w)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def _out_and_other(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        if self.guide is not None:
            out = expect_output(self.net(x, t, self.label, self.context), x.shape)
            return out, expect_output(self.guide(x, t, self.other_label, self.other_context), x.shape)
        label, context = _pair(self.label, self.other_label), _pair(self.context, self.other_context)
        twice = torch.cat([x, x])
        return expect_output(self.net(twice, torch.cat([t, t]), label, context), twice.shape).chunk(2)

    def _weight(self, t: Tensor) -> float | Tensor:
        """w, or w by sample where it acts at some times only: chosen on the device."""
        w, (low, high) = self.guidance.guidance, self.guidance.interval
        if (low, high) == ALWAYS:
            return w
        return torch.where((t > low) & (t <= high), torch.full_like(t, w), 1.0)


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


def expect_labels(argument: str, label: object) -> None:
    """Raises TypeError for what is neither None nor a tensor of int64 or int32."""
    if label is not None and not (isinstance(label, Tensor) and label.dtype in (torch.int64, torch.int32)):
        raise TypeError(f"{argument}: expected int64 (N,), got {label.dtype if isinstance(label, Tensor) else shown(label)}")


def expect_output(out: object, shape: torch.Size) -> Tensor:
    """A network's output. Raises ValueError for one that is not a floating tensor of the shape."""
    fits = isinstance(out, Tensor) and out.shape == shape and out.is_floating_point()
    found = f"{out.dtype} of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
    if not fits:
        raise ValueError(f"net: expected an output of floats of shape {tuple(shape)}, got {found}")
    return cast(Tensor, out)


def null_label(net: nn.Module) -> int | None:
    """The label of the unconditional model, num_classes; None for a network without classes, or without such a label."""
    return getattr(net, "num_classes", None) if getattr(net, "has_null_label", True) else None


def check_label(argument: str, label: Tensor | None, net: nn.Module) -> None:
    """Raises TypeError for labels that are no integers, ValueError for one beyond the network's classes and its null label."""
    expect_labels(argument, label)
    num_classes = getattr(net, "num_classes", None)
    if label is None or num_classes is None or label.numel() == 0:
        return
    if not host_may_read(label):
        return  # what a CUDA graph records has been run, and checked, before
    last = num_classes if null_label(net) is not None else num_classes - 1
    low, high = int(label.min()), int(label.max())
    expect(argument, low if low < 0 else high, low >= 0 and high <= last, f"labels from 0 to {last}")


def _other(
    name: str, condition: Tensor | None, negative: Tensor | None, guide: nn.Module | None, null: float | None
) -> Tensor | None:
    """The condition of `other`."""
    if negative is not None:
        shape = None if condition is None else tuple(condition.shape)
        expect(f"negative_{name}", tuple(negative.shape), tuple(negative.shape) == shape, f"the shape of {name}, {shape}")
        return negative
    return condition if condition is None or null is None or guide is not None else torch.full_like(condition, null)


def _pair(condition: Tensor | None, other: Tensor | None) -> Tensor | None:
    return None if condition is None or other is None else torch.cat([condition, other])
