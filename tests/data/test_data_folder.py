"""Folders of images: classes, splits, broken files, pictures of every kind."""

import os
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.data import NoTestSplit, open_dataset
from fastgen.data.folder import decode

CPU = torch.device("cpu")


def picture(path, mode="RGB", size=(8, 8), value=None, **save):
    """Save noise, or one colour, under a path whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    noise = np.random.default_rng(len(str(path))).integers(0, 256, shape).astype(np.uint8)
    image = Image.fromarray(noise) if value is None else Image.new(mode, size, value)
    image.save(path, **save)
    return path


def classes_folder(root, n=6):
    """Classes ant and bee; the colour of image i is (i, 0, 0)."""
    for i in range(n):
        picture(root / ("ant" if i < n // 2 else "bee") / f"{i:02}.png", value=(i, 0, 0))
    return root


def damage(path):
    path.write_bytes(path.read_bytes()[:50])


def first_column(batches, n):
    """The colours of the images of n batches, by which classes_folder marks them."""
    return [image[:, 0, 0, 0].tolist() for image, _ in islice(batches, n)]


def samples(batches, n):
    """The same in one list."""
    return list(chain.from_iterable(first_column(batches, n)))


# What is in a folder.


def test_subfolders_are_classes_and_may_nest(tmp_path):
    picture(tmp_path / "bee" / "deep" / "deeper" / "x.png", value=(2, 0, 0))
    picture(tmp_path / "ant" / "y.JPG")
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / "ant" / "._y.JPG").write_text("macOS leaves these")
    (tmp_path / ".cache").mkdir()
    data = open_dataset(tmp_path)
    assert (len(data), data.classes, data.num_classes) == (2, ["ant", "bee"], 2)
    image, label = next(data.batches(2))
    assert sorted(label.tolist()) == [0, 1]
    assert image[label == 1].flatten().tolist() == [2] * 64 + [0] * 128


def test_without_subfolders_there_are_no_labels(tmp_path):
    picture(tmp_path / "x.png")
    data = open_dataset(str(tmp_path))
    assert (data.classes, data.num_classes) == (None, None)
    assert next(data.batches(3))[1] is None


def test_train_and_test_subfolders_are_splits(tmp_path):
    for name in ("train/ant/0.png", "train/ant/1.png", "train/cow/2.png", "test/bee/3.png", "test/cow/4.png"):
        picture(tmp_path / name)
    assert [len(open_dataset(tmp_path, split=split)) for split in ("train", "test", "all")] == [3, 2, 5]
    test = open_dataset(tmp_path, split="test")
    assert test.classes == ["ant", "bee", "cow"]  # of both splits, so that labels mean the same in both
    assert sorted(next(test.batches(2))[1].tolist()) == [1, 2]


@pytest.mark.parametrize(
    ("folders", "sizes"),  # of the splits train, test and all
    [
        (("train", "val"), [1, 1, 2]),
        (("train", "valid"), [1, 1, 2]),
        (("Training", "validation"), [1, 1, 2]),
        (("train", "val", "test"), [1, 1, 3]),
        (("train", "test", "unlabelled"), [1, 1, 2]),
        (("train",), [1, None, 1]),
    ],
)
def test_splits_by_other_names(tmp_path, folders, sizes):
    for folder in folders:
        picture(tmp_path / folder / "ant" / f"{folder}.png")
    opened = {split: open_dataset(tmp_path, split=split) for split, n in zip(("train", "test", "all"), sizes, strict=True) if n}
    assert [len(data) for data in opened.values()] == [n for n in sizes if n]
    assert all(data.classes == ["ant"] for data in opened.values())
    if None in sizes:
        with pytest.raises(NoTestSplit, match="which has a subfolder train alone"):
            open_dataset(tmp_path, split="test")


def test_a_class_may_be_called_train(tmp_path):
    for name in ("plane", "train"):
        picture(tmp_path / name / "0.png")
    assert open_dataset(tmp_path).classes == ["plane", "train"]


def test_hidden_folders_pipes_and_loops_are_passed_over_and_links_followed(tmp_path):
    root = classes_folder(tmp_path / "root", n=2)
    for name in (".ipynb_checkpoints/0.png", "ant/.thumbnails/0.png", "ant/deep/.cache/deep/0.png", "__MACOSX/0.png"):
        picture(root / name)
    picture(tmp_path / "elsewhere" / "1.png")
    (root / "ant" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "ant" / "loop").symlink_to(root / "ant")
    os.mkfifo(root / "bee" / "pipe.png")
    data = open_dataset(root)
    assert (data.classes, [data.source.name(i) for i in range(len(data))]) == (
        ["ant", "bee"],
        ["ant/00.png", "ant/linked/1.png", "bee/01.png"],
    )


def test_a_class_without_images_is_named(tmp_path):
    (classes_folder(tmp_path) / "cow").mkdir()
    with pytest.raises(ValueError, match=r"source: expected images in every class folder, got none in cow of"):
        open_dataset(tmp_path)


def test_pictures_of_a_phone_are_named(tmp_path):
    picture(tmp_path / "0.jfif", format="JPEG")
    (tmp_path / "1.HEIC").write_bytes(b"????ftypheic")
    data = open_dataset(tmp_path)
    next(data.batches(2))
    assert data.broken == [("1.HEIC", "Pillow reads such files with a plugin alone, such as pillow-heif: convert them")]


def test_no_test_split_is_an_error(tmp_path):
    classes_folder(tmp_path)
    with pytest.raises(NoTestSplit, match=r"split: expected 'train' or 'all' for .*, without subfolders train and test, got"):
        open_dataset(tmp_path, split="test")
    assert len(open_dataset(tmp_path, split="all")) == 6


def test_empty_folder(tmp_path):
    with pytest.raises(ValueError, match=f"source: expected images, .*, got none in {tmp_path}"):
        open_dataset(tmp_path)


def test_image_beside_class_folders(tmp_path):
    picture(classes_folder(tmp_path) / "stray.png")
    with pytest.raises(ValueError, match=r"source: expected no image beside the class folders ant, bee in .*, got stray\.png"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_odd_size_is_named(tmp_path, workers):
    picture(classes_folder(tmp_path) / "ant" / "odd.png", size=(8, 9))
    for resident in (True, False):
        with pytest.raises(ValueError, match=r"(?s)= \(3, 8, 8\) as the first .*, got \(3, 9, 8\) of .*odd\.png; size= crops"):
            list(islice(open_dataset(tmp_path, resident=resident).batches(7, workers=workers), 1))
    image, _ = next(open_dataset(tmp_path, size=4).batches(7))
    assert image.shape == (7, 3, 4, 4)


@pytest.mark.parametrize(
    ("modes", "channels", "expected"),
    [
        (["L", "L"], None, 1),
        (["L", "1", "I;16"], None, 1),
        (["L", "RGB"], None, 3),
        (["L", "L"], 3, 3),
        (["RGB", "L"], 1, 1),
    ],
)
def test_channels(tmp_path, modes, channels, expected):
    for i, mode in enumerate(modes):
        picture(tmp_path / f"{i}.png", mode, value=0)
    data = open_dataset(tmp_path, channels=channels)
    assert data.shape == (expected, 8, 8)
    assert next(data.batches(len(modes)))[0].shape == (len(modes), expected, 8, 8)


# Order, residency, resuming.


def test_streamed_is_resident_bit_for_bit(tmp_path):
    for i in range(7):
        picture(tmp_path / "ab"[i % 2] / f"{i}.jpg", size=(20 + i, 30))
    resident, streamed = (open_dataset(tmp_path, size=16, resident=resident) for resident in (True, False))
    pairs = zip(resident.batches(4, seed=1, start=3), streamed.batches(4, seed=1, start=3, workers=2), strict=False)
    for (image, label), (streamed_image, streamed_label) in islice(pairs, 5):
        assert image.equal(streamed_image)
        assert label.equal(streamed_label)
    assert resident._is_resident(CPU)
    assert not streamed._is_resident(CPU)


def test_resuming_and_ranks_while_streaming(tmp_path):
    data = open_dataset(classes_folder(tmp_path), resident=False)
    whole = samples(data.batches(1, seed=3, workers=0), 30)
    assert sorted(whole[:6]) == list(range(6))
    assert samples(data.batches(4, seed=3, start=5, workers=2), 5) == whole[5:25]
    ranks = [first_column(data.batches(2, seed=3, start=1, workers=0, rank=r, world=2), 3) for r in range(2)]
    assert [a + b for a, b in zip(*ranks, strict=True)] == [whole[1:5], whole[5:9], whole[9:13]]


# Broken images.


@pytest.mark.parametrize(("resident", "workers"), [(True, 0), (True, 2), (False, 0), (False, 2)])
def test_broken_images_are_counted_named_and_replaced_by_the_next(tmp_path, resident, workers):
    classes_folder(tmp_path)
    whole = first_column(open_dataset(tmp_path).batches(6), 3)
    damage(tmp_path / "ant" / "02.png")
    (tmp_path / "bee" / "05.png").write_bytes(b"")
    data = open_dataset(tmp_path, resident=resident)
    batches = data.batches(6, workers=workers)
    image, label = next(batches)
    assert image[:, 0, 0, 0].tolist() == [{2: 3, 5: 0}.get(i, i) for i in whole[0]]  # 02 -> 03; 05, the last -> 00
    assert label.tolist() == [int(i >= 3) for i in image[:, 0, 0, 0].tolist()]
    assert first_column(batches, 2) == [[{2: 3, 5: 0}.get(i, i) for i in batch] for batch in whole[1:]]
    assert [name for name, _ in data.broken] == ["ant/02.png", "bee/05.png"]
    assert all("Error" in reason for _, reason in data.broken)
    assert len(data) == 6


@pytest.mark.parametrize(("resident", "workers"), [(True, 2), (False, 0), (False, 2)])
def test_too_many_broken_images(tmp_path, resident, workers):
    classes_folder(tmp_path)
    for name in ("ant/01.png", "bee/04.png"):
        damage(tmp_path / name)
    data = open_dataset(tmp_path, resident=resident, max_broken=1)
    with pytest.raises(ValueError, match=r"(?s)at most 1 broken .*, see max_broken, got 2: ant/01\.png .*; bee/04\.png"):
        list(islice(data.batches(6, workers=workers), 2))
    list(islice(open_dataset(tmp_path, resident=resident, max_broken=2).batches(6, workers=workers), 2))


def test_truncated_photograph_is_broken(tmp_path):
    path = picture(tmp_path / "b.jpg", size=(64, 64))
    picture(tmp_path / "a.jpg", size=(64, 64))
    path.write_bytes(path.read_bytes()[:-800])
    data = open_dataset(tmp_path)
    next(data.batches(2))
    ((name, reason),) = data.broken
    assert name == "b.jpg"
    assert "truncated" in reason


def test_all_broken(tmp_path):
    for name in "ab":
        damage(picture(tmp_path / f"{name}.png"))
    with pytest.raises(ValueError, match=r"source: expected readable images in .*, got 2 broken: a\.png .*; b\.png"):
        open_dataset(tmp_path)


# Pictures of every kind.


def colours(path, size=None, channels=None):
    """The colours of an image's first row, as tuples."""
    return [tuple(pixel) for pixel in decode(str(path), size, channels)[:, 0].T.tolist()]


def test_alpha_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (3, 1), (100, 0, 0, 255))
    image.putpixel((1, 0), (100, 0, 0, 128))
    image.putpixel((2, 0), (100, 0, 0, 0))
    image.save(tmp_path / "x.png")
    assert colours(tmp_path / "x.png") == [(100, 0, 0), (177, 127, 127), (255, 255, 255)]
    Image.new("LA", (1, 1), (0, 0)).save(tmp_path / "grey.png")
    assert colours(tmp_path / "grey.png") == [(255,)]


def test_palettes(tmp_path):
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "x.png")
    assert colours(tmp_path / "x.png") == [(0, 0, 0), (10, 20, 30)]
    image.save(tmp_path / "transparent.png", transparency=0)
    assert colours(tmp_path / "transparent.png") == [(255, 255, 255), (10, 20, 30)]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert [v for (v,) in colours(tmp_path / f"x.{suffix}")] == [round(v / 257) for v in values[0].tolist()]


def test_float_and_bilevel_pictures(tmp_path):
    Image.fromarray(np.array([[0, 0.5, 1]], np.float32)).save(tmp_path / "x.tif")
    assert colours(tmp_path / "x.tif") == [(0,), (128,), (255,)]
    Image.new("1", (1, 1), 1).save(tmp_path / "x.png")
    assert colours(tmp_path / "x.png", channels=3) == [(255, 255, 255)]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        (1, [[0, 80], [160, 240]]),
        (2, [[80, 0], [240, 160]]),  # mirrored
        (3, [[240, 160], [80, 0]]),  # upside down
        (6, [[160, 0], [240, 80]]),  # to be turned right
        (8, [[80, 240], [0, 160]]),  # to be turned left
    ],
)
@pytest.mark.parametrize("save", [{"format": "png"}, {"format": "jpeg"}, {"format": "tiff", "compression": "tiff_lzw"}])
def test_exif_orientation(tmp_path, orientation, expected, save):
    quarters = np.array([[0, 80], [160, 240]], np.uint8).repeat(8, 0).repeat(16, 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(quarters).save(tmp_path / "x", exif=exif, **save)
    image = decode(str(tmp_path / "x"), None, None)[0].astype(int)
    assert image.shape == ((32, 16) if orientation > 4 else (16, 32))
    assert np.abs(image[4::8, 8::16] - expected if orientation < 5 else image[8::16, 4::8] - expected).max() <= 2


@pytest.mark.parametrize("width", [40, 41])
def test_size_takes_the_centred_square(tmp_path, width):
    array = np.zeros((20, width), np.uint8)
    array[:, 10:30] = 200
    Image.fromarray(array).save(tmp_path / "x.png")
    assert set(decode(str(tmp_path / "x.png"), 10, None)[0, :, :9].flatten().tolist()) == {200}


def test_resizing_averages(tmp_path):
    array = np.indices((64, 64)).sum(0) % 2 * 255  # a checkerboard: grey, if antialiased
    Image.fromarray(array.astype(np.uint8)).save(tmp_path / "x.png")
    assert np.abs(decode(str(tmp_path / "x.png"), 8, None).astype(int) - 127).max() <= 2


def test_photographs_decoded_small_keep_their_detail(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8).repeat(4), (128, 16))  # as wide as a pixel of the result
    Image.fromarray(stripes).save(tmp_path / "x.jpg", quality=95)
    assert np.abs(decode(str(tmp_path / "x.jpg"), 32, None)[0].astype(int) - stripes[2::4, 2::4]).max() < 40


def test_reading_opens_no_file_for_long(tmp_path):
    path = picture(tmp_path / "x.png")
    decode(str(path), None, None)
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    assert path.resolve() not in {link.resolve() for link in descriptors.iterdir()}
