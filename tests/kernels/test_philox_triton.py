"""The kernels of philox against the reference, by the laboratory's checks."""

import math

import numpy as np
import pytest
import torch

import fastgen
from fastgen.functional import noise_key, philox_normal, philox_uniform
from fastgen_kernels import philox
from fastgen_kernels.blocks_triton import tile
from fastgen_kernels.philox import _philox_numpy
from fastgen_kernels.philox_triton import philox_kernel
from proof.interpreter import last_program
from proof.laboratory.compiling import assert_compiles, assert_exports, assert_registered
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.normals_triton import normals_kernel
from proof.laboratory.soundness import assert_sound

pytestmark = pytest.mark.kernels

FORMS = [
    (70,),  # one element a sample
    (3, 5),  # two blocks, the last words to spare
    (130, 16),  # many small samples to a program
    (9, 3, 7, 5),  # E = 105 and Q = 27
    (3, 4100),  # two tiles, the second of one block
    (0, 3),
    (3, 0),
]


def exact(a, b):
    """Box-Muller in fp64 on words in [0, 2^32), rounded to fp32 first, as the reference does."""
    radius = np.sqrt(-2 * np.log(((a.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)).astype(np.float64)))
    theta = b.astype(np.uint32).view(np.int32).astype(np.float32).astype(np.float64) * (math.pi / 2**31)
    return radius, radius * np.cos(theta), radius * np.sin(theta)


@pytest.mark.kill
@pytest.mark.parametrize("shape", FORMS)
def test_as_the_reference_draws(shape):
    key = noise_key(2**62 + 12345, 2**31 + 7, 5, torch.arange(shape[0]) + 2**32 - 200, DEVICE)
    ours, normals = philox_uniform(shape, key), philox_normal(shape, key)
    with fastgen.disabled():
        assert ours.equal(philox_uniform(shape, key))
        torch.testing.assert_close(normals, philox_normal(shape, key), rtol=0, atol=2e-6)  # four units in the last place at 6.8


@pytest.mark.kill
def test_normals_are_exact_to_a_few_units_in_the_last_place_of_the_radius():
    ends = [0, 1, 2, 3, 127, 128, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 129, 2**32 - 128, 2**32 - 2, 2**32 - 1]
    octants = [i * 2**29 + d for i in range(8) for d in (0, 1, 2**28)]
    a, b = (w.ravel() for w in np.meshgrid(np.array(ends + octants), np.array(ends + octants)))
    rng, n = np.random.default_rng(0), 2**13
    a, b = (np.concatenate([w, rng.integers(0, 2**32, n - len(w))]) for w in (a, b))
    given = [torch.from_numpy(w.astype(np.uint32).view(np.int32)).to(DEVICE) for w in (a, b)]
    ours = [torch.full((n,), torch.nan, device=DEVICE) for _ in range(2)]
    normals_kernel[(1,)](*given, *ours, N=n)
    radius, *truth = exact(a, b)
    ulp = np.spacing(radius.astype(np.float32)).astype(np.float64)
    for x, y in zip(ours, truth, strict=True):
        assert (np.abs(x.cpu().double().numpy() - y) / ulp).max() < 3


@pytest.mark.parametrize("shape", [(5, 50), (2, 500)])
def test_the_same_bits_for_any_block_size(shape):
    n, e = shape
    q = -(-e // 4)
    key = noise_key(7, samples=n, device=DEVICE)
    for normal in (True, False):
        draw = philox_normal if normal else philox_uniform
        for samples, blocks in ((1, 16), (4, 8), (2, 128), (8, 512)):
            out = torch.full(shape, torch.nan, device=DEVICE)
            grid = (-(-n // samples) * -(-q // blocks),)
            philox_kernel[grid](out, key, n, e, q, NORMAL=normal, SAMPLES=samples, BLOCKS=blocks)
            assert out.equal(draw(shape, key))


@pytest.mark.parametrize("draw", [philox_normal, philox_uniform])
def test_distribution_of_a_million(draw):
    stats = pytest.importorskip("scipy.stats")
    key, out = noise_key(11, samples=2, device=DEVICE), torch.empty(2, 2**19, device=DEVICE)
    # In large tiles, which the interpreter is quicker with; the numbers are the same for any.
    philox_kernel[(16,)](out, key, 2, 2**19, 2**17, NORMAL=draw is philox_normal, SAMPLES=1, BLOCKS=2**14)
    draws = out.flatten().cpu().double().numpy()
    name, quantile = ("norm", stats.norm.ppf) if draw is philox_normal else ("uniform", lambda p: p)
    assert stats.kstest(draws, name).pvalue > 1e-3
    assert stats.chisquare(np.histogram(draws, quantile(np.linspace(0, 1, 1025)))[0]).pvalue > 1e-3


@pytest.mark.kill
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    key = noise_key(5, samples=3, device=DEVICE)
    for draw in (philox_normal, philox_uniform):
        ours, rounded = draw((3, 50), key, dtype=dtype), draw((3, 50), key).to(dtype)
        assert ours.dtype == dtype
        # The interpreter truncates to bf16.
        torch.testing.assert_close(ours, rounded, rtol=2.0**-7 if dtype == torch.bfloat16 else 0, atol=0)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("shape", [(65, 3), (9, 50), (3, 4100)])
def test_sound(shape):
    assert_sound(lambda key: philox_normal(shape, key), noise_key(1, samples=shape[0]))


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(("n", "e"), [(2**21 + 1, 2**10), (1, 2**31 + 2**13)])
def test_elements_beyond_int32(n, e):
    """The last program of a launch over more than 2^31 elements, which are not all there."""
    q = e // 4
    key, out = noise_key(3, samples=n), lazy(n * e, torch.float16)
    samples, blocks = tile(q)
    with last_program():
        philox_kernel[(n * -(-q // blocks),)](out, key, n, e, q, NORMAL=False, SAMPLES=samples, BLOCKS=blocks)
    last = min(q, blocks)
    words = _philox_numpy(torch.arange(q - last, q), key[-1:])[0, 3]
    torch.testing.assert_close(out[-last:].float(), ((words >> 9) + 0.5) * 2.0**-23, rtol=2.0**-10, atol=2.0**-11)


@pytest.mark.kill
def test_tiles():
    assert [tile(blocks) for blocks in (1, 4, 5, 64, 65, 10**6)] == [(64, 4)] * 2 + [(4, 64)] * 2 + [(1, 1024)] * 2


def test_a_key_of_any_strides():
    key = noise_key(3, 1, 2, 6)
    for other in (key.t().contiguous().t(), key.repeat(1, 2)[:, 4:], key[:1].expand(6, 4)):
        assert philox_normal((6, 7), other).equal(philox_normal((6, 7), other.contiguous()))


def test_registered():
    key = noise_key(1, samples=4, device=DEVICE)
    assert_registered(philox._philox_op.registered, ((4, 3, 5), key, torch.float32, True), ((4,), key, torch.bfloat16, False))


def test_compiles_and_exports():
    def draw(key):
        return philox_normal((key.shape[0], 3, 5), key), philox_uniform((key.shape[0],), key)

    key = noise_key(1, samples=6, device=DEVICE)
    assert_compiles(draw, key, backends=("aot_eager", "inductor"))
    assert_exports(draw, key)


def test_words_are_philox():
    """The top 23 bits of each word are those of the reference's integers."""
    key = noise_key(2**40 + 1, 3, 4, 5, DEVICE)
    words = _philox_numpy(torch.arange(33), key.cpu()).flatten(1)
    uniform = philox_uniform((5, 132), key).cpu().double()
    assert (uniform * 2**23 - 0.5).to(torch.int64).equal(words >> 9)
