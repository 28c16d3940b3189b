"""The interpreter that the tests run is quickened, and does what Triton's does."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl

from fastgen.functional import attention, group_norm, noise_key, philox_normal
from fastgen_kernels.arithmetic_triton import exponential
from proof.laboratory.accuracy import results
from proof.laboratory.broken_triton import gated
from proof.laboratory.device import interpreter_only
from proof.laboratory.tensors import random

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.kernels, interpreter_only]


def digest():
    """Of the bits that kernels give: integers and floats, masks, broadcasts, reductions, products, in several dtypes."""
    bits = hashlib.sha256(philox_normal((3, 9), noise_key(5, samples=3)).numpy().tobytes())
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x, w = random((5, 13), dtype).requires_grad_(), random((13,), dtype, seed=1).requires_grad_()
        q, k, v = (random((1, 2, 5, 8), dtype, seed=seed).requires_grad_() for seed in range(3))
        norm = results(group_norm, random((2, 6, 5), dtype).requires_grad_(), 3)
        for made in (results(lambda x, w: gated(x, w, ""), x, w), results(attention, q, k, v), norm):
            for y in made.values():
                bits.update(y.contiguous().view(torch.uint8).numpy().tobytes())
    return bits.hexdigest()


def test_the_same_bits_as_without():
    code = "from proof.interpreter import round_as_on_a_gpu, round_products_once; round_as_on_a_gpu(); round_products_once()\n"
    code += "from tests.proof.test_interpreter import digest; print(digest())"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    slow = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert slow.stdout.strip() == digest(), slow.stderr


def test_types_are_checked_each_time():
    for _ in range(2):
        with pytest.raises(ValueError, match="must be a power of 2"):
            tl.block_type(tl.float32, [3])
        with pytest.raises(TypeError, match="0d block_type is forbidden"):
            tl.block_type(tl.float32, [])
    block, other = tl.block_type(tl.float32, [2, 4]), tl.block_type(tl.float16, [2, 4])
    assert block == tl.block_type(tl.float32, [2, 4])
    assert block not in (other, tl.block_type(tl.float32, [4, 2]))
    assert tl.float32 not in (tl.float16, tl.pointer_type(tl.float32), 1)


@triton.jit
def pointers_of_two_types(out_ptr, x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i) + tl.load(y_ptr + i))


def test_pointers_of_one_shape_and_several_types():
    """Their blocks are of one shape, and of types that differ in what they point to alone."""
    out, x, y = torch.empty(4, dtype=torch.float64), torch.arange(4.0), torch.arange(4, dtype=torch.float64)
    pointers_of_two_types[(1,)](out, x, y, N=4)
    assert out.equal(x + y)


@triton.jit
def inexact_functions(out_ptr, x_ptr, y_ptr, N: tl.constexpr, PRECISE: tl.constexpr):
    i = tl.arange(0, N)
    x, y = tl.load(x_ptr + i), tl.load(y_ptr + i)
    if PRECISE:
        tl.store(out_ptr + i, tl.div_rn(x, y))
        tl.store(out_ptr + N + i, tl.sqrt_rn(x))
        tl.store(out_ptr + 2 * N + i, exponential(y))
    else:
        tl.store(out_ptr + i, x / y)
        tl.store(out_ptr + N + i, tl.sqrt(x))
        tl.store(out_ptr + 2 * N + i, tl.exp(y))


@pytest.mark.parametrize("precise", [False, True])
def test_rounding_of_a_gpu(precise):
    """Units in the last place: at most 2.5 of a quotient, 1 of a root, |x| and 1.5 of exp; what is precise has at most 1/2, our
    exponential 1; what fp32 holds exactly, such as quotients by powers of 2, is exact."""
    x, y = 10 * torch.rand(512) + 0.1, 20 * torch.rand(512) - 10
    out = torch.empty(3, 512)
    inexact_functions[(1,)](out, x, y, N=512, PRECISE=precise)
    exact = torch.stack([x.double() / y.double(), x.double().sqrt(), y.double().exp()])
    unit = 2.0 ** (exact.abs().log2().floor() - 23)
    errors = ((out - exact) / unit).abs()
    most = torch.tensor([[0.5], [0.5], [1.0]] if precise else [[2.5], [1.0], [11.5]]).double()
    assert (errors <= most + 1e-6).all()
    if not precise:
        assert (errors.max(1).values > torch.tensor([1.0, 0.9, 5.0])).all()
    inexact_functions[(1,)](out, x, torch.full((512,), 4.0), N=512, PRECISE=precise)
    assert (out[0] == x / 4).all()
