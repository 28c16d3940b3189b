"""What the tests of group_norm's kernels share: the op and its peer, inputs with every option, and a choice of the algorithm."""

import torch

from fastgen.functional import add_group_norm, group_norm
from fastgen_kernels.group_norm import add_group_norm_reference, backward_triton, forward_triton
from fastgen_kernels.group_norm.plan import candidates
from proof.laboratory.tensors import random

ALGORITHMS = ("held", "streamed", "split")
OPTIONS = ("weight", "bias", "scale", "shift", "pre_bias", "residual")


def op(x, weight, bias, scale, shift, pre_bias, residual, groups, activation="silu"):
    options = {"scale": scale, "shift": shift, "pre_bias": pre_bias, "activation": activation}
    if residual is None:
        return group_norm(x, groups, weight, bias, **options)
    return add_group_norm(x, residual, groups, weight, bias, **options)


def reference(x, weight, bias, scale, shift, pre_bias, residual, groups, activation="silu"):
    made = add_group_norm_reference(x, residual, groups, weight, bias, 1e-5, activation, scale, shift, pre_bias)
    return made[0] if residual is None else made


def inputs(shape, dtype=torch.float32, layout="contiguous", options=OPTIONS, parameters=None):
    """scale and shift are the halves of one tensor, as a linear layer gives them. parameters: the dtype of weight and bias."""
    n, c = shape[:2]
    scale, shift = random((n, 2 * c), dtype, seed=3).chunk(2, 1)
    made = {
        "weight": random((c,), parameters or dtype, seed=1),
        "bias": random((c,), parameters or dtype, seed=2),
        "scale": scale.detach(),
        "shift": shift.detach(),
        "pre_bias": random((n, c), dtype, seed=4),
        "residual": random(shape, dtype, layout, seed=5),
    }
    x = random(shape, dtype, layout, seed=6)  # the upstream gradient has seed 0, and that of x itself nearly cancels
    return x.requires_grad_(), *(made[name].requires_grad_() if name in options else None for name in OPTIONS)


def doubled(tensors):
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def force(monkeypatch, algorithm, tile=128):
    """That algorithm with small tiles, as on a GPU of few processors: then small tensors take several programs and rounds."""

    def plans(x, groups, held, _):
        processors = 2 if algorithm == "streamed" else 4
        made = candidates(*x.shape, groups, innermost=x.stride(1) == 1, held=held, tile=tile, processors=processors)
        return [p for p in made if p.algorithm == algorithm]

    monkeypatch.setattr("fastgen_kernels.group_norm.plan.PERSISTENT", 1)
    for kernels in (forward_triton, backward_triton):
        monkeypatch.setattr(kernels, "plans", plans)
    monkeypatch.setattr(forward_triton, "MERGED", 16)
    for name, value in (("MERGED", 4), ("ROWS", 2), ("COLUMNS", 4)):
        monkeypatch.setattr(backward_triton, name, value)
