"""Calls of the ops' launchers that between them reach every configuration: what benchmarks.aot compiles."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels import (
    denoising_loss_triton,
    diffusion_loss_triton,
    philox_triton,
    q_sample_triton,
    reconstruction_nll_triton,
    reparameterize_kl_triton,
    sampler_step_triton,
    timestep_embedding_triton,
    to_x0_triton,
)
from fastgen_kernels.layout import compute_dtype, empty_like

FP32, FP16, BF16, FP64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


@dataclass(frozen=True)
class Launch:
    """One call of a launcher. wide says how many bytes each access to an argument is to have, where layout and alignment allow
    more than one element. main: what training and sampling do, and what is checked at every change."""

    op: str
    name: str
    run: Callable[[], object]
    wide: dict[str, int] = field(default_factory=dict)
    main: bool = False


def _philox() -> Iterator[Launch]:
    """Each tile: few, some and many blocks a sample. A lane of 128 has 2, 2 and 8 elements side by side; a row of Q words that is
    no multiple of 16 is written element by element, which includes all of the first tile."""

    def launch(shape, dtype, normal, lane=0, main=False):
        name = f"{'normal' if normal else 'uniform'} {shape} {_text(dtype)}"
        run = partial(philox_triton.philox, shape, _key(shape[0]), dtype, normal)
        return Launch("philox", name, run, _wide(["out_ptr"], lane, dtype), main)

    for dtype, normal in product((FP32, BF16, FP16, FP64), (True, False)):
        yield launch((128, 3, 32, 32), dtype, normal, 8, main=normal and dtype == FP32)
        yield launch((128, 256), dtype, normal, 2)
        for elements in (1, 16, 23, 250, 3001):
            yield launch((5, elements), dtype, normal)
    for shape in ((1, 3072), (16, 4), (1, 2**31 + 64)):
        yield launch(shape, BF16, True)


def _reparameterize_kl() -> Iterator[Launch]:
    """Every option with every tile and layout in bf16; other dtypes and odd and huge sizes with the options that a VAE uses."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "halves"), *product((medium, large), ("halves", "channels_last", "every second"))]
    for sizes, layout in layouts:
        # Of the quarter of the channels that is side by side in channels_last Triton knows that it is a multiple of 4.
        lane = 2 if sizes == medium else 8 if layout == "halves" else 4
        lane = 0 if sizes == small or layout == "every second" else lane
        for draw, per_element in product((True, False), (False, True)):
            yield from _both_ways(sizes, layout, BF16, draw, per_element, ("dz dkl", "dz", "dkl"), lane=lane, main=sizes == large)
        for dtype in (FP32, FP16, FP64):
            yield from _both_ways(sizes, layout, dtype, lane=lane)
    for sizes, dtype in product((small, medium, large), (FP32, BF16)):
        yield from _both_ways(sizes, "unaligned", dtype)
    for sizes, layout in (((5, 3), "halves"), *product(((3, 3, 5, 5), (1, 5, 33, 33)), ("halves", "channels_last"))):
        yield from _both_ways(sizes, layout, BF16)
    yield from _both_ways((1, 2**31 + 64), "whole", BF16)


def _both_ways(
    sizes: tuple[int, ...], layout: str, dtype: torch.dtype, draw: bool = True, per_element: bool = False,
    gradients: tuple[str, ...] = ("dz dkl",), *, lane: int = 0, main: bool = False,
) -> Iterator[Launch]:  # fmt: skip
    main = main and draw and not per_element and lane > 0
    for given in (None, *gradients):
        options = f"{f'backward {given}' if given else 'forward'} {'draw' if draw else 'eps'}{' per element' * per_element}"
        pointers = ["logvar_ptr", "dmu_ptr", "dlogvar_ptr"] if given else ["mu_ptr", "logvar_ptr", "z_ptr"]
        run = partial(_run_reparameterize_kl, sizes, layout, dtype, draw, per_element, given)
        wide = _wide(pointers, lane, dtype)
        yield Launch(
            "reparameterize_kl", f"{options} {layout} {sizes} {_text(dtype)}", run, wide, main and given in (None, "dz dkl")
        )


def _run_reparameterize_kl(
    sizes: tuple[int, ...], layout: str, dtype: torch.dtype, draw: bool, per_element: bool, given: str | None
) -> None:
    mu, logvar = _LAYOUTS[layout](sizes, dtype)
    eps, key = (None, _key(len(mu))) if draw else (empty_like(mu), None)
    rest = mu, logvar, eps, key, -30.0, 20.0, per_element
    if given is None:
        reparameterize_kl_triton.forward(*rest)
    else:
        dz = empty_like(mu) if "dz" in given else None
        dkl = mu.new_empty(mu.shape if per_element else len(mu), dtype=compute_dtype(dtype)) if "dkl" in given else None
        reparameterize_kl_triton.backward(dz, dkl, *rest)


def _halves(sizes: tuple[int, ...], dtype: torch.dtype, memory_format=torch.contiguous_format, first: int = 0) -> list[Tensor]:
    """mu and logvar as an encoder puts them out, in one tensor, which begins `first` elements behind a multiple of 16 bytes."""
    n, c, *s = sizes
    both = torch.empty(first + 2 * math.prod(sizes), dtype=dtype)[first:]
    both = both.view(n, *s, 2 * c).movedim(-1, 1) if memory_format is torch.channels_last else both.view(n, 2 * c, *s)
    return list(both.chunk(2, 1))


_LAYOUTS: dict[str, Callable[[tuple[int, ...], torch.dtype], list[Tensor]]] = {
    "halves": _halves,
    "channels_last": partial(_halves, memory_format=torch.channels_last),
    "every second": lambda sizes, dtype: [x[..., ::2] for x in _halves((*sizes[:-1], 2 * sizes[-1]), dtype)],
    "unaligned": partial(_halves, first=1),
    "whole": lambda sizes, dtype: [torch.empty(sizes, dtype=dtype) for _ in range(2)],
}


def _q_sample() -> Iterator[Launch]:
    """Noise drawn and given in every tile, layout and dtype; every target; data in uint8; odd and huge sizes. Backward what is
    wanted of what there is. A lane has 8 elements side by side in the largest tile, 4 where channels are taken by quarters."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), draw in product(layouts, (True, False)):
        wide = sizes == large and (layout == "contiguous" or (layout == "channels_last" and not draw))
        lane = 8 if wide else 0 if sizes == small or layout == "every second" else 4 if sizes == large else 2
        for dtype in (FP32, BF16, FP16, FP64):
            yield _q_sample_forward(sizes, layout, dtype, dtype, "v", draw, lane, main=wide and dtype == BF16)
        for dtype in (FP32, BF16):
            yield _q_sample_forward(sizes, layout, torch.uint8, dtype, None, draw, lane, main=wide and draw)
    for target, draw in product(("eps", "x0", "flow"), (True, False)):
        yield _q_sample_forward(large, "contiguous", BF16, BF16, target, draw, lane=8)
    for sizes in (small, medium, large):
        yield _q_sample_forward(sizes, "unaligned", BF16, BF16, "flow", draw=True)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _q_sample_forward(sizes, "contiguous", torch.uint8, BF16, None, draw=True)

    for given, wanted in product(((1, 0), (0, 1), (1, 1)), ((1, 0), (0, 1), (1, 1))):
        yield _q_sample_backward(large, BF16, "v", given, wanted, lane=8, main=wanted == (1, 1))
    for sizes, dtype in product((small, medium, large), (FP32, FP16)):
        yield _q_sample_backward(sizes, dtype, "v", (1, 1), (1, 1), lane=8)
    for target, dtype in product(("eps", "x0", "v", "flow"), (BF16, FP64)):
        yield _q_sample_backward(large, dtype, target, (1, 1), (1, 1), lane=8)
    for sizes in ((5, 3), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _q_sample_backward(sizes, BF16, "flow", (1, 1), (1, 1))


def _q_sample_forward(
    sizes: tuple[int, ...], layout: str, clean: torch.dtype, dtype: torch.dtype, target: str | None, draw: bool, lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    def run() -> None:
        x0 = _laid_out(layout, sizes, clean)
        eps, key = (None, _key(len(x0))) if draw else (empty_like(x0, dtype), None)
        q_sample_triton.forward(x0, *torch.empty(2, len(x0)), eps, key, target, dtype)

    name = f"forward {target} {'draw' if draw else 'eps'} {layout} {sizes} {_text(clean)} {_text(dtype)}"
    return Launch("q_sample", name, run, _wide(["x0_ptr"], lane, clean) | _wide(["x_t_ptr"], lane, dtype), main)


def _q_sample_backward(
    sizes: tuple[int, ...], dtype: torch.dtype, target: str, given: tuple[int, int], wanted: tuple[int, int], lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    """given: whether there are gradients of x_t and of the target; wanted: whether those of x0 and of the noise are."""

    def run() -> None:
        dx_t, dtarget = (torch.empty(sizes, dtype=dtype) if there else None for there in given)
        dtypes = (dtype if want else None for want in wanted)
        q_sample_triton.backward(dx_t, dtarget, *torch.empty(2, sizes[0]), target, *dtypes)

    names = [name for name, there in zip(("dx_t", "dtarget", "dx0", "dnoise"), (*given, *wanted), strict=True) if there]
    wide = _wide([f"{name}_ptr" for name in names], lane, dtype)
    return Launch("q_sample", f"backward {target} {' '.join(names)} {sizes} {_text(dtype)}", run, wide, main)


def _timestep_embedding() -> Iterator[Launch]:
    for n, dim, main in ((128, 128, True), (7, 15, False), (512, 1024, False)):
        run = partial(timestep_embedding_triton.timestep_embedding, torch.empty(n), dim, 10_000.0)
        yield Launch("timestep_embedding", f"{n}x{dim}", run, _wide(["out_ptr"], 4 if main else 0, FP32), main)


def _diffusion_loss() -> Iterator[Launch]:
    """Every tile, layout and dtype; every kind, rarer layouts, odd and huge sizes in bf16. A lane has 8 elements side by side."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), dtype in product(layouts, (FP32, BF16, FP16, FP64)):
        yield from _losses(sizes, layout, layout, dtype, dtype, lane=8, main=sizes == large and dtype == BF16)
    for kind in ("l1", "huber", "charbonnier"):
        yield from _losses(large, "contiguous", "contiguous", BF16, FP32, kind, weighted=False, lane=8)
    for one, other in (("channels_last", "contiguous"), ("contiguous", "every second"), ("unaligned", "unaligned")):
        for sizes in (medium, large):
            yield from _losses(sizes, one, other, BF16, BF16)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield from _losses(sizes, "contiguous", "contiguous", BF16, BF16)


def _losses(
    sizes: tuple[int, ...], pred_layout: str, target_layout: str, pred_dtype: torch.dtype, target_dtype: torch.dtype,
    kind: str = "mse", weighted: bool = True, lane: int = 0, main: bool = False,
) -> Iterator[Launch]:  # fmt: skip
    def run(launcher: Callable[..., Tensor], *dloss: Tensor) -> None:
        pred, target = _laid_out(pred_layout, sizes, pred_dtype), _laid_out(target_layout, sizes, target_dtype)
        launcher(*dloss, pred, target, torch.empty(sizes[0]) if weighted else None, kind)

    name = f"{kind}{' weighted' * weighted} {pred_layout} {target_layout} {sizes} {_text(pred_dtype)} {_text(target_dtype)}"
    inputs = _wide(["pred_ptr"], lane, pred_dtype) | _wide(["target_ptr"], lane, target_dtype)
    dloss = torch.empty(sizes[0], dtype=compute_dtype(pred_dtype))
    yield Launch("diffusion_loss", f"forward {name}", partial(run, diffusion_loss_triton.forward), inputs, main)
    wide = inputs | _wide(["dpred_ptr"], lane, pred_dtype)
    yield Launch("diffusion_loss", f"backward {name}", partial(run, diffusion_loss_triton.backward, dloss), wide, main)


def _denoising_loss() -> Iterator[Launch]:
    """As diffusion_loss, with every target and x0 in uint8. A lane has 8 elements side by side in the largest tile, 2 of them in
    fp64, 4 where the channels are taken by quarters."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), dtype in product(layouts, (FP32, BF16, FP16, FP64)):
        lane = 0 if sizes == small else 2 if sizes == medium or dtype == FP64 else 8 if layout == "contiguous" else 4
        main = sizes == large and dtype == BF16
        yield from _denoising_losses(sizes, layout, layout, dtype, dtype, lane=lane, main=main)
        yield from _denoising_losses(sizes, layout, layout, dtype, torch.uint8, "v", lane=lane, main=main)
    for target, kind in (("eps", "l1"), ("x0", "huber"), ("v", "charbonnier")):
        yield from _denoising_losses(large, "contiguous", "contiguous", BF16, FP32, target, kind, weighted=False, lane=8)
    for one, other in (("channels_last", "contiguous"), ("contiguous", "every second"), ("unaligned", "unaligned")):
        for sizes in (medium, large):
            yield from _denoising_losses(sizes, one, other, BF16, torch.uint8, "v")
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield from _denoising_losses(sizes, "contiguous", "contiguous", BF16, torch.uint8, "v")


def _denoising_losses(
    sizes: tuple[int, ...], pred_layout: str, x0_layout: str, pred_dtype: torch.dtype, x0_dtype: torch.dtype,
    target: str = "flow", kind: str = "mse", weighted: bool = True, lane: int = 0, main: bool = False,
) -> Iterator[Launch]:  # fmt: skip
    def run(launcher: Callable[..., Tensor], *dloss: Tensor) -> None:
        pred, x0 = _laid_out(pred_layout, sizes, pred_dtype), _laid_out(x0_layout, sizes, x0_dtype)
        alpha, sigma, weight = torch.empty(3, sizes[0])
        launcher(*dloss, pred, x0, alpha, sigma, _key(sizes[0]), weight if weighted else None, target, kind)

    name = f"{target} {kind}{' weighted' * weighted} {pred_layout} {x0_layout} {sizes} {_text(pred_dtype)} {_text(x0_dtype)}"
    inputs = _wide(["pred_ptr"], lane, pred_dtype) | ({} if target == "eps" else _wide(["x0_ptr"], lane, x0_dtype))
    dloss = torch.empty(sizes[0], dtype=compute_dtype(pred_dtype))
    yield Launch("denoising_loss", f"forward {name}", partial(run, denoising_loss_triton.forward), inputs, main)
    wide = inputs | _wide(["dpred_ptr"], lane, pred_dtype)
    yield Launch("denoising_loss", f"backward {name}", partial(run, denoising_loss_triton.backward, dloss), wide, main)


def _reconstruction_nll() -> Iterator[Launch]:
    """As diffusion_loss, with both likelihoods and x in uint8. A lane has 8 elements side by side."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), likelihood, dtype in product(layouts, ("bernoulli", "gaussian"), (FP32, BF16, FP16, FP64)):
        main = sizes == large and dtype == BF16
        yield from _likelihoods(sizes, layout, layout, dtype, dtype, likelihood, lane=8, main=main)
        yield from _likelihoods(sizes, layout, layout, dtype, torch.uint8, likelihood, lane=8, main=main)
    for one, other in (("channels_last", "contiguous"), ("contiguous", "every second"), ("unaligned", "unaligned")):
        for sizes in (medium, large):
            yield from _likelihoods(sizes, one, other, BF16, torch.uint8)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield from _likelihoods(sizes, "contiguous", "contiguous", BF16, FP32)


def _likelihoods(
    sizes: tuple[int, ...], logits_layout: str, x_layout: str, logits_dtype: torch.dtype, x_dtype: torch.dtype,
    likelihood: str = "bernoulli", lane: int = 0, main: bool = False,
) -> Iterator[Launch]:  # fmt: skip
    def run(launcher: Callable[..., Tensor], *dnll: Tensor) -> None:
        logits, x = _laid_out(logits_layout, sizes, logits_dtype), _laid_out(x_layout, sizes, x_dtype)
        launcher(*dnll, logits, x, likelihood, 0.5)

    name = f"{likelihood} {logits_layout} {x_layout} {sizes} {_text(logits_dtype)} {_text(x_dtype)}"
    inputs = _wide(["logits_ptr"], lane, logits_dtype) | _wide(["x_ptr"], lane, x_dtype)
    dnll = torch.empty(sizes[0], dtype=compute_dtype(logits_dtype))
    yield Launch("reconstruction_nll", f"forward {name}", partial(run, reconstruction_nll_triton.forward), inputs, main)
    wide = inputs | _wide(["dlogits_ptr"], lane, logits_dtype)
    yield Launch("reconstruction_nll", f"backward {name}", partial(run, reconstruction_nll_triton.backward, dnll), wide, main)


def _to_x0() -> Iterator[Launch]:
    """With and without guidance and step in every tile and layout, every dtype; inputs in the other memory format; odd and huge
    sizes. Backward what is wanted. A lane has 8 elements side by side in the largest tile, 2 in the one before."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), guided in product(layouts, (True, False)):
        lane = 0 if layout == "every second" else {small: 0, medium: 2, large: 8}[sizes]
        for dtype in (FP32, BF16, FP16, FP64) if guided and layout == "contiguous" else (BF16,):
            main = sizes == large and dtype == BF16 and lane > 0
            yield _to_x0_forward(sizes, layout, layout, dtype, guided, not guided, lane, main)
    for sizes, layout, other in product(
        (medium, large), ("contiguous", "channels_last"), ("contiguous", "channels_last", "unaligned")
    ):
        yield _to_x0_forward(sizes, layout, other, BF16, guided=True, counted=False)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _to_x0_forward(sizes, "contiguous", "contiguous", BF16, guided=True, counted=True)
    yield from _multiples("to_x0", _run_to_x0_backward)


def _to_x0_forward(
    sizes: tuple[int, ...], layout: str, other: str, dtype: torch.dtype, guided: bool, counted: bool, lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    """x in one layout, what the network gave in another; counted: with a step."""

    def run() -> None:
        out, x, uncond = (_laid_out(form, sizes, dtype) for form in (other, layout, other))
        rest = (uncond, 1.0, torch.empty(len(x))) if guided else (None, 1.0, None)
        to_x0_triton.forward(out, x, *torch.empty(2, len(x)), *rest, _STEP if counted else None)

    name = f"forward{' uncond' * guided}{' step' * counted} {layout} {other} {sizes} {_text(dtype)}"
    return Launch("to_x0", name, run, _wide(["out_ptr", "x_ptr", "x0_ptr"], lane, dtype), main)


def _run_to_x0_backward(grad: Tensor, step: Tensor | None, dtypes: list[torch.dtype | None]) -> None:
    to_x0_triton.backward(grad, *torch.empty(2, len(grad)), 1.0, torch.empty(len(grad)), step, *dtypes)


def _sampler_step() -> Iterator[Launch]:
    """As to_x0, with noise drawn or not. A lane has 4 elements side by side where noise takes many channels by quarters; of fp64
    it has half as many."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), draw in product(layouts, (True, False)):
        lane = 0 if sizes == small or layout == "every second" else 2 if sizes == medium else 4
        if sizes == large and (layout == "contiguous" or (layout == "channels_last" and not draw)):
            lane = 8
        for dtype in (FP32, BF16, FP16, FP64) if draw else (BF16,):
            main = sizes == large and dtype == BF16 and lane > 0
            side_by_side = lane // 2 if dtype == FP64 else lane
            yield _sampler_step_forward(sizes, layout, layout, dtype, draw, draw, side_by_side, main)
    for sizes, other, previous in product((medium, large), ("channels_last", "unaligned"), (True, False)):
        yield _sampler_step_forward(sizes, "contiguous", other, BF16, draw=True, previous=previous)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _sampler_step_forward(sizes, "contiguous", "contiguous", BF16, draw=True, previous=True)
    yield from _multiples("sampler_step", _run_sampler_step_backward)


def _sampler_step_forward(
    sizes: tuple[int, ...], layout: str, other: str, dtype: torch.dtype, draw: bool, previous: bool, lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    """x and previous in one layout, x0_hat in another. A step is counted where noise is drawn."""

    def run() -> None:
        x, x0_hat, last = (_laid_out(form, sizes, dtype) for form in (layout, other, layout))
        counted = (_key(len(x)), _STEP) if draw else (None, None)
        sampler_step_triton.forward(
            x, x0_hat, torch.empty(7, 4) if draw else torch.empty(4), last if previous else None, *counted
        )

    name = f"forward{' draw' * draw}{' previous' * previous} {layout} {other} {sizes} {_text(dtype)}"
    return Launch("sampler_step", name, run, _wide(["x_ptr", "x0_ptr", "x_next_ptr"], lane, dtype), main)


def _run_sampler_step_backward(grad: Tensor, step: Tensor | None, dtypes: list[torch.dtype | None]) -> None:
    sampler_step_triton.backward(grad, torch.empty(4) if step is None else torch.empty(7, 4), step, *dtypes)


def _multiples(op: str, run: Callable[[Tensor, Tensor | None, list[torch.dtype | None]], None]) -> Iterator[Launch]:
    """Backward passes whose gradients are multiples of the one that arrives: each alone, and all in every tile and dtype."""

    def launch(sizes, dtype, wanted=(1, 1, 1), step=None, lane=8, main=False):
        grad, dtypes = torch.empty(sizes, dtype=dtype), [dtype if want else None for want in wanted]
        name = f"backward {wanted}{' step' * (step is not None)} {sizes} {_text(dtype)}"
        return Launch(op, name, partial(run, grad, step, dtypes), _wide(["grad_ptr"], lane, dtype), main)

    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    for sizes, dtype in product((small, medium, large), (FP32, BF16, FP64)):
        yield launch(sizes, dtype, main=sizes == large and dtype == BF16)
    for wanted in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        yield launch(large, BF16, wanted, _STEP)
    for sizes in ((5, 3), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield launch(sizes, BF16, lane=0)


_STEP = torch.zeros((), dtype=torch.int64)


def _laid_out(layout: str, sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    n, c, *s = sizes
    if layout == "channels_last":
        return torch.empty(n, *s, c, dtype=dtype).movedim(-1, 1)
    if layout == "every second":
        return torch.empty(*sizes[:-1], 2 * sizes[-1], dtype=dtype)[..., ::2]
    if layout == "unaligned":
        return torch.empty(1 + math.prod(sizes), dtype=dtype)[1:].view(sizes)
    return torch.empty(sizes, dtype=dtype)


def _wide(pointers: list[str], lane: int, dtype: torch.dtype) -> dict[str, int]:
    """Accesses of as many elements as a lane has side by side, 16 bytes at the most."""
    return dict.fromkeys(pointers, min(16, lane * dtype.itemsize)) if lane else {}


def _key(n: int) -> Tensor:
    return torch.zeros(n, 4, dtype=torch.int64)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


LAUNCHES = [
    *_philox(),
    *_reparameterize_kl(),
    *_q_sample(),
    *_diffusion_loss(),
    *_denoising_loss(),
    *_reconstruction_nll(),
    *_timestep_embedding(),
    *_to_x0(),
    *_sampler_step(),
]
