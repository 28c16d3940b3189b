"""Launches of q_sample, to_x0, sampler_step and timestep_embedding."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels import q_sample_triton, sampler_step_triton, timestep_embedding_triton, to_x0_triton
from fastgen_kernels.layout import empty_like
from proof.aot_cases.launch import BF16, FP16, FP32, Launch, empty_tensor, keys, text, widths


def q_sample() -> Iterator[Launch]:
    """Noise drawn and given in every tile, layout and dtype; every target; data in uint8; odd and huge sizes. Backward what is
    wanted of what there is. A lane has 8 elements side by side in the largest tile, 4 where channels are taken by quarters."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), draw in product(layouts, (True, False)):
        wide = sizes == large and (layout == "contiguous" or (layout == "channels_last" and not draw))
        lane = 8 if wide else 0 if sizes == small or layout == "every second" else 4 if sizes == large else 2
        for dtype in (FP32, BF16, FP16):
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
    for target in ("eps", "x0", "v", "flow"):
        yield _q_sample_backward(large, BF16, target, (1, 1), (1, 1), lane=8)
    for sizes in ((5, 3), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _q_sample_backward(sizes, BF16, "flow", (1, 1), (1, 1))


def _q_sample_forward(
    sizes: tuple[int, ...], layout: str, clean: torch.dtype, dtype: torch.dtype, target: str | None, draw: bool, lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    def run() -> None:
        x0 = empty_tensor(layout, sizes, clean)
        eps, key = (None, keys(len(x0))) if draw else (empty_like(x0, dtype), None)
        q_sample_triton.forward(x0, *torch.empty(2, len(x0)), eps, key, target, dtype)

    name = f"forward {target} {'draw' if draw else 'eps'} {layout} {sizes} {text(clean)} {text(dtype)}"
    return Launch("q_sample", name, run, widths(["x0_ptr"], lane, clean) | widths(["x_t_ptr"], lane, dtype), main)


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
    wide = widths([f"{name}_ptr" for name in names], lane, dtype)
    return Launch("q_sample", f"backward {target} {' '.join(names)} {sizes} {text(dtype)}", run, wide, main)


def timestep_embedding() -> Iterator[Launch]:
    for n, dim, main in ((128, 128, True), (7, 15, False), (512, 1024, False)):
        run = partial(timestep_embedding_triton.timestep_embedding, torch.empty(n), dim)
        yield Launch("timestep_embedding", f"{n}x{dim}", run, widths(["out_ptr"], 4 if main else 0, FP32), main)


def to_x0() -> Iterator[Launch]:
    """With and without guidance in every tile and layout, every dtype; inputs in the other memory format; odd and huge
    sizes. Backward what is wanted. A lane has 8 elements side by side in the largest tile, 2 in the one before."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), guided in product(layouts, (True, False)):
        lane = 0 if layout == "every second" else {small: 0, medium: 2, large: 8}[sizes]
        for dtype in (FP32, BF16, FP16) if guided and layout == "contiguous" else (BF16,):
            main = sizes == large and dtype == BF16 and lane > 0
            yield _to_x0_forward(sizes, layout, layout, dtype, guided, lane, main)
    for sizes, layout, other in product(
        (medium, large), ("contiguous", "channels_last"), ("contiguous", "channels_last", "unaligned")
    ):
        yield _to_x0_forward(sizes, layout, other, BF16, guided=True)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _to_x0_forward(sizes, "contiguous", "contiguous", BF16, guided=True)
    yield from _multiples("to_x0", _run_to_x0_backward)


def _to_x0_forward(
    sizes: tuple[int, ...], layout: str, other: str, dtype: torch.dtype, guided: bool, lane: int = 0, main: bool = False
) -> Launch:
    """x in one layout, what the network gave in another."""

    def run() -> None:
        out, x, uncond = (empty_tensor(form, sizes, dtype) for form in (other, layout, other))
        rest = (uncond, 1.0, torch.empty(len(x))) if guided else (None, 1.0, None)
        to_x0_triton.forward(out, x, *torch.empty(2, len(x)), *rest)

    name = f"forward{' uncond' * guided} {layout} {other} {sizes} {text(dtype)}"
    return Launch("to_x0", name, run, widths(["out_ptr", "x_ptr", "x0_ptr"], lane, dtype), main)


def _run_to_x0_backward(grad: Tensor, dtypes: list[torch.dtype | None]) -> None:
    to_x0_triton.backward(grad, *torch.empty(2, len(grad)), 1.0, torch.empty(len(grad)), *dtypes)


def sampler_step() -> Iterator[Launch]:
    """As to_x0, with noise drawn or not. A lane has 4 elements side by side where noise takes many channels by quarters."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last", "every second"))]
    for (sizes, layout), draw in product(layouts, (True, False)):
        lane = 0 if sizes == small or layout == "every second" else 2 if sizes == medium else 4
        if sizes == large and (layout == "contiguous" or (layout == "channels_last" and not draw)):
            lane = 8
        for dtype in (FP32, BF16, FP16) if draw else (BF16,):
            main = sizes == large and dtype == BF16 and lane > 0
            yield _sampler_step_forward(sizes, layout, layout, dtype, draw, draw, lane, main)
    for sizes, other, previous in product((medium, large), ("channels_last", "unaligned"), (True, False)):
        yield _sampler_step_forward(sizes, "contiguous", other, BF16, draw=True, previous=previous)
    for sizes in ((5, 3), (3, 3, 5, 5), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield _sampler_step_forward(sizes, "contiguous", "contiguous", BF16, draw=True, previous=True)
    yield from _multiples("sampler_step", _run_sampler_step_backward)


def _sampler_step_forward(
    sizes: tuple[int, ...], layout: str, other: str, dtype: torch.dtype, draw: bool, previous: bool, lane: int = 0,
    main: bool = False,
) -> Launch:  # fmt: skip
    """x and previous in one layout, x0_hat in another."""

    def run() -> None:
        x, x0_hat, last = (empty_tensor(form, sizes, dtype) for form in (layout, other, layout))
        sampler_step_triton.forward(x, x0_hat, torch.empty(4), last if previous else None, keys(len(x)) if draw else None)

    name = f"forward{' draw' * draw}{' previous' * previous} {layout} {other} {sizes} {text(dtype)}"
    return Launch("sampler_step", name, run, widths(["x_ptr", "x0_ptr", "x_next_ptr"], lane, dtype), main)


def _run_sampler_step_backward(grad: Tensor, dtypes: list[torch.dtype | None]) -> None:
    sampler_step_triton.backward(grad, torch.empty(4), *dtypes)


def _multiples(op: str, run: Callable[[Tensor, list[torch.dtype | None]], None]) -> Iterator[Launch]:
    """Backward passes whose gradients are multiples of the one that arrives: each alone, and all in every tile and dtype."""

    def launch(sizes, dtype, wanted=(1, 1, 1), lane=8, main=False):
        grad, dtypes = torch.empty(sizes, dtype=dtype), [dtype if want else None for want in wanted]
        name = f"backward {wanted} {sizes} {text(dtype)}"
        return Launch(op, name, partial(run, grad, dtypes), widths(["grad_ptr"], lane, dtype), main)

    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    for sizes, dtype in product((small, medium, large), (FP32, BF16)):
        yield launch(sizes, dtype, main=sizes == large and dtype == BF16)
    for wanted in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
        yield launch(large, BF16, wanted)
    for sizes in ((5, 3), (1, 5, 33, 33), (1, 1, 2**31 + 64)):
        yield launch(sizes, BF16, lane=0)

