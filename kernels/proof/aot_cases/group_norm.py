"""Launches of group_norm."""

from collections.abc import Iterator, Sequence
from itertools import product

import torch

from fastgen_kernels.group_norm import backward_triton, forward_triton
from fastgen_kernels.layout import compute_dtype, empty_like
from proof.aot_cases.launch import BF16, FP16, FP32, Launch, empty_tensor, text, widths

WHOLE, MODULATED, PLAIN = "whole", "modulated", "plain"
# Of UNets and autoencoders, by algorithm: held, streamed, split; channels in groups of 4, 8, 10, 20, 30 and 40.
HELD = [(8, 1280, 8, 8), (128, 256, 16, 16), (8, 1280, 16, 16), (128, 128, 32, 32)]
LARGE = [(32, 256, 64, 64), (8, 640, 32, 32), (4, 960, 32, 32), (8, 320, 64, 64), (1, 128, 512, 512)]


def group_norm() -> Iterator[Launch]:
    """Every shape with what a UNet's norms have, in bf16; other dtypes and the other options, odd and huge shapes."""
    for shape, layout in product(HELD + LARGE, ("contiguous", "channels_last")):
        for options in (PLAIN, MODULATED, WHOLE):
            yield from both_ways(shape, 32, BF16, layout, options, lane=8, main=options == MODULATED)
    for shape, layout, dtype in product(HELD[1:2] + LARGE[:1] + LARGE[-2:], ("contiguous", "channels_last"), (FP32, FP16)):
        yield from both_ways(shape, 32, dtype, layout, WHOLE, lane=4)
    for shape, groups in (((2, 64, 7, 7), 4), ((3, 6, 5, 7), 3), ((4, 512, 16, 16), 1), ((4, 512, 64, 64), 1), ((16, 64), 8)):
        for layout in ("contiguous", "channels_last") if len(shape) > 2 else ("contiguous",):
            yield from both_ways(shape, groups, BF16, layout, WHOLE)
    for shape in (HELD[1], LARGE[0]):
        yield from both_ways(shape, 32, BF16, "every second", WHOLE)
        yield from both_ways(shape, 32, BF16, "unaligned", WHOLE)
    yield from both_ways((1, 32, 2**27), 8, BF16, "contiguous", WHOLE)


def both_ways(
    shape: Sequence[int], groups: int, dtype: torch.dtype, layout: str, options: str, *, lane: int = 0, main: bool = False
) -> Iterator[Launch]:
    """plain: weight and bias, in fp32. modulated: scale and shift too. whole: everything."""
    n, c = shape[:2]

    def given() -> tuple[torch.Tensor | None, ...]:
        weight, bias = torch.empty(2, c, dtype=compute_dtype(dtype)).unbind(0)
        scale, shift = torch.empty(n, 2 * c, dtype=dtype).chunk(2, 1)
        pre_bias = torch.empty(n, c, dtype=dtype)
        if options == PLAIN:
            return weight, bias, None, None, None
        return weight, bias, scale, shift, pre_bias if options == WHOLE else None

    def forward() -> None:
        x = empty_tensor(layout, shape, dtype)
        residual = empty_like(x) if options == WHOLE else None
        forward_triton.forward(x, residual, *given(), groups, 1e-5, "silu")

    def backward() -> None:
        x = empty_tensor(layout, shape, dtype)
        dy, dtotal = empty_like(x), empty_like(x) if options == WHOLE else None
        statistics = torch.empty(n, groups, 3, dtype=compute_dtype(dtype))
        parameters = given()
        wanted = [True, *(p is not None for p in parameters)]
        backward_triton.backward(dy, dtotal, x, *parameters, statistics, "silu", wanted)

    name = f"{options} {layout} {tuple(shape)} {groups} groups {text(dtype)}"
    yield Launch("group_norm", f"forward {name}", forward, widths(["y_ptr"], lane, dtype), main)
    yield Launch("group_norm", f"backward {name}", backward, widths(["dx_ptr"], lane, dtype), main)
