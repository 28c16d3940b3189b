import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from fastgen.data.convert import from_picture
from fastgen.files.fitting import fit_hole, fit_image, read_hole


def white(height, width):
    return torch.full((1, height, width), 255, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("how", "size", "said", "box"),  # box: left, top, right, bottom of what is not black
    [
        ("crop", (20, 40), "cropped to the 20x20 in its middle and scaled to 8x8", (0, 0, 8, 8)),
        ("crop", (40, 20), "cropped to the 20x20 in its middle and scaled to 8x8", (0, 0, 8, 8)),
        ("crop", (3, 3), "scaled to 8x8", (0, 0, 8, 8)),
        ("crop", (1, 1000), "cropped to the 1x1 in its middle and scaled to 8x8", (0, 0, 8, 8)),
        ("resize", (20, 40), "scaled to 8x8", (0, 0, 8, 8)),
        ("pad", (20, 40), "scaled to 8x4 and padded with black to 8x8", (0, 2, 8, 6)),
        ("pad", (40, 20), "scaled to 4x8 and padded with black to 8x8", (2, 0, 6, 8)),
        ("pad", (1, 1000), "scaled to 8x1 and padded with black to 8x8", (0, 3, 8, 4)),
        ("pad", (16, 16), "scaled to 8x8", (0, 0, 8, 8)),
        ("crop", (8, 8), "", (0, 0, 8, 8)),
    ],
)
def test_an_image_of_another_size_is_fitted(how, size, said, box):
    fitted, done = fit_image(white(*size), (8, 8), how)
    assert (tuple(fitted.shape), done) == ((1, 8, 8), said)
    left, top, right, bottom = box
    assert (fitted[0, top:bottom, left:right] == 255).all()
    assert fitted.count_nonzero() == (right - left) * (bottom - top)


def test_cropping_is_what_training_does(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 45, 3), dtype=np.uint8))
    whole = torch.tensor(from_picture(picture))
    assert (fit_image(whole, (8, 8), "crop")[0].numpy() == from_picture(picture, 8)).all()


def test_a_fitted_hole_has_every_pixel_that_it_touches():
    hole = torch.zeros(1, 64, 64, dtype=torch.bool)
    hole[0, 20, 3:40] = True  # a scratch, thinner than a pixel of the result
    expected = torch.zeros(1, 8, 8, dtype=torch.bool)
    expected[0, 2, :5] = True
    assert torch.equal(fit_hole(hole, (8, 8), "crop"), expected)


BOX = (2, 0, 5, 3)  # the hole, with its last column and row


def layer(ground, paint, mode="RGBA"):
    picture = Image.new("RGBA", (8, 6), ground)
    ImageDraw.Draw(picture).rectangle(BOX, fill=paint)
    return picture.convert(mode) if mode != "P" else picture.quantize(4)


@pytest.mark.parametrize(
    ("picture", "marked", "found"),
    [
        (layer("black", "white", "L"), "auto", "white"),
        (layer("black", "white", "1"), "auto", "white"),
        (layer("black", "white"), "auto", "white"),  # opaque
        (layer("white", "black", "RGB"), "black", "black"),
        (layer((0, 0, 0, 0), "white"), "auto", "painted"),
        (layer((0, 0, 0, 0), "black"), "auto", "painted"),
        (layer((255, 255, 255, 0), (255, 0, 0, 100)), "auto", "painted"),  # a soft brush
        (layer((0, 0, 0, 0), "black", "LA"), "auto", "painted"),
        (layer((0, 0, 0, 0), "red", "P"), "auto", "painted"),
        (layer("grey", (0, 0, 0, 0)), "transparent", "transparent"),  # erased
        (layer((0, 0, 0, 0), "white"), "white", "white"),
        (layer((0, 0, 0, 0), "black"), "black", "black"),
    ],
)
def test_what_marks_the_hole(picture, marked, found, tmp_path):
    picture.save(tmp_path / "mask.png")
    hole, what = read_hole("mask", tmp_path / "mask.png", marked)
    expected = torch.zeros(1, 6, 8, dtype=torch.bool)
    expected[0, BOX[1] : BOX[3] + 1, BOX[0] : BOX[2] + 1] = True
    assert what == found
    assert torch.equal(hole, expected)
