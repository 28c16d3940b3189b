import math

import numpy as np
import pytest
import torch

import fastgen
from fastgen.functional import at, noise_key, philox_normal, philox_uniform
from fastgen_kernels.philox import _philox, _philox_numpy, fresh_key
from tests.helpers.paths import by_reference

pytestmark = pytest.mark.usefixtures("path")

# Random123's kat_vectors, philox4x32 10: counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter, key):
    """Philox 4x32-10 in Python's integers, after the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        hi0, lo0 = divmod(0xD2511F53 * c[0], 2**32)
        hi1, lo1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


def scalar_words(elements, row):
    """The words of a sample's elements and, for the pairs of Box-Muller, which word of its block each is."""
    seed, stream, step, sample = row
    blocks = -(-elements // 4)
    key = seed % 2**32, seed // 2**32
    return [(scalar_philox((e % blocks, sample % 2**32, stream, step), key), e // blocks) for e in range(elements)]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert scalar_philox(counter, key) == expected
    rows = np.array([[key[0] + (key[1] << 32), counter[2], counter[3], counter[1]]], np.uint64).view(np.int64)
    for philox in (_philox, _philox_numpy):
        assert tuple(philox(torch.tensor([counter[0]]), torch.from_numpy(rows)).flatten().tolist()) == expected


@pytest.mark.parametrize("seed", [0, 7, 2**32 + 5, 2**63 - 1])
def test_numpy_and_torch_make_the_same_integers(seed):
    key = noise_key(seed, stream=2**32 - 1, step=3, samples=[0, 1, 2**31, 2**32 - 1])
    assert _philox_numpy(torch.arange(301), key).equal(_philox(torch.arange(301), key))


@pytest.mark.parametrize(("samples", "blocks"), [(70_000, 1), (3, 40_000), (33, 1_000), (0, 3), (3, 0)])
def test_numpys_parts_join(samples, blocks):
    key = noise_key(9, stream=1, step=2, samples=samples)
    assert _philox_numpy(torch.arange(blocks), key).equal(_philox(torch.arange(blocks), key))


@pytest.mark.parametrize(
    "rest",
    [
        (),  # one element a sample
        (3,),  # less than a block
        (4,),
        (2, 5),  # 10: the last blocks have two words to spare
        (3, 3, 7),
    ],
)
def test_layout(rest):
    key = noise_key(2**40 + 11, stream=5, step=6, samples=range(9, 12))
    uniform, normal = philox_uniform((3, *rest), key), philox_normal((3, *rest), key)
    assert uniform.shape == normal.shape == (3, *rest)
    assert uniform.is_contiguous()
    assert normal.is_contiguous()
    for i, row in enumerate(key.tolist()):
        words = scalar_words(math.prod(rest), row)
        assert uniform[i].flatten().tolist() == [((block[w] >> 9) + 0.5) / 2**23 for block, w in words]
        expected = []
        for block, w in words:
            a, b = block[w - w % 2], block[w - w % 2 + 1]
            radius = math.sqrt(-2 * math.log((a + 0.5) / 2**32))
            theta = (b - 2**32 if b >= 2**31 else b) * math.pi / 2**31
            expected.append(radius * (math.sin(theta) if w % 2 else math.cos(theta)))
        torch.testing.assert_close(normal[i].flatten(), torch.tensor(expected))


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0), (0,), (2, 5, 0, 2)])
@pytest.mark.parametrize("draw", [philox_normal, philox_uniform])
def test_empty(draw, shape):
    assert draw(shape, noise_key(1, samples=shape[0])).shape == shape


@pytest.mark.parametrize("draw", [philox_normal, philox_uniform])
@pytest.mark.parametrize("rest", [(), (3, 7, 5), (1100,)])
def test_a_sample_does_not_depend_on_its_batch(draw, rest):
    key = noise_key(3, step=4, samples=24)
    whole = draw((24, *rest), key)
    for start, stop in [(0, 1), (1, 12), (12, 24)]:
        assert draw((stop - start, *rest), key[start:stop]).equal(whole[start:stop])
    shuffled = torch.randperm(24)
    assert draw((24, *rest), key[shuffled]).equal(whole[shuffled])
    assert draw((4, *rest), noise_key(3, step=4, samples=range(8, 12))).equal(whole[8:12])


def test_every_column_of_the_key_counts():
    rows = [(1, 0, 0, 0), (2, 0, 0, 0), (1 + 2**32, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    noise = philox_normal((6, 4096), torch.tensor(rows))
    assert (noise.corrcoef() - torch.eye(6)).abs().max() < 0.08  # five deviations of 1/sqrt(4096)


@by_reference  # the kernels draw the same numbers, and a test of theirs looks at a million
def test_uniform_is_uniform():
    stats = pytest.importorskip("scipy.stats")
    draws = philox_uniform((16, 2**14), noise_key(0, samples=16))
    assert draws.min() > 0
    assert draws.max() < 1
    assert (draws.double() * 2**24 % 2 == 1).all()  # odd multiples of 2^-24: exact
    assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    for bits in (1, 8, 16):  # the top bits and, of the scaled fraction, the lower ones
        counts = torch.histc(draws.double() * 2.0 ** (bits - 1) % 1, bins=256, min=0, max=1)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


@by_reference
def test_normal_is_normal():
    stats = pytest.importorskip("scipy.stats")
    draws = philox_normal((16, 2**14), noise_key(1, samples=16))
    assert stats.kstest(draws.flatten().numpy(), "norm").pvalue > 1e-3
    edges = stats.norm.ppf(np.linspace(0, 1, 257))
    assert stats.chisquare(np.histogram(draws.double().numpy(), edges)[0]).pvalue > 1e-3
    quarters = draws.view(16, 4, -1).transpose(0, 1).flatten(1)  # the four words of all blocks
    for quarter in quarters:
        assert stats.kstest(quarter.numpy(), "norm").pvalue > 1e-3
    for power in (1, 2):
        assert (quarters.pow(power).corrcoef() - torch.eye(4)).abs().max() < 0.02  # five of 1/sqrt(2^16)


def test_extreme_words_make_finite_normals(monkeypatch):
    words = torch.tensor([0, 0xFFFFFFFF, 0x80000000, 0x7FFFFFFF])
    a, b = (w.flatten()[None] for w in torch.meshgrid(words, words, indexing="ij"))
    monkeypatch.setattr("fastgen_kernels.philox._words", lambda *args: torch.stack((a, b, b, a), 1))
    with fastgen.disabled():  # the kernel has a test of its own
        noise = philox_normal((1, 64), noise_key(0))
    assert noise.isfinite().all()
    assert 6.7 < noise.abs().max() < 6.8
    assert noise.abs().min() == 0


@pytest.mark.parametrize("draw", [philox_normal, philox_uniform])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_casts(draw, dtype, path):
    key = noise_key(5, samples=3)
    truncated = path == "interpreter" and dtype == torch.bfloat16  # as the interpreter casts
    torch.testing.assert_close(
        draw((3, 50), key, dtype=dtype), draw((3, 50), key).to(dtype), rtol=2.0**-7 if truncated else 0, atol=0
    )


def test_device():
    assert philox_normal((3, 5), noise_key(0, samples=3, device="meta")).device.type == "meta"
    assert philox_normal((3, 5), noise_key(0, samples=3), device="meta").device.type == "meta"


def test_torch_generator_is_left_alone():
    before = torch.get_rng_state()
    philox_normal((3, 5), noise_key(0, samples=3))
    assert torch.get_rng_state().equal(before)


def test_noise_key():
    assert noise_key(7).tolist() == [[7, 0, 0, 0]]
    assert noise_key(7, 1, 2, 3).tolist() == [[7, 1, 2, 0], [7, 1, 2, 1], [7, 1, 2, 2]]
    for samples in ([4, 2], torch.tensor([4, 2]), range(4, 0, -2), torch.tensor([4, 2], dtype=torch.int32)):
        assert noise_key(7, step=torch.tensor(9), samples=samples).tolist() == [[7, 0, 9, 4], [7, 0, 9, 2]]
    assert noise_key(0, samples=0).shape == noise_key(0, samples=[]).shape == (0, 4)
    assert noise_key(0).dtype == torch.int64


def test_at():
    key = noise_key(7, 1, 2, 2)
    assert at(key, stream=5).tolist() == [[7, 5, 2, 0], [7, 5, 2, 1]]
    assert at(key, step=torch.tensor(6)).tolist() == [[7, 1, 6, 0], [7, 1, 6, 1]]
    assert at(key, stream=torch.tensor(3, dtype=torch.int32), step=4).tolist() == [[7, 3, 4, 0], [7, 3, 4, 1]]
    assert at(key).equal(key)
    at(key).zero_()
    assert key.tolist() == [[7, 1, 2, 0], [7, 1, 2, 1]]


def test_fresh_key_comes_from_the_torch_generator():
    torch.manual_seed(0)
    first, second = fresh_key(3), fresh_key(3)
    torch.manual_seed(0)
    assert fresh_key(3).equal(first)
    assert not first.equal(second)
    assert first[:, 3].tolist() == [0, 1, 2]
    assert (first >= 0).all()


@by_reference
def test_compiles():
    def draw(key, step):
        key = at(key, stream=3, step=step)
        return philox_normal((4, 3, 7), key), philox_uniform((4,), key), noise_key(5, step=step, samples=4)

    key, step = noise_key(2**35, samples=4), torch.tensor(12)
    compiled = torch.compile(draw, fullgraph=True, backend="aot_eager")
    for ours, expected in zip(compiled(key, step), draw(key, step), strict=True):
        assert ours.equal(expected)
    torch.manual_seed(0)
    expected = fresh_key(3)
    torch.manual_seed(0)
    assert torch.compile(fresh_key, fullgraph=True, backend="aot_eager")(3).equal(expected)


@pytest.mark.slow
def test_compiled_by_inductor():
    """A compiler of C++ may make of an int64 product that overflows what it likes."""

    shapes = [(10, 4), (5, 3), (3, 8, 9)]  # one block, one cut off, vectors of blocks

    def draw(*keys):
        return [philox_uniform(shape, key) for shape, key in zip(shapes, keys, strict=True)]

    compiled = torch.compile(draw, fullgraph=True, dynamic=False)
    for step in (0, 7):
        keys = [noise_key(2**62 + 3, step=step, samples=shape[0]) for shape in shapes]
        assert all(ours.equal(expected) for ours, expected in zip(compiled(*keys), draw(*keys), strict=True))


@by_reference
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: noise_key(-1), ValueError, r"seed: expected a number in \[0, 2\^63\), got -1"),
        (lambda: noise_key(2**63), ValueError, r"seed: expected a number in \[0, 2\^63\)"),
        (lambda: noise_key(0, stream=2**32), ValueError, r"stream: expected a number in \[0, 2\^32\), got 4294967296"),
        (lambda: noise_key(0, step=-1), ValueError, r"step: expected a number in \[0, 2\^32\), got -1"),
        (lambda: noise_key(0, samples=-2), ValueError, r"samples: expected a number in \[0, 2\^32\), got -2"),
        (
            lambda: noise_key(0, samples=torch.ones(2, 2)),
            ValueError,
            r"samples: expected a count, .* got shape \(2, 2\)",
        ),
        (lambda: at(noise_key(0), step=-3), ValueError, r"step: expected a number in \[0, 2\^32\), got -3"),
        (
            lambda: philox_normal((2, 3), noise_key(0)),
            ValueError,
            r"key: expected shape \(N, 4\) = \(2, 4\), got \(1, 4\)",
        ),
        (
            lambda: philox_normal((1,), torch.ones(1, 4)),
            TypeError,
            "key: expected int64, got torch.float32",
        ),
        (lambda: philox_uniform((), noise_key(0)), ValueError, r"shape: expected \(N, \*rest\), got \(\)"),
        (lambda: philox_uniform((1,), noise_key(0), dtype=torch.int32), TypeError, "dtype: expected a floating dtype"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
