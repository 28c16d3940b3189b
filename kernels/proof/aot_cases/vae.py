"""Launches of philox_normal, reparameterize_kl and reconstruction_nll."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels import philox_triton, reconstruction_nll_triton, reparameterize_kl_triton
from fastgen_kernels.layout import compute_dtype, empty_like
from proof.aot_cases.launch import BF16, FP16, FP32, FP64, Launch, empty_tensor, keys, text, widths


def philox() -> Iterator[Launch]:
    """Each tile: few, some and many blocks a sample. A lane of 128 has 2, 2 and 8 elements side by side; a row of Q words that is
    no multiple of 16 is written element by element, which includes all of the first tile."""

    def launch(shape, dtype, normal, lane=0, main=False):
        name = f"{'normal' if normal else 'uniform'} {shape} {text(dtype)}"
        run = partial(philox_triton.philox, shape, keys(shape[0]), dtype, normal)
        return Launch("philox", name, run, widths(["out_ptr"], lane, dtype), main)

    for dtype, normal in product((FP32, BF16, FP16, FP64), (True, False)):
        yield launch((128, 3, 32, 32), dtype, normal, 8, main=normal and dtype == FP32)
        yield launch((128, 256), dtype, normal, 2)
        for elements in (1, 16, 23, 250, 3001):
            yield launch((5, elements), dtype, normal)
    for shape in ((1, 3072), (16, 4), (1, 2**31 + 64)):
        yield launch(shape, BF16, True)


def reparameterize_kl() -> Iterator[Launch]:
    """Every option with every tile and layout in bf16; other dtypes and odd and huge sizes with the options that a VAE uses."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "halves"), *product((medium, large), ("halves", "channels_last", "every second"))]
    for sizes, layout in layouts:
        # Of the quarter of the channels that is side by side in channels_last Triton knows that it is a multiple of 4.
        lane = 2 if sizes == medium else 8 if layout == "halves" else 4
        lane = 0 if sizes == small or layout == "every second" else lane
        for draw, per_element in product((True, False), (False, True)):
            yield from _both_ways(sizes, layout, BF16, draw, per_element, ("dz dkl", "dz", "dkl"), lane=lane, main=sizes == large)
        for dtype in (FP32, FP16):
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
        wide = widths(pointers, lane, dtype)
        yield Launch(
            "reparameterize_kl", f"{options} {layout} {sizes} {text(dtype)}", run, wide, main and given in (None, "dz dkl")
        )


def _run_reparameterize_kl(
    sizes: tuple[int, ...], layout: str, dtype: torch.dtype, draw: bool, per_element: bool, given: str | None
) -> None:
    mu, logvar = _LAYOUTS[layout](sizes, dtype)
    eps, key = (None, keys(len(mu))) if draw else (empty_like(mu), None)
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


def reconstruction_nll() -> Iterator[Launch]:
    """As diffusion_loss, with both likelihoods and x in uint8. A lane has 8 elements side by side."""
    small, medium, large = (128, 16), (64, 16, 4, 4), (8, 16, 32, 32)
    layouts = [(small, "contiguous"), *product((medium, large), ("contiguous", "channels_last"))]
    for (sizes, layout), likelihood, dtype in product(layouts, ("bernoulli", "gaussian"), (FP32, BF16, FP16)):
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
        logits, x = empty_tensor(logits_layout, sizes, logits_dtype), empty_tensor(x_layout, sizes, x_dtype)
        launcher(*dnll, logits, x, likelihood, 0.5)

    name = f"{likelihood} {logits_layout} {x_layout} {sizes} {text(logits_dtype)} {text(x_dtype)}"
    inputs = widths(["logits_ptr"], lane, logits_dtype) | widths(["x_ptr"], lane, x_dtype)
    dnll = torch.empty(sizes[0], dtype=compute_dtype(logits_dtype))
    yield Launch("reconstruction_nll", f"forward {name}", partial(run, reconstruction_nll_triton.forward), inputs, main)
    wide = inputs | widths(["dlogits_ptr"], lane, logits_dtype)
    yield Launch("reconstruction_nll", f"backward {name}", partial(run, reconstruction_nll_triton.backward, dnll), wide, main)
