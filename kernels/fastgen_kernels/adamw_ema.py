"""AdamW with clipping of the gradient's norm, moving averages and low-precision copies of the weights, in place, for all the
parameters of a model at once.

s = min(1, clip / (‖g‖ + 1e-6)), ‖g‖ over all gradients              (torch.nn.utils.clip_grad_norm_), 1 without clip
p = p (1 - lr weight_decay)                                          (AdamW, Loshchilov and Hutter, arXiv:1711.05101, algorithm 2)
m = beta1 m + (1 - beta1) s g;   v = beta2 v + (1 - beta2) (s g)^2
p = p - lr / (1 - beta1^t) · m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
a = d a + (1 - d) p, the n-th time with d = min(decay, n / (n + warmup)) (1 - 1/n)^exponent
c = p

Where ‖g‖ is not finite all stays as it is, and the step is counted as skipped. All that decides is on the device.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from fastgen_kernels.checks import FLOATS
from fastgen_kernels.dispatch import use_triton
from fastgen_kernels.library import define


class Settings(NamedTuple):
    """Of a group of parameters."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2


class Profile(NamedTuple):
    """How an average forgets, d above: a decay that rises from 1 / (1 + warmup), or the exponent gamma + 1 of a power function
    (EDM2, Karras et al. 2024, arXiv:2312.02696, section 3.1)."""

    decay: float = 1.0
    warmup: float = 0.0
    exponent: float = 0.0


def adamw_ema_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    counts: Tensor,
    lr: Tensor,
    settings: Sequence[Settings],
    groups: Sequence[int],
    *,
    averages: Sequence[list[Tensor]] = (),
    profiles: Sequence[Profile] = (),
    copies: Sequence[Tensor] = (),
    clip: float = 0.0,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    checked: bool = False,
) -> None:
    """One step, in place, of the parameters that have gradients, which come first, and of the averages of all.

    params: of one float dtype, each without gaps in memory.
    grads: of the first parameters, in any float dtype and layout; they may be scaled in place.
    exp_avgs, exp_avg_sqs: m and v of the same parameters, of their dtype and layout.
    steps: t of the same parameters, 0-dim fp32.
    counts: int64 (2,), the steps made and the steps skipped.
    lr: fp64 (G,), the learning rate of each group, on the parameters' device.
    settings: the other settings of each of G groups.
    groups: of each parameter with a gradient, the number of its group.
    averages: up to two lists as long as params, of the parameters' dtype and layout.
    profiles: one for each list of averages.
    copies: of the first parameters, in any float dtype and in their layout.
    clip: the largest norm of all gradients together; inf only checks that it is finite, 0 does not look at it.
    grad_scale: 0-dim fp32, what the gradients are to be divided by, as torch.amp.GradScaler's.
    found_inf: 0-dim fp32; where it is not 0 the step is skipped.
    checked: whether the last step had the same tensors beside the gradients, so that they need not be checked again.

    The arithmetic is in fp32; for fp64 parameters, which take the reference, in fp64.

    Raises ValueError for numbers of tensors, shapes, dtypes, layouts or devices that do not fit together.
    """
    if not checked:
        _check(params, grads, exp_avgs, exp_avg_sqs, steps, counts, lr, settings, groups, averages, profiles, copies)
    if not params:
        return
    if [g.stride() for g in grads] != [p.stride() for p in params[: len(grads)]]:
        pairs = zip(grads, params, strict=False)
        grads = [g if same_layout(g, p) else torch.empty_like(p, dtype=g.dtype).copy_(g) for g, p in pairs]
    copies = list(copies)
    state = params, grads, exp_avgs, exp_avg_sqs, steps
    if params[0].dtype == torch.float32 and use_triton(params[0]):
        first, second, *_ = (*averages, (), ())
        numbers = list(chain(*settings)), groups, list(chain(*profiles)), clip
        _adamw_ema_(*state, first, second, copies, counts, lr, *numbers, grad_scale, found_inf)
    else:
        adamw_ema_reference_(
            *state, counts, lr, settings, groups, averages=averages, profiles=profiles, copies=copies, clip=clip,
            grad_scale=grad_scale, found_inf=found_inf,
        )  # fmt: skip


@torch.no_grad()
def adamw_ema_reference_(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    counts: Tensor,
    lr: Tensor,
    settings: Sequence[Settings],
    groups: Sequence[int],
    *,
    averages: Sequence[list[Tensor]],
    profiles: Sequence[Profile],
    copies: list[Tensor],
    clip: float,
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """The step of adamw_ema_ by PyTorch's fused AdamW and foreach operations, in place; the arguments have passed its checks.

    Its rounding is that of PyTorch's operations; the kernels', which compute the step size in fp64, differs in the last digits.
    """
    grads = [g if g.dtype == p.dtype else g.to(p.dtype) for g, p in zip(grads, params, strict=False)]
    if clip > 0:
        grad_scale, found_inf = clipping(torch.nn.utils.get_total_norm(grads), clip, grad_scale, found_inf)
    if found_inf is not None:
        found_inf = (found_inf != 0).float()  # a fused step is skipped at 1 alone
    kept = torch.ones((), device=counts.device) if found_inf is None else 1 - found_inf
    weights = [kept * (1 - decay_at(counts[0] + 1, profile)) for profile in profiles]
    counts += torch.stack((kept, 1 - kept)).to(counts.dtype)

    if steps:
        torch._foreach_add_(steps, [kept] * len(steps))
    lr = lr if lr.device.type == "cpu" else lr.float()  # as the fused step takes it there
    for group, (beta1, beta2, eps, weight_decay) in enumerate(settings):
        p, g, m, v, t = (
            [x for x, of in zip(xs, groups, strict=False) if of == group] for xs in (params, grads, exp_avgs, exp_avg_sqs, steps)
        )
        torch._fused_adamw_(
            p, g, m, v, [], t, lr=lr[group], beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay,
            amsgrad=False, maximize=False, grad_scale=grad_scale, found_inf=found_inf,
        )  # fmt: skip
    for average, weight in zip(averages, weights, strict=True):
        torch._foreach_lerp_(average, params, [weight.to(params[0].dtype)] * len(params))
    if copies:
        torch._foreach_copy_(copies, params[: len(copies)])


def clipping(norm: Tensor, clip: float, grad_scale: Tensor | None, found_inf: Tensor | None) -> tuple[Tensor, Tensor]:
    """The grad_scale and found_inf of a step that clips: those given, with s above and whether ‖g‖ is finite. norm: that of the
    gradients before they are divided by grad_scale."""
    norm = norm if grad_scale is None else norm / grad_scale
    infinite = (~norm.isfinite()).float()
    divisor = ((norm + 1e-6) / clip).clamp(min=1).float()
    return (
        divisor if grad_scale is None else grad_scale * divisor,
        infinite if found_inf is None else infinite.maximum(found_inf),
    )


def decay_at(n: Tensor, profile: Profile) -> Tensor:
    """d above, fp64, for the n-th update, counted from 1."""
    n = n.double()
    return (n / (n + profile.warmup)).clamp(max=profile.decay) * (1 - 1 / n) ** profile.exponent


def same_layout(x: Tensor, y: Tensor) -> bool:
    """Whether the elements of two tensors of one shape lie in the same order, with the same gaps."""
    a, b = x.stride(), y.stride()
    return a == b or all(s == t or n == 1 for s, t, n in zip(a, b, x.shape, strict=True))


def _check(
    params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
    steps: list[Tensor], counts: Tensor, lr: Tensor, settings: Sequence[Settings], groups: Sequence[int],
    averages: Sequence[list[Tensor]], profiles: Sequence[Profile], copies: Sequence[Tensor],
) -> None:  # fmt: skip
    trained, dtype = len(grads), params[0].dtype if params else torch.float32
    if len(averages) > 2 or len(profiles) != len(averages):
        raise ValueError(
            f"averages: expected up to two lists, with a profile each, got {len(averages)} and {len(profiles)} profiles"
        )
    if not len(copies) <= trained <= len(params):
        raise ValueError(
            f"grads, copies: expected those of the first parameters, got {trained} grads and {len(copies)} copies of "
            f"{len(params)} params"
        )
    if not trained == len(exp_avgs) == len(exp_avg_sqs) == len(steps) == len(groups):
        raise ValueError(
            f"exp_avgs, exp_avg_sqs, steps, groups: expected as many as grads, {trained}, "
            f"got {len(exp_avgs)}, {len(exp_avg_sqs)}, {len(steps)} and {len(groups)}"
        )
    for i, average in enumerate(averages):
        if len(average) != len(params):
            raise ValueError(f"averages[{i}]: expected as many as params, {len(params)}, got {len(average)}")
    if len(devices := {p.device for p in params}) > 1:
        raise ValueError(f"params: expected all on one device, got {', '.join(sorted(map(str, devices)))}")
    numbers, strides = [p.numel() for p in params], [p.stride() for p in params]
    for xs in (params, grads, exp_avgs, exp_avg_sqs, *averages, copies):
        dtypes = FLOATS if xs is grads or xs is copies else (dtype,)
        alike = [x.numel() for x in xs] == numbers[: len(xs)] and [x.stride() for x in xs] == strides[: len(xs)]
        if alike and {x.dtype for x in xs} <= {*dtypes} and {x.device for x in xs} <= {params[0].device}:
            continue  # the usual, in little time
        for x, p in zip(xs, params, strict=False):
            like = (x.shape, x.device) == (p.shape, p.device) and x.dtype in dtypes and (xs is grads or same_layout(x, p))
            if not like:
                raise ValueError(f"params: expected what belongs to a parameter to be like it, {_text(p)}, got {_text(x)}")
    for name, x, shape, dtype in (("counts", counts, (2,), torch.int64), ("lr", lr, (len(settings),), torch.float64)):
        if x.dtype != dtype or x.shape != shape:
            raise ValueError(f"{name}: expected {dtype} of shape {shape}, got {x.dtype} of shape {tuple(x.shape)}")


def _text(x: Tensor) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} and strides {x.stride()} on {x.device}"


_adamw_ema_ = define(
    "adamw_ema_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
    "Tensor(e!)[] first, Tensor(f!)[] second, Tensor(g!)[] copies, Tensor(h!) counts, Tensor lr, float[] settings, int[] groups, "
    "float[] profiles, float clip, Tensor? grad_scale, Tensor? found_inf) -> ()",
    "fastgen_kernels.adamw_ema_triton:launch",
    lambda *arguments: None,
)
