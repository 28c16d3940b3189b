"""open_dataset on data that are no images: which arrays they are, tables by name, their batches, and what is refused."""

from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastgen.data import NoTestSplit, open_dataset, open_held_out
from tests.helpers import tiny_runs


def numbers(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(3, 40, shape).astype(dtype)


def in_order(data):
    return data.reader.read(range(len(data)))[:2]


# Which arrays are values


@pytest.mark.parametrize(
    ("array", "kind", "expected"),
    [
        (numbers(10, 4), "auto", ("values", (4,))),
        (numbers(10, 4, dtype=np.float16), "auto", ("values", (4,))),
        (np.full((10, 4), 0.5), "auto", ("values", (4,))),  # whatever the numbers are
        (numbers(10, 4, dtype=np.int64), "values", ("values", (4,))),
        (np.zeros((10, 4), np.uint8), "values", ("values", (4,))),
        (np.zeros((10, 4), bool), "values", ("values", (4,))),
        (np.full((10, 4, 5), 0.5), "auto", ("images", (1, 4, 5))),
        (np.full((10, 4, 5), 0.5), "images", ("images", (1, 4, 5))),
        (np.full((10, 4, 5), 0.5), "values", ("values", (4, 5))),
        (numbers(10, 4, 5), "values", ("values", (4, 5))),
        (np.full((10, 3, 4, 5), 0.5), "auto", ("images", (3, 4, 5))),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_kinds(array, kind, expected, convert):
    data = open_dataset(convert(array), kind=kind)
    assert (data.kind, data.shape) == expected
    x, _ = next(data.batches(3))
    assert x.dtype == (torch.float32 if expected[0] == "values" else torch.uint8)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_values_are_as_they_were(dtype):
    array = numbers(10, 4, dtype=dtype)
    x, _ = in_order(open_dataset(array, kind="values"))
    assert (x.numpy() == array.astype(np.float32)).all()
    x[:] = 0
    assert array.any()  # which stays as it is


def test_bfloat16_and_other_layouts():
    rows = torch.from_numpy(numbers(4, 10)).bfloat16().T
    assert in_order(open_dataset(rows))[0].equal(rows.float())


# Tables by name


@pytest.mark.parametrize(("name", "held_out"), [("wine", 16), ("breast_cancer", 56)])
def test_packaged_tables_are_scikit_learns(name, held_out):
    original = getattr(pytest.importorskip("sklearn.datasets"), f"load_{name}")()
    everything = open_dataset(name, split="all")
    x, y = in_order(everything)
    assert (x.numpy() == original.data.astype(np.float32)).all()
    assert (y.numpy() == original.target).all()
    assert everything.classes == list(original.target_names)
    assert everything.features == tuple(original.feature_names)

    train, test = open_dataset(name), open_dataset(name, split="test")
    assert (len(test), len(train)) == (held_out, len(original.data) - held_out)
    parts = [{row.numpy().tobytes() for row in in_order(part)[0]} for part in (train, test)]
    assert parts[0] | parts[1] == {row.numpy().tobytes() for row in x}
    assert not parts[0] & parts[1]
    assert open_held_out(name, train).shape == train.shape


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fastgen.data.packaged.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'open_dataset\("wine"\) needs scikit-learn: pip install'):
        open_dataset("wine")


# Files and batches


def test_an_npz_with_labels_features_and_a_test_split(tmp_path):
    rows, labels, names = numbers(10, 4), np.arange(10) % 3, np.array(["a", "b", "c, d", "e"])
    np.savez(tmp_path / "t.npz", x_train=rows[:7], y_train=labels[:7], x_test=rows[7:], y_test=labels[7:], features=names)
    train = open_dataset(tmp_path / "t.npz")
    assert (train.features, train.classes) == (("a", "b", "c, d", "e"), ["0", "1", "2"])
    for data, part in ((train, slice(7)), (open_held_out(tmp_path / "t.npz", train), slice(7, None))):
        x, y = in_order(data)
        assert (x.numpy() == rows[part]).all()
        assert (y.numpy() == labels[part]).all()


@pytest.mark.parametrize("resident", [True, False, "auto"])
@pytest.mark.parametrize(("shape", "kind"), [((23, 4), "auto"), ((23, 2, 6), "values")])
def test_batches_have_the_order_of_images(shape, kind, resident, tmp_path):
    array = numbers(*shape)
    np.save(tmp_path / "x.npy", array)
    data = open_dataset(tmp_path / "x.npy", kind=kind, resident=resident)
    images = open_dataset(np.arange(23, dtype=np.uint8).reshape(-1, 1, 1))
    orders = [image[:, 0, 0, 0].long() for image, _ in islice(images.batches(5, seed=3), 8)]  # over the end of an epoch
    batches = [x for x, _ in islice(data.batches(5, seed=3, workers=0), 8)]
    assert all((x.numpy() == array[order]).all() for x, order in zip(batches, orders, strict=True))
    resumed = [x for x, _ in islice(data.batches(5, seed=3, start=15, workers=0), 5)]
    assert all(a.equal(b) for a, b in zip(resumed, batches[3:], strict=True))


def test_workers_stream_values(tmp_path):
    np.save(tmp_path / "x.npy", numbers(23, 4))
    streamed = open_dataset(tmp_path / "x.npy", resident=False).batches(5, workers=1)
    together = open_dataset(tmp_path / "x.npy").batches(5)
    assert all(next(streamed)[0].equal(next(together)[0]) for _ in range(6))


def test_labels_of_a_tuple_and_a_tensor_dataset():
    rows, labels = torch.from_numpy(numbers(10, 4)), torch.arange(10) % 4
    for data in (open_dataset((rows, labels)), open_dataset(TensorDataset(rows, labels))):
        assert (data.num_classes, data.kind) == (4, "values")
        assert in_order(data)[1].equal(labels)


# What is refused


def holding(value):
    array = numbers(3000, 4).astype(np.float64)
    array[2500, 2] = value
    return array


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (holding(np.nan), "auto", "values: expected finite numbers in fp32, got nan in column 2: leave out"),
        (holding(-np.inf), "auto", "got -inf in column 2"),
        (holding(1e39), "auto", r"got 1e\+39 in column 2"),
        (np.zeros((0, 4)), "auto", r"source: expected at least one value, got an array of shape \(0, 4\)"),
        (np.zeros((4, 0)), "auto", r"source: expected at least one value, got an array of shape \(4, 0\)"),
        (np.zeros((4, 2, 0)), "values", r"source: expected at least one value, got an array of shape \(4, 2, 0\)"),
        (np.zeros(4), "values", r"values: expected shape \(N, F\), a table, \(N, C, L\), signals, .*, got \(4,\)"),
        (np.zeros((4, 1, 2, 2, 2, 2)), "values", r"got \(4, 1, 2, 2, 2, 2\)"),
        (np.zeros((4, 5, 8, 8)), "auto", r"images: expected shape .*, got \(4, 5, 8, 8\); .* are read with kind 'values'"),
        (np.zeros((4, 2), complex), "values", "values: expected real numbers, got complex128"),
        (np.full((4, 2), "a"), "values", "values: expected real numbers, got <U1"),
        (np.zeros((4, 2), np.uint8), "auto", r"got \(4, 2\); a table \(N, F\) or signals .* are read with kind 'values'"),
        (numbers(4, 2, 8), "auto", r"images: expected .* min .*; a table \(N, F\) or signals .* are read with kind 'values'"),
        (numbers(4, 8), "images", r"images: expected shape .* got \(4, 8\)"),
    ],
)
@pytest.mark.parametrize("place", ["memory", "file"])
def test_bad_arrays(array, kind, message, place, tmp_path):
    if place == "file":
        np.savez(tmp_path / "x.npz", array)
        message = message.replace("an array", ".*x.npz")
    with pytest.raises(ValueError, match=message):
        open_dataset(array if place == "memory" else tmp_path / "x.npz", kind=kind)


def test_a_gap_in_a_streamed_file_is_named_when_it_is_read(tmp_path):
    np.save(tmp_path / "x.npy", holding(np.nan))
    data = open_dataset(tmp_path / "x.npy", resident=False)
    with pytest.raises(ValueError, match="got nan in column 2"):
        list(islice(data.batches(3000, workers=0), 1))


@pytest.mark.parametrize("names", [np.array(["a", "b"]), np.arange(4)])
def test_bad_features(names, tmp_path):
    np.savez(tmp_path / "x.npz", x=numbers(10, 4), features=names)
    with pytest.raises(ValueError, match="features: expected 4 names, one for each feature or channel, got"):
        open_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("wine", {"kind": "images"}, "kind: expected 'values' or 'auto' for 'wine', which is a table, got 'images'"),
        ("wine", {"size": 8}, r"size: expected None for wine of shape \(162, 13\), which is read as values, got 8"),
        (numbers(10, 4), {"channels": 1}, "channels: expected None for an array of shape"),
        (numbers(10, 4), {"kind": "value"}, "kind: expected 'auto', 'images' or 'values', got 'value'"),
        ("digits", {"kind": "values"}, "kind: .* 'auto' for 'digits', since values .*, wine or breast_cancer, got 'values'"),
        (DataLoader(TensorDataset(torch.zeros(4, 2))), {"kind": "values"}, "kind: expected 'images' or 'auto' for a DataLoader"),
        ([numbers(4)], {"kind": "values"}, "kind: expected 'images' or 'auto' for a list"),
    ],
)
def test_what_is_of_the_other_kind(source, options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(source, **options)


def test_a_folder_has_images(tmp_path):
    tiny_runs.picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"kind: expected 'images' or 'auto' for the folder .*, got 'values'"):
        open_dataset(tmp_path, kind="values")


def test_arrays_have_no_test_split():
    with pytest.raises(NoTestSplit):
        open_dataset(numbers(10, 4), split="test")
