"""Kernels that proof.aot must find fault with, each with the fault that is meant, and some that it must not. Run as
`python kernels/proof aot` is: it takes the same arguments."""

import sys

import torch
import triton
import triton.language as tl

from proof.aot import main
from proof.aot_cases import Launch


@triton.jit
def cosine(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """tl.cos keeps a path for large arguments that works in local memory."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.cos(tl.load(x_ptr + i)))


@triton.jit
def centred(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """x - mean(x), x kept in registers."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i)
    tl.store(out_ptr + i, x - tl.sum(x, 0) / BLOCK)


@triton.jit
def strided(out_ptr, x_ptr, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.load(x_ptr + i * stride))


@triton.jit
def product(out_ptr, a_ptr, b_ptr, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N)[None, :], tl.arange(0, K)
    a = tl.load(a_ptr + m * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n)
    tl.store(out_ptr + m * N + n, tl.dot(a, b))


@triton.jit
def misspelt(out_ptr, x_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out_ptr + i, tl.lode(x_ptr + i))


def elementwise(name, kernel, *arguments, block=1024, wide=16, **options):
    x = torch.empty(65536)
    out = torch.empty_like(x)
    return Launch(
        "toy",
        name,
        lambda: kernel[(65536 // block,)](out, x, *arguments, BLOCK=block, **options),
        {"out_ptr": wide, "x_ptr": wide},
    )


def matrices(name, m, n, k=64, **wide):
    """m and n: numbers, or what makes them of the capability."""

    def launch():
        size = [x(torch.cuda.get_device_capability()) if callable(x) else x for x in (m, n)]
        a, b, out = (torch.empty(65536, dtype=torch.bfloat16) for _ in range(3))
        product[(1,)](out, a, b, *size, k)

    return Launch("toy", name, launch, wide)


TOYS = [
    elementwise("clean", centred),
    elementwise("local memory", cosine),
    elementwise("spills", centred, block=8192, num_warps=1),
    elementwise("does not compile", misspelt),
    elementwise("narrow", strided, 3),
    elementwise("wide", strided, 1),
    matrices("dot", 64, 64, out_ptr=16, a_ptr=16, b_ptr=16),
    matrices("small dot", 16, 16),
    matrices("large dot", *(lambda cc, size=size: size if cc == (10, 0) else 128 for size in (256, 512))),
]

if __name__ == "__main__":
    sys.exit(main(TOYS))
