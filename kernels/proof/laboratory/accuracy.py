"""How far from the exact result a kernel may be.

A result is compared with the exact one, computed in fp64 from the same inputs, and with its peer, the same computation by
PyTorch in the same dtype. In what follows a result's error is its distance from the exact one, and an element's rounding is
what storing the exact element in the dtype costs: half a unit in the last place, or a whole one in bf16 in the interpreter,
whose casts truncate.

1.  NaN and inf stand where they stand in the exact result.
2.  Each element is within torch.testing's default tolerances for the dtype. The absolute one, which is meant for values
    near 1, shrinks with the largest element: gradients of 1e-6 are not accepted whatever they are.
3.  The largest error, and the root mean square of the errors, are at most twice the peer's plus the roundings' own. The
    first sees an outlier, the second a loss of precision everywhere. Errors are not compared element by element: where the
    peer's happens to be 0, that is luck. For the same reason a result of fewer than FEW elements in fp32, where storing
    costs no more than the arithmetic, is held to the first two rules alone; so is one in fp64, which is as exact as the
    exact one.

So a sum of 4096 random bf16 values that is not made in fp32 is found among 16 rows, in whatever order it is made; of positive
values it is found where it is made in sequence, while pairwise sums of those are within twice the peer's error.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from proof.laboratory.device import INTERPRETED
from proof.laboratory.tensors import upstream

FEW = 64
TOLERANCES = {  # torch.testing's defaults: relative, absolute
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}


def assert_accurate(actual: Tensor, peer: Tensor, exact: Tensor, name: str = "result", *, cancels: bool = False) -> None:
    """Hold a result to the three rules above. exact: fp64. cancels: an element is a sum of terms that may be much larger, rounded
    to the dtype as the peer's are; the tolerances are then relative to the largest element."""
    assert actual.dtype == peer.dtype, f"{name}: expected {peer.dtype}, got {actual.dtype}"
    assert actual.shape == peer.shape == exact.shape, f"{name}: expected shape {tuple(exact.shape)}, got {tuple(actual.shape)}"
    assert exact.dtype == torch.float64, f"{name}: the exact result must be float64, got {exact.dtype}"
    dtype = actual.dtype
    actual, peer, exact = (x.detach().double() for x in (actual, peer, exact))

    rounded = exact.to(dtype).double()
    finite = rounded.isfinite()
    wrong = ~torch.where(finite, actual.isfinite(), (actual == rounded) | (actual.isnan() & rounded.isnan()))
    assert not wrong.any(), f"{name}: {_first(wrong, actual, exact)}, {int(wrong.sum())} wrong NaN, inf or finite elements"
    if not finite.any():
        return

    relative, absolute = TOLERANCES[dtype]
    error, size = (torch.where(finite, x.abs(), 0.0) for x in (actual - exact, exact))
    wrong = error > relative * (size.max() if cancels else size) + absolute * size.max().clamp(max=1)
    assert not wrong.any(), (
        f"{name}: {_first(wrong, actual, exact)}, {int(wrong.sum())} of {wrong.numel()} elements beyond {dtype}'s tolerances"
    )

    if dtype == torch.float64 or (dtype == torch.float32 and error.numel() < FEW):
        return
    comparable = finite & peer.isfinite()
    error, peers = (torch.where(comparable, x.abs(), 0.0) for x in (actual - exact, peer - exact))
    rounding = _rounding(size, dtype)
    for norm, of in (("largest", torch.max), ("root mean square", _rms)):
        ours, limit = float(of(error)), float(2 * of(peers) + of(rounding))
        assert ours <= limit, (
            f"{name}: {norm} error {ours:.3g}, more than {limit:.3g}: "
            f"twice the peer's {float(of(peers)):.3g} and {float(of(rounding)):.3g} for storing as {dtype}"
        )


def assert_as_accurate(
    op: Callable[..., Any],
    peer: Callable[..., Any],
    *inputs: Any,
    gradients: str = "contiguous",
    seed: int = 0,
    cancels: bool = False,
) -> None:
    """Hold an op's outputs and gradients to the rules: its peer in the inputs' dtypes and, for the exact result, in fp64.

    inputs: tensors, of which those that require a gradient are differentiated, and other arguments, given as they are.
    gradients: how the upstream gradients lie in memory, one of tensors.GRADIENTS. cancels: see assert_accurate.
    """
    exact = results(peer, *(_double(x) for x in inputs), gradients=gradients, seed=seed)
    ours = results(op, *inputs, gradients=gradients, seed=seed)
    peers = results(peer, *inputs, gradients=gradients, seed=seed)
    assert ours.keys() == peers.keys(), f"the op returns {', '.join(ours)}, its peer {', '.join(peers)}"
    for name in ours:
        assert_accurate(ours[name], peers[name], exact[name].double(), name, cancels=cancels)


def results(op: Callable[..., Any], *inputs: Any, gradients: str = "contiguous", seed: int = 0) -> dict[str, Tensor]:
    """The outputs of an op, and the gradients of its inputs under random upstream gradients, each by its name."""
    inputs = tuple(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in inputs)
    outputs = op(*inputs)
    outputs = list(outputs) if isinstance(outputs, Sequence) else [outputs]
    named = {f"output {i}": y.detach() for i, y in enumerate(outputs)}

    leaves = {f"gradient of input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    differentiable = [y for y in outputs if y.requires_grad]
    if not differentiable:
        return named
    upstreams = [upstream(y, gradients, seed=seed + i) for i, y in enumerate(differentiable)]
    grads = torch.autograd.grad(differentiable, list(leaves.values()), upstreams, materialize_grads=True)
    return named | dict(zip(leaves, grads, strict=True))


def _double(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


def _rounding(size: Tensor, dtype: torch.dtype) -> Tensor:
    info = torch.finfo(dtype)
    units = 1.0 if INTERPRETED and dtype == torch.bfloat16 else 0.5
    return units * (info.eps * size).clamp(min=info.smallest_normal * info.eps)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _first(wrong: Tensor, actual: Tensor, exact: Tensor) -> str:
    at = tuple(int(i) for i in wrong.nonzero()[0])
    return f"{float(actual[at]):.9g} at {at} where {float(exact[at]):.9g} is right"
