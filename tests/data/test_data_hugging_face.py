"""Hugging Face's `datasets` as a source: columns found by their features, nothing downloaded."""

import socket
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from fastgen.cli import main
from fastgen.data import NoTestSplit, open_dataset
from fastgen.data.hugging_face import is_hugging_face, is_saved

datasets = pytest.importorskip("datasets", reason="needs Hugging Face's datasets: pip install datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3)).astype(np.uint8)
LABELS = [i % 4 for i in range(10)]
NAMES = ["ant", "bee", "cat", "dog"]
FEATURES = {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES), "note": datasets.Value("string")}


def made(rows=range(10), **changes):
    """A Dataset whose columns have no usual names; changes: feature by column, None to leave it out."""
    features = {name: feature for name, feature in (FEATURES | changes).items() if feature is not None}
    columns = {
        "picture": [Image.fromarray(PIXELS[i]) for i in rows],
        "photo": [Image.fromarray(PIXELS[i]) for i in rows],
        "kind": [LABELS[i] for i in rows],
        "coarse": [0 for i in rows],
        "label": [LABELS[i] for i in rows],
        "note": ["" for i in rows],
    }
    return datasets.Dataset.from_dict({name: columns[name] for name in features}, features=datasets.Features(features))


def some(data, **options):
    return list(islice(data.batches(4, start=3, **options), 5))


@pytest.fixture
def expected():
    return some(open_dataset((PIXELS, np.array(LABELS))))


def same(found, expected):
    return all(a.equal(x) and b.equal(y) for (a, b), (x, y) in zip(found, expected, strict=True))


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_columns_are_found_by_their_features(form, resident, expected):
    data = open_dataset(made().with_format(form), resident=resident)
    assert (data.shape, len(data), data.classes, data.broken) == ((3, 4, 5), 10, NAMES, [])
    assert same(some(data, workers=0), expected)
    assert open_dataset(made(kind=None)).classes is None
    assert open_dataset(made(picture=datasets.Image(mode="L"))).shape == (1, 4, 5)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_saved_folder_is_the_same(workers, expected, tmp_path):
    made().save_to_disk(tmp_path / "set")
    data = open_dataset(str(tmp_path / "set"), resident=False)
    assert data.classes == NAMES
    assert same(some(data, workers=workers), expected)
    assert open_dataset(tmp_path / "set", size=2, channels=1).shape == (1, 2, 2)


@pytest.mark.parametrize("saved", [False, True])
def test_splits_of_a_dict(saved, tmp_path):
    source = datasets.DatasetDict({"train": made(range(6)), "test": made(range(6, 8)), "more": made(range(8, 10))})
    if saved:
        source.save_to_disk(tmp_path / "set")
        source = tmp_path / "set"
    assert [len(open_dataset(source, split=split)) for split in ("train", "test", "all")] == [6, 2, 10]
    image, label = next(open_dataset(source, split="test").batches(2, workers=0))
    assert sorted(label.tolist()) == [2, 3]
    assert {row.numpy().tobytes() for row in image} == {PIXELS[i].transpose(2, 0, 1).tobytes() for i in (6, 7)}


def test_splits_that_are_not_there():
    with pytest.raises(NoTestSplit, match=r"for a datasets\.Dataset, which has no splits"):
        open_dataset(made(), split="test")
    with pytest.raises(NoTestSplit, match=r"split: expected one of a datasets\.DatasetDict, train, got 'test'"):
        open_dataset(datasets.DatasetDict({"train": made()}), split="test")
    with pytest.raises(ValueError, match=r"split: expected one of a datasets\.DatasetDict, test, got 'train'"):
        open_dataset(datasets.DatasetDict({"test": made()}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"picture": None}, r"feature Image in a datasets.Dataset, got kind \(ClassLabel\), note \(Value\); cast_column"),
        ({"photo": datasets.Image()}, r"feature Image in a datasets.Dataset, got .*photo \(Image\); select_columns"),
        ({"coarse": datasets.ClassLabel(names=["x"])}, "feature ClassLabel in a .*, got kind, coarse; remove_columns"),
        ({"kind": None, "label": datasets.Value("int64")}, "column label .* ClassLabel, got Value.*class_encode_column"),
    ],
    ids=["no image", "two images", "two labels", "label without names"],
)
def test_columns_that_do_not_say_what_they_are(changes, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(made(**changes))


def test_a_label_out_of_range_is_named():
    columns = {"picture": [Image.fromarray(p) for p in PIXELS[:2]], "kind": [0, None]}
    source = datasets.Dataset.from_dict(columns, features=datasets.Features({name: FEATURES[name] for name in columns}))
    batches = open_dataset(source, resident=False).batches(2, workers=0)
    with pytest.raises(ValueError, match=r"labels: expected one of 4 classes in a datasets\.Dataset, got None in row 1"):
        next(batches)


def test_an_empty_one():
    with pytest.raises(ValueError, match=r"source: expected at least one image, got a datasets\.Dataset of length 0"):
        open_dataset(made(range(0)))


def test_a_transform_is_kept():
    def inverted(rows):
        return {"pixel_values": [255 - np.asarray(image) for image in rows["picture"]], "label": rows["kind"]}

    source = made().with_transform(inverted)
    for data in (open_dataset(source), open_dataset(datasets.DatasetDict({"train": source}))):
        image, label = next(data.batches(10, workers=0))
        assert label.sum() == sum(LABELS)
        assert image.sum() == (255 - PIXELS).sum()


def test_broken_images_are_replaced_and_nothing_is_downloaded(monkeypatch):
    """Damaged bytes, no image, and an image that lies elsewhere."""

    def refused(*arguments):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    good = made()[0]["picture"]
    rows = [good, {"bytes": b"no image", "path": None}, None, {"bytes": None, "path": "https://example.com/image.png"}]
    source = datasets.Dataset.from_dict({"picture": rows}, features=datasets.Features({"picture": datasets.Image()}))
    data = open_dataset(source)
    image, _ = next(data.batches(4, workers=0))
    assert (image == torch.from_numpy(PIXELS[0].transpose(2, 0, 1))).all()
    assert [(name, reason.split(":")[0]) for name, reason in data.broken] == [
        ("row 1", "UnidentifiedImageError"),
        ("row 2", "ValueError"),
        ("row 3", "FileNotFoundError"),
    ]


def test_images_by_path(tmp_path):
    Image.fromarray(PIXELS[0]).save(tmp_path / "0.png")
    source = datasets.Dataset.from_dict({"picture": [str(tmp_path / "0.png")]}).cast_column("picture", datasets.Image())
    assert (next(open_dataset(source).batches(1))[0][0].numpy() == PIXELS[0].transpose(2, 0, 1)).all()


def test_a_folder_that_is_damaged(tmp_path):
    made().save_to_disk(tmp_path / "set")
    (arrow,) = (tmp_path / "set").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"source: expected a saved datasets\.Dataset, got .*set: "):
        open_dataset(tmp_path / "set")


def test_only_its_own_are_taken_for_one(tmp_path):
    made().save_to_disk(tmp_path / "set")
    assert is_saved(tmp_path / "set")
    assert not is_saved(tmp_path)
    assert is_hugging_face(made())
    assert not is_hugging_face(made().to_iterable_dataset())
    assert not is_hugging_face({"train": made()})


def test_training_on_a_saved_folder(tmp_path, capsys):
    made().save_to_disk(tmp_path / "set")
    small = "--model.channels 8 --model.multipliers 1 --model.blocks 1 --model.groups 4 --model.attention-levels --data.size 4"
    options = ["--out", str(tmp_path / "run"), "--steps", "2", "--batch-size", "4", "--sample-every", "9", *small.split()]
    main(["train", "folder32", "--data.source", str(tmp_path / "set"), *options])
    assert "samples/00000002.png" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "00000002.png").exists()


def test_without_the_package(monkeypatch, tmp_path, capsys):
    made().save_to_disk(tmp_path / "set")
    monkeypatch.setattr("fastgen.errors.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main(["train", "folder32", "--data.source", str(tmp_path / "set"), "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "which save_to_disk wrote, needs datasets: pip install datasets" in capsys.readouterr().err
