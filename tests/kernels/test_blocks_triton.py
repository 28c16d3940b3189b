"""Every element of a sample lies in one block, has the noise that its logical index has, and is found in any memory format."""

from itertools import product

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, reparameterize_kl
from fastgen_kernels.blocks_triton import cover, splits
from fastgen_kernels.layout import as_ncs
from proof.laboratory.device import DEVICE, interpreter_only
from proof.laboratory.far import lazy
from proof.laboratory.guard_pages import assert_in_bounds
from proof.laboratory.tensors import LAYOUTS, random

pytestmark = pytest.mark.kernels

SHAPES = [
    (3, 8, 4, 5),  # C a multiple of 4
    (3, 8, 1, 3),
    (2, 12, 7, 7),
    (3, 3, 4, 5),  # C no multiple of 4
    (2, 2, 5),
    (66, 16),  # more samples than a program has
    (2, 1, 4101),  # more blocks than a program takes, E no multiple of 4
]


KILLING = [(SHAPES[0], "channels_last"), (SHAPES[2], "channels_last"), (SHAPES[3], "channels_last"), (SHAPES[3], "permuted")]
KILLING += [(SHAPES[5], "contiguous"), (SHAPES[6], "contiguous"), (SHAPES[0], "half")]
OTHERS = [*product(SHAPES[:1], LAYOUTS), *product(SHAPES[3:4], LAYOUTS), *product(SHAPES, ["contiguous", "channels_last"])]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [pytest.param(*case, marks=[pytest.mark.kill] if case in KILLING else []) for case in dict.fromkeys(KILLING + OTHERS)],
)
def test_noise_and_elements_meet(shape, layout):
    key = noise_key(9, samples=shape[0], device=DEVICE)
    mu = random(shape, layout=layout)
    logvar = torch.zeros_like(mu).requires_grad_()
    z, kl = reparameterize_kl(mu, logvar, key=key, reduce="none")
    torch.testing.assert_close(z, mu + philox_normal(shape, key))
    torch.testing.assert_close(kl, mu.square() / 2)
    (grad,) = torch.autograd.grad(z, logvar, torch.ones_like(z))
    torch.testing.assert_close(grad, philox_normal(shape, key) / 2)


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize(("shape", "strides"), [((1, 4, 3), (2**32, 2**30, 1)), ((1, 4, 3), (2**32, 1, 2**30))])
def test_strides_beyond_int32(shape, strides):
    mu = lazy(2**32, torch.float16).as_strided(shape, strides)
    mu.copy_(random(shape, torch.float16))
    key = noise_key(9)
    zeros = lazy(2**32, torch.float16).as_strided(shape, (2**32, 2**30, 1))
    z, _ = reparameterize_kl(mu, zeros, key=key)
    assert z.equal(reparameterize_kl(mu.contiguous(), torch.zeros(shape, dtype=torch.float16), key=key)[0])


@interpreter_only
@pytest.mark.kill
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (2, 3, 5, 3)])
def test_in_bounds(shape, layout):
    mu = random(shape, layout=layout)
    key = noise_key(9, samples=shape[0], device=DEVICE)
    assert_in_bounds(lambda mu, logvar, key: reparameterize_kl(mu, logvar, key=key), mu, torch.zeros_like(mu), key)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("shape", "strides", "flat", "quarters", "samples", "blocks", "tiles"),
    [
        ((2, 4, 4), (16, 4, 1), True, False, 64, 4, 1),
        ((2, 4, 4), (16, 1, 4), False, True, 64, 4, 1),
        ((2, 3, 4), (12, 1, 3), False, False, 64, 4, 1),
        ((2, 4, 64), (512, 64, 1), True, False, 4, 64, 1),  # half of a tensor: each sample in order
        ((2, 4, 4), (16, 1, 8), False, True, 64, 4, 1),
        ((2, 1, 4097), (4097, 4097, 1), True, False, 1, 1024, 2),
        ((1, 4, 4), (16, 4, 1), True, False, 64, 4, 1),
        ((2, 8, 1), (512, 1, 1), True, False, 64, 4, 1),  # in order and channels innermost, both
        ((2, 4, 4), (32, 8, 2), False, False, 64, 4, 1),
        ((1, 3, 1366), (4098, 1, 3), False, False, 1, 1024, 2),
    ],
)
def test_cover(shape, strides, flat, quarters, samples, blocks, tiles):
    x = torch.empty(2**14).as_strided(shape, strides)
    sizes, constants, covered = cover(x)
    n, c, s = shape
    assert sizes == {"N": n, "C": c, "S": s, "E": c * s, "Q": -(-c * s // 4)}
    assert constants == {"FLAT": flat, "QUARTERS": quarters, "SAMPLES": samples, "BLOCKS": blocks}
    assert covered == tiles
    assert cover(x, x, strided=2)[1]["BLOCKS"] == (blocks if flat or quarters else 2)
    assert cover(x, x, strided=2048)[1]["BLOCKS"] == blocks


@pytest.mark.kill
def test_one_tensor_out_of_order_is_enough():
    x = torch.empty(2, 3, 8)
    assert cover(x, x)[1]["FLAT"]
    assert not cover(x, x[:, :, ::2])[1]["FLAT"]


@pytest.mark.kill
def test_as_ncs():
    for shape, expected in [((5,), (5, 1, 1)), ((5, 3), (5, 3, 1)), ((2, 3, 4, 5), (2, 3, 20))]:
        x = torch.empty(shape)
        assert as_ncs(x).shape == expected
        assert as_ncs(x).data_ptr() == x.data_ptr()


@pytest.mark.kill
def test_splits():
    assert splits(1, 16) == splits(512, 4096) == 1  # a small sample, or enough of them
    assert splits(1, 4096) == 512
    assert splits(1, 17) == 3
    assert splits(200, 4096) == 3
