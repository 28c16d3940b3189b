"""Normal noise inside a kernel, for every op that draws its own: the key's numbers, and Box-Muller on Philox's words.

The formulas are in philox.py.
"""

import triton
import triton.language as tl

from fastgen_kernels.arithmetic_triton import cos_sin


@triton.jit
def load_key(key_ptr, sample, mask):
    """seed, stream, step and global index of the samples, int64."""
    row = key_ptr + sample * 4
    seed = tl.load(row, mask)
    stream = tl.load(row + 1, mask).to(tl.uint32)
    step = tl.load(row + 2, mask).to(tl.uint32)
    index = tl.load(row + 3, mask).to(tl.uint32)
    return seed, stream, step, index


@triton.jit
def normals(a, b):
    """Box-Muller on two words: r cos(theta), r sin(theta), to a few units in the last place of r.

    tl.log, tl.cos and tl.sin are not used: the first loses its digits near 1, the others keep a slow path in local memory.
    """
    # u = (a + 1/2) 2^-32 = 2^e (1 + x) with 1 + x in [sqrt(1/2), sqrt(2)); ln u = e ln 2 + ln(1 + x).
    u = (a.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    e = (bits >> 23).to(tl.float32)
    x = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = 0.0704726507796883
    p = p * x - 0.11529696523027538
    p = p * x + 0.11680500110760882
    p = p * x - 0.12418410597795093
    p = p * x + 0.14248825848587401
    p = p * x - 0.16668111702512783
    p = p * x + 0.2000072937360767
    p = p * x - 0.24999993580871177
    p = p * x + 0.3333333111568673
    ln = e * 0.6931471805599453 + (x - x * x * (0.5 - x * p))
    r = tl.sqrt(-2.0 * ln)

    # theta = (q + y) pi/2 with q the nearest integer.
    turn = b.to(tl.int32, bitcast=True).to(tl.float32) * 9.313225746154785e-10
    q = tl.floor(turn + 0.5)
    cos, sin = cos_sin(q.to(tl.int32), turn - q)
    return r * cos, r * sin
