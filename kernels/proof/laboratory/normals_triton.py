"""The Box-Muller step of the kernels alone, on words that are given."""

import triton
import triton.language as tl

from fastgen_kernels.noise_triton import normals


@triton.jit
def normals_kernel(a_ptr, b_ptr, first_ptr, second_ptr, N: tl.constexpr):
    """Words are int32, of which the bits count."""
    i = tl.arange(0, N)
    a, b = tl.load(a_ptr + i).to(tl.uint32, bitcast=True), tl.load(b_ptr + i).to(tl.uint32, bitcast=True)
    first, second = normals(a, b)
    tl.store(first_ptr + i, first)
    tl.store(second_ptr + i, second)
