"""Steps of AdamW with everything that they may have, and what is right: the formula, in the dtype of the parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fastgen_kernels.adamw_ema import Profile, Settings, adamw_ema_
from proof.laboratory.tensors import LAYOUTS, random

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
PROFILES = [Profile(0.99, 9.0), Profile(exponent=7.9)]
SHAPES = [(133,), (64,), (3, 4, 3, 5), (1,), (), (0, 3), (16,), (9, 7)]


@dataclass
class Problem:
    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    steps: list[Tensor]
    averages: list[list[Tensor]]
    copies: list[Tensor]
    counts: Tensor
    lr: Tensor
    settings: list[Settings]
    groups: list[int]
    profiles: list[Profile]
    clip: float = 1.0
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def clone(self) -> "Problem":
        return Problem(**tree_map_only(Tensor, torch.clone, vars(self)))

    def double(self) -> "Problem":
        return Problem(**tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x.clone(), vars(self)))

    def results(self) -> dict[str, Tensor]:
        """What a step writes."""
        lists = {"param": self.params, "exp_avg": self.exp_avgs, "exp_avg_sq": self.exp_avg_sqs, "step": self.steps}
        lists |= {f"average {i} of": average for i, average in enumerate(self.averages)} | {"copy": self.copies}
        return {f"{name} {i}": x for name, xs in lists.items() for i, x in enumerate(xs)} | {"counts": self.counts}


def problem(
    shapes=SHAPES,
    grad=FP32,
    copies=(),
    averages=1,
    frozen=1,
    layout="contiguous",
    unaligned=False,
    updates=3,
    size=1.0,
    **options,
) -> Problem:
    """copies: dtypes of the first parameters' copies. frozen: how many of the last parameters have no gradient. unaligned:
    nothing begins at a multiple of 16 bytes. size: of the gradients."""

    def tensor(seed, shape, dtype=FP32):
        x = LAYOUTS[layout](random(shape, dtype, seed=seed))
        if not unaligned or not x.numel():
            return x
        moved = x.new_empty(x.numel() + 1)[1:].as_strided(x.shape, x.stride())
        return moved.copy_(x)

    trained = shapes[: len(shapes) - frozen]
    params = [tensor(i, shape) for i, shape in enumerate(shapes)]
    device = params[0].device
    return Problem(
        params,
        grads=[
            (size * tensor(100 + i, shape)).to(grad) if not unaligned else tensor(100 + i, shape, grad)
            for i, shape in enumerate(trained)
        ],
        exp_avgs=[tensor(200 + i, shape) for i, shape in enumerate(trained)],
        exp_avg_sqs=[tensor(300 + i, shape).square_() for i, shape in enumerate(trained)],
        steps=[torch.tensor(float(7 * i), device=device) for i, _ in enumerate(trained)],
        averages=[[tensor(400 + 100 * j + i, shape) for i, shape in enumerate(shapes)] for j in range(averages)],
        copies=[torch.zeros_like(p, dtype=dtype) for p, dtype in zip(params, copies, strict=False)],
        counts=torch.tensor([updates, 2], device=device),
        lr=torch.tensor([1e-3, 0.03], dtype=FP64, device=device),
        settings=[Settings(), Settings(0.3, 0.9, 1e-6, 0.2)],
        groups=[i % 2 for i in range(len(trained))],
        profiles=PROFILES[:averages],
        **options,
    )


def stepped(given: Problem, step=adamw_ema_) -> dict[str, Tensor]:
    """The results of a step on a copy."""
    work = given.clone()
    step(**vars(work))
    return work.results()


def exact(given: Problem) -> dict[str, Tensor]:
    return formula(given.double()).results()


def formula(given: Problem) -> Problem:
    """The step on a copy, by the textbook."""
    new = given.clone()
    scale = 1.0 if given.grad_scale is None else given.grad_scale
    dtype = new.params[0].dtype
    grads = [g.to(dtype) / scale for g in new.grads]
    norm = torch.cat([g.flatten() for g in grads]).norm() if grads else torch.zeros(())
    skip = bool(given.found_inf is not None and given.found_inf) or (given.clip > 0 and not norm.isfinite())
    new.counts[1 if skip else 0] += 1
    if skip:
        return new
    coefficient = min(1.0, given.clip / (float(norm) + 1e-6)) if given.clip else 1.0
    for i, grad in enumerate(grads):
        grad = grad * coefficient
        lr, (beta1, beta2, eps, weight_decay) = float(given.lr[given.groups[i]]), given.settings[given.groups[i]]
        p, m, v = new.params[i], new.exp_avgs[i], new.exp_avg_sqs[i]
        t = float(new.steps[i].add_(1))
        p.mul_(1 - lr * weight_decay)
        m.mul_(beta1).add_(grad, alpha=1 - beta1)
        v.mul_(beta2).add_(grad * grad, alpha=1 - beta2)
        p.sub_(lr / (1 - beta1**t) * m / (v.sqrt() / (1 - beta2**t) ** 0.5 + eps))
    n = int(new.counts[0])
    for average, profile in zip(new.averages, given.profiles, strict=True):
        decay = min(profile.decay, n / (n + profile.warmup)) * (1 - 1 / n) ** profile.exponent
        for a, p in zip(average, new.params, strict=True):
            a.copy_(decay * a + (1 - decay) * p)
    for copy, p in zip(new.copies, new.params, strict=False):
        copy.copy_(p)
    return new
