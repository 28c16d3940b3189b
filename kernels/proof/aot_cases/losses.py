"""Launches of diffusion_loss and denoising_loss."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels import denoising_loss_triton, diffusion_loss_triton
from fastgen_kernels.layout import compute_dtype
from proof.aot_cases.launch import BF16, FP16, FP32, Launch, empty_tensor, keys, text, widths


def diffusion_loss() -> Iterator[Launch]:
    """Every tile, layout and dtype; every kind, rarer layouts, odd and huge sizes in bf16. A lane has 8 elements side by side."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), dtype in product(layouts, (FP32, BF16, FP16)):
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
        pred, target = empty_tensor(pred_layout, sizes, pred_dtype), empty_tensor(target_layout, sizes, target_dtype)
        launcher(*dloss, pred, target, torch.empty(sizes[0]) if weighted else None, kind)

    name = f"{kind}{' weighted' * weighted} {pred_layout} {target_layout} {sizes} {text(pred_dtype)} {text(target_dtype)}"
    inputs = widths(["pred_ptr"], lane, pred_dtype) | widths(["target_ptr"], lane, target_dtype)
    dloss = torch.empty(sizes[0], dtype=compute_dtype(pred_dtype))
    yield Launch("diffusion_loss", f"forward {name}", partial(run, diffusion_loss_triton.forward), inputs, main)
    wide = inputs | widths(["dpred_ptr"], lane, pred_dtype)
    yield Launch("diffusion_loss", f"backward {name}", partial(run, diffusion_loss_triton.backward, dloss), wide, main)


def denoising_loss() -> Iterator[Launch]:
    """As diffusion_loss, with every target and x0 in uint8. A lane has 8 elements side by side in the largest tile, 4
    where the channels are taken by quarters."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), dtype in product(layouts, (FP32, BF16, FP16)):
        lane = 0 if sizes == small else 2 if sizes == medium else 8 if layout == "contiguous" else 4
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
        pred, x0 = empty_tensor(pred_layout, sizes, pred_dtype), empty_tensor(x0_layout, sizes, x0_dtype)
        alpha, sigma, weight = torch.empty(3, sizes[0])
        launcher(*dloss, pred, x0, alpha, sigma, keys(sizes[0]), weight if weighted else None, target, kind)

    name = f"{target} {kind}{' weighted' * weighted} {pred_layout} {x0_layout} {sizes} {text(pred_dtype)} {text(x0_dtype)}"
    inputs = widths(["pred_ptr"], lane, pred_dtype) | ({} if target == "eps" else widths(["x0_ptr"], lane, x0_dtype))
    dloss = torch.empty(sizes[0], dtype=compute_dtype(pred_dtype))
    yield Launch("denoising_loss", f"forward {name}", partial(run, denoising_loss_triton.forward), inputs, main)
    wide = inputs | widths(["dpred_ptr"], lane, pred_dtype)
    yield Launch("denoising_loss", f"backward {name}", partial(run, denoising_loss_triton.backward, dloss), wide, main)
