import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.files.images import check_out, image_grid, save_grid, save_images


def images(n=5, channels=1, height=4, width=6):
    return torch.randint(1, 256, (n, channels, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_every_image_in_its_place_on_black(channels):
    x = images(5, channels)
    picture = image_grid(x, columns=2, border=3)
    assert picture.shape == (3 * (4 + 3) + 3, 2 * (6 + 3) + 3, channels)
    for i in range(5):
        top, left = 3 + i // 2 * 7, 3 + i % 2 * 9
        place = picture[top : top + 4, left : left + 6]
        np.testing.assert_array_equal(place, x[i].permute(1, 2, 0).numpy())
        place[:] = 0
    assert not picture.any()


@pytest.mark.parametrize(
    ("n", "columns", "shape"),
    [
        (1, None, (1, 1)),
        (5, None, (2, 3)),
        (9, None, (3, 3)),
        (10, None, (3, 4)),
        (3, 10, (1, 3)),  # no wider than there are images
        (20, 10, (2, 10)),
    ],
)
def test_a_grid_is_near_a_square_unless_columns_are_given(n, columns, shape):
    assert image_grid(images(n), columns, border=0).shape == (shape[0] * 4, shape[1] * 6, 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_saved_grid_is_enlarged_by_a_whole_factor(channels, mode, tmp_path):
    x = images(4, channels)
    save_grid(tmp_path / "new" / "grid.png", x, smallest=100)
    with Image.open(tmp_path / "new" / "grid.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", mode, (108, 84))  # 18 by 14, six times as large
    small = image_grid(x).squeeze()
    np.testing.assert_array_equal(read(tmp_path / "new" / "grid.png"), small.repeat(6, 0).repeat(6, 1))


def test_a_large_grid_stays_as_it_is(tmp_path):
    save_grid(tmp_path / "grid.png", images(4), smallest=5)
    np.testing.assert_array_equal(read(tmp_path / "grid.png"), image_grid(images(4))[..., 0])


@pytest.mark.parametrize("labels", [None, torch.tensor([3, 1, 4, 1, 5])])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_out_holds_the_images(channels, labels, tmp_path):
    x = images(5, channels)
    rows = x.permute(0, 2, 3, 1).numpy()

    save_images(tmp_path / "a.png", x, labels, columns=5)
    save_grid(tmp_path / "b.png", x, columns=5)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()

    save_images(tmp_path / "a.npz", x, labels)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file) == ({"images"} if labels is None else {"images", "labels"})
        assert file["images"].dtype == np.uint8
        np.testing.assert_array_equal(file["images"], rows)
        if labels is not None:
            np.testing.assert_array_equal(file["labels"], labels.numpy())

    save_images(tmp_path / "a", x, labels)
    names = [f"{i:06d}.png" if labels is None else f"{i:06d}-{labels[i]}.png" for i in range(5)]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == names
    for name, row in zip(names, rows, strict=True):
        np.testing.assert_array_equal(read(tmp_path / "a" / name), row.squeeze())


def test_a_file_that_is_there_is_replaced_and_nothing_else_is_left(tmp_path):
    (tmp_path / "a.png").write_text("old")
    save_images(tmp_path / "a.png", images(), None)
    assert read(tmp_path / "a.png").ndim == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    def crash(*_, **__):
        raise OSError("No space left on device")

    (tmp_path / "a.npz").write_text("old")
    monkeypatch.setattr(np, "savez_compressed", crash)
    with pytest.raises(OSError, match="No space left"):
        save_images(tmp_path / "a.npz", images(), None)
    assert (tmp_path / "a.npz").read_text() == "old"


@pytest.mark.parametrize("name", ["a.png", "new/a.npz", "new/folder"])
def test_a_place_that_can_be_written_is_left_as_it_was(name, tmp_path):
    check_out(tmp_path / name)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.jpg", r"out: expected a \.png, a \.npz, or a folder without a suffix, got '.*a.jpg'"),
        ("file/a.png", "out: expected a place that can be written, got .*file/a.png'"),
        ("file", "out: expected a place that can be written, got .*file'"),  # a folder, by its name
        ("folder.png", "out: expected a file, got the folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(name, message, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=message):
        save_images(tmp_path / name, images(), None)
    assert (tmp_path / "file").read_text() == "x"
