"""Every element of a sample lies in one block, has the noise that its logical index has, and is found in any memory format."""

from itertools import product

import pytest
import torch

from fastgen.functional import noise_key, philox_normal, reparameterize_kl
from fastgen_kernels.blocks_triton import cover
from tests.laboratory.device import DEVICE, interpreter_only
from tests.laboratory.guard_pages import assert_in_bounds
from tests.laboratory.tensors import LAYOUTS, random

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


@pytest.mark.parametrize(
    ("shape", "layout"),
    [pytest.param(*case, marks=[pytest.mark.kill] if case in KILLING else []) for case in product(SHAPES, LAYOUTS)],
)
def test_noise_and_elements_meet(shape, layout):
    key = noise_key(9, samples=shape[0], device=DEVICE)
    mu = random(shape, layout=layout)
    z, kl = reparameterize_kl(mu, torch.zeros_like(mu), key=key, reduce="none")
    torch.testing.assert_close(z, mu + philox_normal(shape, key))
    torch.testing.assert_close(kl, mu.square() / 2)


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
    ],
)
def test_cover(shape, strides, flat, quarters, samples, blocks, tiles):
    x = torch.empty(2**14).as_strided(shape, strides)
    sizes, constants, covered = cover(x)
    n, c, s = shape
    assert sizes == {"N": n, "C": c, "S": s, "E": c * s, "Q": -(-c * s // 4)}
    assert constants == {"FLAT": flat, "QUARTERS": quarters, "SAMPLES": samples, "BLOCKS": blocks}
    assert covered == tiles
    assert cover(x, x, most=2)[1]["BLOCKS"] == 2
    assert not cover(x, x[:, :, ::2])[1]["FLAT"]
