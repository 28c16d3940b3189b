"""UniPC: a predictor and a corrector in the log-SNR that share their evaluations, one a step."""

import torch
from torch import Tensor

from fastgen.diffusion.samplers.steps import Callback, checked, ignore, step_grid
from fastgen.diffusion.schedules import Schedule
from fastgen.errors import expect
from fastgen.functional import sampler_step


@checked
def unipc(denoise, x: Tensor, times: Tensor, *, order: int = 2, key: Tensor | None = None, callback: Callback = ignore) -> Tensor:
    """UniPC of order 1, 2 or 3 for data prediction, with B(h) = e^h - 1, "bh2" (Zhao et al. 2023, arXiv:2302.04867, algorithms 1
    and 2). Its first steps are of lower order, and so are its last ones where they end without noise. Deterministic: key is not
    used.

    Raises ValueError for another order.
    """
    expect("order", order, order in (1, 2, 3), "1, 2 or 3")
    predictor, corrector = _coefficients(denoise.schedule, times, order)
    start = x  # where the last step began
    x0_hats: list[Tensor] = []  # the latest, the newest first
    for i in range(len(times) - 1):
        x0_hat = denoise(x, times[i])
        if i > 0:  # the step that led here, again with what it led to
            x = _combine(start, [x0_hat, *x0_hats], corrector[i - 1])
        start, x0_hats = x, [x0_hat, *x0_hats][:order]
        x = _combine(start, x0_hats, predictor[i])
        callback(i, x, x0_hat)
    return x


def _combine(x: Tensor, x0_hats: list[Tensor], rows: Tensor) -> Tensor:
    """The weighted sum of x and the estimates, two of which one sampler_step takes."""
    for j in range(0, len(x0_hats), 2):
        x = sampler_step(x, x0_hats[j], rows[j // 2], previous=x0_hats[j + 1] if j + 1 < len(x0_hats) else None)
    return x


def _coefficients(schedule: Schedule, times: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Rows for _combine, (steps, 2, 4) each: of the predictor, on the latest x0_hats, and of the corrector, on the x0_hat at the
    step's end and those.

    A step is x_next = sigma_next/sigma·x + alpha_next·(1 - e^-h)·(m_0 + sum of c_k·(m_k - m_0)), m_0 the latest x0_hat and r_k
    the places of the others in log(alpha/sigma), in steps: m_0 lies at 0, the step's end at 1.
    """
    g = step_grid(schedule, times)
    steps = len(g.ratio)
    half_log_snr = schedule.log_snr(times.double()) / 2
    h = half_log_snr.diff()
    earlier = [torch.cat([h.new_full((k,), torch.nan), half_log_snr[: steps - k]])[:steps] for k in (1, 2)]
    r_1, r_2 = ((place - half_log_snr[:-1]) / h for place in earlier)
    end = torch.ones_like(h)

    usable = 1 + (r_1.isfinite() & (r_1 < 0)).long() * (1 + (r_2.isfinite() & (r_2 < r_1)).long())
    left = torch.arange(steps, 0, -1, device=h.device)
    order_of = torch.where(h[-1].isinf(), torch.minimum(usable, left), usable).clamp(max=order)
    order_of = torch.where(h.isfinite(), order_of, 1)

    def rows(by_order: list[list[Tensor]], place: int) -> Tensor:
        """Of the weights c for orders 1, 2 and 3; m_0 stands at `place` among the x0_hats."""
        zero = torch.zeros_like(h)
        padded = ([*weights, *[zero] * (3 - len(weights))] for weights in by_order)
        c = [torch.where(order_of == 1, w_1, torch.where(order_of == 2, w_2, w_3)) for w_1, w_2, w_3 in zip(*padded, strict=True)]
        c.insert(place, 1 - torch.stack(c).sum(0))
        w = [g.alpha_next * (1 - g.ratio) * weight for weight in c]
        pairs = [[g.sigma_next / g.sigma, w[0], w[1], zero], [torch.ones_like(h), w[2], w[3], zero]]
        return torch.stack([torch.stack(pair, dim=1) for pair in pairs], dim=1)

    predictor = rows([_weights(nodes, h) for nodes in ([], [r_1], [r_1, r_2])], 0)
    corrector = rows([_weights(nodes, h) for nodes in ([end], [end, r_1], [end, r_1, r_2])], 1)
    return predictor, corrector


def _weights(nodes: list[Tensor], h: Tensor) -> list[Tensor]:
    """c with sum of c_i·r_i^k = k!·phi_(k+1)(-h) / phi_1(-h) for k = 1 to len(nodes), which integrates polynomials exactly; 1/2
    for a single node at 1 and 1/2 / r for one at r, as the paper has it for every h."""
    if len(nodes) == 1:
        return [0.5 / nodes[0]]
    moments, value = [], torch.expm1(-h)
    for factorial in (1, 2, 6):
        value = value / -h - 1 / factorial
        moments.append(value * factorial / torch.expm1(-h))
    weights = []
    for i, r in enumerate(nodes):  # the functional of Lagrange's polynomial: 1 at r, 0 at 0 and at the other nodes
        others = [other for j, other in enumerate(nodes) if j != i]
        polynomial, scale = [torch.ones_like(r)], r  # of r, over r
        for other in others:
            zero = torch.zeros_like(r)
            polynomial = [up - other * down for up, down in zip([zero, *polynomial], [*polynomial, zero], strict=True)]
            scale = scale * (r - other)
        weights.append(sum(p * m for p, m in zip(polynomial, moments, strict=False)) / scale)
    return weights
