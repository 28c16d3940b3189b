"""Launches of layer_norm and geglu."""

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from fastgen_kernels import geglu_triton, layer_norm_triton
from fastgen_kernels.layout import compute_dtype
from proof.aot_cases.launch import BF16, FP16, FP32, Launch, text, widths

WHOLE, NORM, PLAIN = "whole", "norm", "plain"
DENSE, GAP, UNALIGNED = "dense", "row gap", "unaligned"
ROWS = 8192  # of transformers at work: tiles of every height


def layer_norm() -> Iterator[Launch]:
    """The widths of transformers in bf16; every width of a tile in each dtype; few rows, odd and huge ones."""
    for c, options in product((320, 640, 768, 1152, 1280), (PLAIN, NORM, WHOLE)):
        yield from _layer_norm(ROWS, c, BF16, options, main=options != PLAIN)
    for k, dtype in product(range(3, 14), (BF16, FP16, FP32)):
        yield from _layer_norm(ROWS, 2**k, dtype, WHOLE)
        yield from _layer_norm(ROWS, 3 * 2 ** (k - 2), dtype, WHOLE)
    for rows, c in product((1, 77, 300, 1000), (40, 320, 1280, 8192)):
        yield from _layer_norm(rows, c, BF16, NORM)
    for c, layout in product((72, 320, 1000, 1280, 8192), (GAP, UNALIGNED)):
        yield from _layer_norm(ROWS, c, BF16, WHOLE, layout)
    for c in (1, 3, 37, 1001, 1023, 4095):
        for dtype in (BF16, FP32):
            yield from _layer_norm(ROWS, c, dtype, WHOLE)
    yield from _layer_norm(2**22, 1024, BF16, WHOLE)


def _layer_norm(
    rows: int, c: int, dtype: torch.dtype, options: str, layout: str = DENSE, *, main: bool = False
) -> Iterator[Launch]:
    """plain: x alone. norm: weight and bias, in fp32. whole: with a residual, and in backward the gradient of the sum."""
    compute = compute_dtype(dtype)

    def given() -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if options == PLAIN else (torch.empty(c, dtype=compute), torch.empty(c, dtype=compute))

    def forward() -> None:
        x, residual = (empty_rows(layout, rows, c, dtype) for _ in range(2))
        layer_norm_triton.forward(x, residual if options == WHOLE else None, *given(), 1e-5)

    def backward() -> None:
        x, dy, dtotal = (empty_rows(layout, rows, c, dtype) for _ in range(3))
        weight, bias = given()
        wanted = [None if p is None else p.dtype for p in (x, weight, bias)]
        statistics = torch.empty(2, rows, dtype=compute)
        layer_norm_triton.backward(dy, dtotal if options == WHOLE else None, x, weight, statistics, *wanted)

    name = f"{options} {layout} {rows}x{c} {text(dtype)}"
    lane = 16 // dtype.itemsize if c % 8 == 0 and layout != UNALIGNED and rows * c >= 2**17 else 0
    yield Launch("layer_norm", f"forward {name}", forward, widths(["x_ptr", "y_ptr"], lane, dtype), main)
    yield Launch("layer_norm", f"backward {name}", backward, widths(["x_ptr", "dy_ptr", "dx_ptr"], lane, dtype), main)


def geglu() -> Iterator[Launch]:
    """The widths of transformers in each dtype; odd, strided and huge ones."""
    for d, dtype in product((1280, 2560, 5120, 3072), (BF16, FP16, FP32)):
        yield from _geglu(ROWS, d, dtype, main=dtype == BF16)
    for d, layout in product((1, 3, 37, 40, 1001, 1280), (DENSE, GAP, UNALIGNED)):
        yield from _geglu(ROWS, d, BF16, layout)
    yield from _geglu(2**20, 4096, BF16)


def _geglu(rows: int, d: int, dtype: torch.dtype, layout: str = DENSE, *, main: bool = False) -> Iterator[Launch]:
    def forward() -> None:
        geglu_triton.forward(empty_rows(layout, rows, 2 * d, dtype))

    def backward() -> None:
        geglu_triton.backward(torch.empty(rows, d, dtype=dtype), empty_rows(layout, rows, 2 * d, dtype))

    name = f"{layout} {rows}x{d} {text(dtype)}"
    lane = 8 if d % 8 == 0 and layout != UNALIGNED else 0
    yield Launch("geglu", f"forward {name}", forward, widths(["x_ptr", "y_ptr"], lane, dtype), main)
    yield Launch("geglu", f"backward {name}", backward, widths(["x_ptr", "dy_ptr", "dx_ptr"], lane, dtype), main)


def empty_rows(layout: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """(rows, columns) without values: rows that lie side by side, half of each of longer ones, or behind one element."""
    if layout == GAP:
        return torch.empty(rows, 2 * columns, dtype=dtype)[:, columns:]
    if layout == UNALIGNED:
        return torch.empty(1 + rows * columns, dtype=dtype)[1:].view(rows, columns)
    return torch.empty(rows, columns, dtype=dtype)
