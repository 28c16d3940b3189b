"""Flips and shifts."""

import pytest
import torch

from fastgen.data.augment import augment
from fastgen_kernels.philox import noise_key


def key(n, seed=0):
    return noise_key(seed, samples=n)


def coordinates(n, h=7, w=9, dtype=torch.uint8):
    """Images whose pixels hold their row (channel 0) and column (channel 1)."""
    return torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(dtype).repeat(n, 1, 1, 1)


def moved(image, down, right, flipped):
    """The reference: pad with edge pixels, then crop."""
    pad = 3
    image = image.flip(-1) if flipped else image
    padded = torch.nn.functional.pad(image[None].float(), (pad,) * 4, mode="replicate")[0]
    h, w = image.shape[-2:]
    return padded[:, pad - down : pad - down + h, pad - right : pad - right + w].to(image.dtype)


def test_every_result_is_a_flip_and_a_shift_and_all_occur_alike():
    n, shift = 3000, 1
    moves = [(down, right, flip) for down in (-1, 0, 1) for right in (-1, 0, 1) for flip in (False, True)]
    x = coordinates(n)
    results = augment(x, key(n), flip=True, shift=shift)
    counts = [int((results == moved(x[0], *move)).flatten(1).all(1).sum()) for move in moves]
    assert sum(counts) == n
    assert all(abs(count - n / 18) < 5 * (n / 18) ** 0.5 for count in counts)


@pytest.mark.parametrize("shift", [1, 3])
def test_shift_alone_reaches_its_bounds_in_both_directions(shift):
    results = augment(coordinates(500), key(500), shift=shift)
    middle = results[:, :, 3, 4].int() - torch.tensor([3, 4], dtype=torch.int32)
    assert middle.amin(0).tolist() == [-shift, -shift]
    assert middle.amax(0).tolist() == [shift, shift]


def test_flip_alone():
    x = coordinates(400)
    flipped = (augment(x, key(400), flip=True) == x.flip(-1)).flatten(1).all(1)
    kept = (augment(x, key(400), flip=True) == x).flatten(1).all(1)
    assert (flipped ^ kept).all()
    assert 150 < flipped.sum() < 250


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_dtype_shape_and_memory_format_of_the_input_do_not_matter(dtype):
    x = coordinates(8, dtype=dtype)
    expected = augment(x, key(8), flip=True, shift=2)
    assert (expected.dtype, expected.shape) == (dtype, x.shape)
    assert augment(x.to(memory_format=torch.channels_last), key(8), flip=True, shift=2).equal(expected)


def test_a_samples_draw_does_not_depend_on_its_batch():
    x = torch.randint(256, (8, 3, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = augment(x, key(8), flip=True, shift=2)
    assert augment(x[5:], key(8)[5:], flip=True, shift=2).equal(whole[5:])
    assert not augment(x, key(8, seed=1), flip=True, shift=2).equal(whole)


def test_a_shift_larger_than_the_image_repeats_its_edge():
    assert augment(coordinates(50, 2, 2), key(50), shift=9).max() == 1


def test_nothing_to_do_returns_the_input_itself():
    x = coordinates(2)
    assert augment(x, key(2)) is x


def test_empty_batch():
    assert augment(coordinates(0), key(0), flip=True, shift=2).shape == (0, 2, 7, 9)


@pytest.mark.parametrize(
    ("x", "shift", "message"),
    [
        (torch.zeros(2, 4, 4), 1, r"x: expected images \(N, C, H, W\), got \(2, 4, 4\)"),
        (coordinates(2), -1, "shift: expected a number of pixels >= 0, got -1"),
    ],
)
def test_bad_arguments(x, shift, message):
    with pytest.raises(ValueError, match=message):
        augment(x, key(2), shift=shift)
