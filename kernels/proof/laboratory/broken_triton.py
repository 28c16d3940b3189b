"""An op to prove the laboratory on, y = x · exp(clamp(w)) and its sum over each row, with faults to order.

FAULT names what is wrong with the kernels, "" for nothing. Each fault is one that kernels are known for, and most do not show
on small contiguous fp32 tensors.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastgen_kernels.library import define

LIMIT = 2.0
BLOCK = 8


@triton.jit
def forward_kernel(x, w, y, total, D, xn, xd, wd, limit, FAULT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr):
    """One program per row: y (N, D) and the total of the row (N,)."""
    row = tl.program_id(0)
    if FAULT == "int32 offset":
        x += row * xn
    else:
        x += row.to(tl.int64) * xn
    y += row.to(tl.int64) * D

    row_total = tl.zeros((), x.dtype.element_ty if FAULT == "no upcast" else COMPUTE)
    for start in range(0, D, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < D
        read = column <= D if FAULT == "mask off by one" else inside
        log_gain = tl.load(w + column * wd, mask=inside, other=0.0).to(COMPUTE)
        if FAULT != "no clamp":
            log_gain = tl.minimum(tl.maximum(log_gain, -limit), limit)
        value = tl.where(inside, tl.load(x + column * xd, mask=read, other=0.0).to(COMPUTE) * tl.exp(log_gain), 0.0)
        written = column < D - 1 if FAULT == "element unwritten" else inside
        tl.store(y + column, value.to(y.dtype.element_ty), mask=written)
        row_total += tl.sum(value.to(row_total.dtype))
    tl.store(total + row, row_total.to(COMPUTE))


@triton.jit
def backward_x_kernel(
    grad_y, grad_total, w, grad_x, D, gn, gd, tn, wd, limit, FAULT: tl.constexpr, COMPUTE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per row: grad_x (N, D)."""
    row = tl.program_id(0).to(tl.int64)
    grad_row = tl.load(grad_total + row * tn).to(COMPUTE)
    for start in range(0, D, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < D
        log_gain = tl.load(w + column * wd, mask=inside, other=0.0).to(COMPUTE)
        if FAULT != "no clamp":
            log_gain = tl.minimum(tl.maximum(log_gain, -limit), limit)
        if FAULT == "contiguous gradient":
            gn, gd = D, 1
        grad = tl.load(grad_y + row * gn + column * gd, mask=inside, other=0.0).to(COMPUTE) + grad_row
        tl.store(grad_x + row * D + column, (grad * tl.exp(log_gain)).to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def backward_w_kernel(
    grad_y,
    grad_total,
    x,
    w,
    grad_w,
    N,
    D,
    gn,
    gd,
    tn,
    xn,
    xd,
    wd,
    limit,
    FAULT: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block of columns: grad_w (D,), summed over the rows. With a fault one program per block and row adds its
    part to grad_w, which holds zeros."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < D
    log_gain = tl.load(w + column * wd, mask=inside, other=0.0).to(COMPUTE)
    clamped = tl.minimum(tl.maximum(log_gain, -limit), limit)
    part = tl.zeros((BLOCK,), COMPUTE)
    ADDS: tl.constexpr = FAULT == "update lost" or FAULT == "float atomics"
    first = tl.program_id(1)
    for i in range(first, first + 1 if ADDS else N):
        row = tl.cast(i, tl.int64)
        grad = tl.load(grad_y + row * gn + column * gd, mask=inside, other=0.0).to(COMPUTE)
        grad += tl.load(grad_total + row * tn).to(COMPUTE)
        part += grad * tl.load(x + row * xn + column * xd, mask=inside, other=0.0).to(COMPUTE)
    part *= tl.exp(clamped)
    if FAULT != "no clamp" and FAULT != "no clamp in backward":
        part = tl.where(clamped == log_gain, part, 0.0)
    if FAULT == "float atomics":
        tl.atomic_add(grad_w + column, part.to(grad_w.dtype.element_ty), mask=inside)
    else:
        if FAULT == "update lost":
            part += tl.load(grad_w + column, mask=inside, other=0.0).to(COMPUTE)
        tl.store(grad_w + column, part.to(grad_w.dtype.element_ty), mask=inside)


@triton.jit
def flat_kernel(x, y, elements, FAULT: tl.constexpr, BLOCK: tl.constexpr):
    """y = 2 x, both contiguous."""
    block = tl.program_id(0)
    if FAULT != "int32 offset":
        block = block.to(tl.int64)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    inside = offset < elements
    tl.store(y + offset, tl.load(x + offset, mask=inside) * 2, mask=inside)


@triton.jit
def sum_kernel(x, part, arrivals, total, n, FAULT: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The sum of x (n,): each program stores that of its block, and the last to arrive adds them up."""
    block = tl.program_id(0)
    offset = block * BLOCK + tl.arange(0, BLOCK)
    tl.store(part + block, tl.sum(tl.load(x + offset, mask=offset < n, other=0.0)))
    order: tl.constexpr = "relaxed" if FAULT == "relaxed atomic" else "acq_rel"
    arrived = tl.atomic_add(arrivals, 1, sem=order)
    if FAULT == "reads before the others stored" or arrived == tl.num_programs(0) - 1:
        blocks = tl.arange(0, BLOCKS)
        tl.store(total, tl.sum(tl.load(part + blocks, mask=blocks < tl.num_programs(0), other=0.0)))


def double(x: Tensor, fault: str) -> Tensor:
    y = torch.empty_like(x)
    flat_kernel[(triton.cdiv(x.numel(), 1024),)](x, y, x.numel(), FAULT=fault, BLOCK=1024)
    return y


def blockwise_sum(x: Tensor, fault: str) -> Tensor:
    blocks = triton.cdiv(len(x), BLOCK)
    part, arrivals, total = x.new_zeros(blocks), x.new_zeros(1, dtype=torch.int32), x.new_empty(1)
    padded = triton.next_power_of_2(blocks)
    sum_kernel[(blocks,)](x, part, arrivals, total, len(x), FAULT=fault, BLOCK=BLOCK, BLOCKS=padded)
    return total


def launch_forward(x: Tensor, w: Tensor, fault: str) -> tuple[Tensor, Tensor]:
    y, total = fake_forward(x, w, fault)
    (n, d), compute = x.shape, _compute(x)
    forward_kernel[(n,)](x, w, y, total, d, *x.stride(), *w.stride(), LIMIT, FAULT=fault, COMPUTE=compute, BLOCK=BLOCK)
    return y, total


def launch_backward(grad_y: Tensor, grad_total: Tensor, x: Tensor, w: Tensor, fault: str) -> tuple[Tensor, Tensor]:
    grad_x, grad_w = fake_backward(grad_y, grad_total, x, w, fault)
    (n, d), compute, grads = x.shape, _compute(x), (*grad_y.stride(), *grad_total.stride())
    options = {"FAULT": fault, "COMPUTE": compute, "BLOCK": BLOCK}
    backward_x_kernel[(n,)](grad_y, grad_total, w, grad_x, d, *grads, *w.stride(), LIMIT, **options)
    adds = fault in ("update lost", "float atomics")
    if adds:
        grad_w.zero_()
    blocks = (triton.cdiv(d, BLOCK), n if adds else 1)
    backward_w_kernel[blocks](grad_y, grad_total, x, w, grad_w, n, d, *grads, *x.stride(), *w.stride(), LIMIT, **options)
    return grad_x, grad_w


def fake_forward(x: Tensor, w: Tensor, fault: str) -> tuple[Tensor, Tensor]:
    n, d = x.shape
    return x.new_empty(n, d), x.new_empty(n, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def fake_backward(grad_y: Tensor, grad_total: Tensor, x: Tensor, w: Tensor, fault: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), w.new_empty(w.shape)


def backward(ctx, grad_y, grad_total):
    return *gated_backward(grad_y, grad_total, *ctx.saved_tensors, ctx.fault), None


def setup_context(ctx, inputs, output):
    x, w, ctx.fault = inputs
    ctx.save_for_backward(x, w)


def _compute(x: Tensor) -> tl.dtype:
    return tl.float64 if x.dtype == torch.float64 else tl.float32


gated = define(
    "laboratory_gated(Tensor x, Tensor w, str fault) -> (Tensor, Tensor)",
    f"{__name__}:launch_forward",
    fake_forward,
    setup_context=setup_context,
    backward=backward,
)
gated_backward = define(
    "laboratory_gated_backward(Tensor grad_y, Tensor grad_total, Tensor x, Tensor w, str fault) -> (Tensor, Tensor)",
    f"{__name__}:launch_backward",
    fake_backward,
)


def reference(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(compute) * w.to(compute).clamp(-LIMIT, LIMIT).exp()
    return y.to(x.dtype), y.sum(1)
