"""torch Datasets and DataLoaders as sources."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, Subset, TensorDataset

from fastgen.data import open_dataset

PIXELS = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 5)).astype(np.uint8)
LABELS = np.arange(10) % 4


class Items(Dataset):
    """Item i is make(i)."""

    def __init__(self, make, n=10, **attributes):
        self.make, self.n = make, n
        vars(self).update(attributes)

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.make(index)


class Stream(IterableDataset):
    def __init__(self, make, n=10):
        self.make, self.n = make, n

    def __iter__(self):
        return map(self.make, range(self.n))

    def __len__(self):
        return self.n


def pil(i):
    return Image.fromarray(PIXELS[i].transpose(1, 2, 0))


def labelled(i):
    return PIXELS[i], LABELS[i]


def broken_at_three(i):
    if i == 3:
        raise OSError("truncated")
    return labelled(i)


MAKERS = {
    "PIL": lambda i: (pil(i), int(LABELS[i])),
    "uint8 array": labelled,
    "channels last": lambda i: (PIXELS[i].transpose(1, 2, 0), LABELS[i]),
    "float tensor": lambda i: (torch.from_numpy(PIXELS[i]) / 255, torch.tensor(LABELS[i])),
    "list": lambda i: [torch.from_numpy(PIXELS[i]), torch.tensor([LABELS[i]])],
    "image": lambda i: {"image": pil(i), "label": LABELS[i]},
    "pixel_values": lambda i: {"pixel_values": PIXELS[i], "label": int(LABELS[i])},
    "img": lambda i: {"img": PIXELS[i], "label": int(LABELS[i]), "path": "x"},
}


# Datasets.


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
@pytest.mark.parametrize("resident", [True, False])
def test_items_of_every_form(make, resident):
    data = open_dataset(Items(make), resident=resident)
    assert (data.shape, len(data), data.classes) == ((3, 4, 5), 10, ["0", "1", "2", "3"])
    arrays = open_dataset((PIXELS, LABELS))
    for (image, label), (expected, expected_label) in islice(
        zip(data.batches(4, start=3, workers=0), arrays.batches(4, start=3), strict=False), 5
    ):
        assert image.equal(expected)
        assert label.equal(expected_label)


@pytest.mark.parametrize("make", [pil, lambda i: PIXELS[i], lambda i: (PIXELS[i],), lambda i: {"img": PIXELS[i]}])
def test_items_without_labels(make):
    data = open_dataset(Items(make))
    assert data.classes is None
    assert next(data.batches(4, workers=0))[1] is None


def test_grey_pictures_have_one_channel_and_size_applies():
    assert open_dataset(Items(lambda i: pil(i).convert("L"))).shape == (1, 4, 5)
    assert open_dataset(Items(labelled), size=6, channels=1).shape == (1, 6, 6)
    assert open_dataset([pil(0), pil(1)]).shape == (3, 4, 5)


def test_class_names():
    assert open_dataset(Items(labelled, classes=list("abcd"))).classes == list("abcd")
    assert open_dataset(Subset(Items(labelled, classes=list("abcd")), [0, 1])).num_classes == 4
    features = {"label": type("ClassLabel", (), {"names": list("wxyz")})}  # as Hugging Face's datasets have
    assert open_dataset(Items(MAKERS["image"], features=features)).classes == list("wxyz")
    assert open_dataset(Items(pil, classes=list("abcd"))).classes is None


@pytest.mark.parametrize("resident", [True, False])
def test_streamed_by_workers_is_the_same(resident):
    data = open_dataset(Items(labelled), resident=resident)
    expected = [label.tolist() for _, label in islice(open_dataset((PIXELS, LABELS)).batches(4), 5)]
    assert [label.tolist() for _, label in islice(data.batches(4, workers=2), 5)] == expected


@pytest.mark.parametrize(("resident", "workers"), [(True, 0), (True, 2), (False, 2)])
def test_broken_items(resident, workers):
    data = open_dataset(Items(broken_at_three), resident=resident)
    image, _ = next(data.batches(10, workers=workers))
    assert sum(bool((row.numpy() == PIXELS[4]).all()) for row in image) == 2
    assert data.broken == [("item 3", "OSError: truncated")]


def test_random_transforms_are_streamed():
    data = open_dataset(Items(lambda i: torch.rand(3, 4, 4)))
    a, b = (next(data.batches(4, workers=0))[0] for _ in range(2))
    assert not a.equal(b)
    fixed = open_dataset(Items(labelled))
    assert fixed._is_resident(torch.device("cpu"))


@pytest.mark.parametrize(
    ("make", "attributes", "message"),
    [
        (lambda i: (PIXELS[i] * 2.0, 0), {}, r"float in \[0, 1\], got float64 with min"),
        (lambda i: (torch.zeros(2, 4, 5), 0), {}, r"got \(1, 2, 4, 5\)"),
        (lambda i: {"picture": PIXELS[i]}, {}, "image or pixel_values or img, got the keys picture"),
        (labelled, {"classes": ["a", "b"]}, "labels: expected one of 2 classes in a Items, got 2 in item 2"),
        (lambda i: (PIXELS[i], -1), {}, "minimum of -1"),
        (lambda i: (PIXELS[i], 0.5), {}, "labels: expected whole numbers >= 0, got float64"),
        (lambda i: (PIXELS[i], 0 if i else None), {}, "labels: expected none in Items, as for the first, got one for item 1"),
        (lambda i: PIXELS[i, :, : 4 - i // 9], {}, r"images: expected one shape, .*, got \(3, 3, 5\) of item 9"),
    ],
)
def test_bad_items(make, attributes, message):
    with pytest.raises(ValueError, match=message):
        next(open_dataset(Items(make, **attributes)).batches(10, workers=0))


def test_empty_and_split():
    with pytest.raises(ValueError, match="source: expected at least one image, got a Items of length 0"):
        open_dataset(Items(labelled, n=0))
    with pytest.raises(ValueError, match="for a Items, which has no splits"):
        open_dataset(Items(labelled), split="test")


# DataLoaders and iterables.

LOADERS = {
    "DataLoader": lambda: DataLoader(TensorDataset(torch.from_numpy(PIXELS), torch.from_numpy(LABELS)), batch_size=3),
    "DataLoader of dicts": lambda: DataLoader(Items(MAKERS["img"]), batch_size=3),
    "DataLoader of items": lambda: DataLoader(Items(labelled), batch_size=None),
    "IterableDataset": lambda: Stream(labelled),
    "DataLoader of an IterableDataset": lambda: DataLoader(Stream(labelled), batch_size=4),
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
@pytest.mark.parametrize(("batch_size", "start"), [(4, 0), (4, 7), (23, 0), (1, 12)])
def test_loaders_keep_their_order_and_are_cut_anew(make, batch_size, start):
    data = open_dataset(make())
    assert (data.shape, len(data)) == ((3, 4, 5), 10)
    index = (np.arange(3 * batch_size) + start) % 10
    batches = list(islice(data.batches(batch_size, start=start), 3))
    assert all(len(image) == len(label) == batch_size for image, label in batches)
    assert torch.cat([image for image, _ in batches]).equal(torch.from_numpy(PIXELS[index]))
    assert torch.cat([label for _, label in batches]).equal(torch.from_numpy(LABELS[index]))


def test_loader_ranks_share_the_global_batch():
    data = open_dataset(LOADERS["DataLoader"]())
    ranks = [next(data.batches(3, start=2, rank=rank, world=2))[0] for rank in range(2)]
    assert torch.cat(ranks).equal(torch.from_numpy(PIXELS[2:8]))


def test_a_seeded_loader_keeps_its_order_from_the_first_sample_on():
    def shuffled():
        dataset = TensorDataset(torch.from_numpy(PIXELS), torch.arange(10))
        return DataLoader(dataset, batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(0))

    loader = shuffled()
    expected = [label.tolist() for _ in range(2) for _, label in loader]
    assert [label.tolist() for _, label in islice(open_dataset(shuffled()).batches(5), 4)] == expected


def test_loader_classes():
    assert open_dataset(LOADERS["DataLoader"]()).num_classes == 4
    assert open_dataset(DataLoader(Items(pil), collate_fn=lambda items: np.stack(items))).num_classes is None
    with pytest.raises(ValueError, match="source: expected a list `classes` of the Stream, got labels without names"):
        _ = open_dataset(Stream(labelled)).num_classes


def test_a_generator_is_used_up():
    batches = open_dataset(map(labelled, range(10))).batches(5)
    assert torch.cat([next(batches)[0], next(batches)[0]]).equal(torch.from_numpy(PIXELS))
    with pytest.raises(ValueError, match="source: expected a map that can be read once an epoch, got one that is used up"):
        next(batches)


def test_bad_loaders():
    with pytest.raises(ValueError, match="source: expected at least one image, got an empty Stream"):
        open_dataset(Stream(labelled, n=0))
    sampler = DistributedSampler(Items(labelled), num_replicas=2, rank=0)
    with pytest.raises(ValueError, match="source: expected the Dataset of a DataLoader with a DistributedSampler"):
        open_dataset(DataLoader(Items(labelled), sampler=sampler))
    with pytest.raises(ValueError, match="labels: expected one of 2 classes, got 3"):
        next(open_dataset(DataLoader(Items(labelled, classes=["a", "b"]), batch_size=2)).batches(4))
    with pytest.raises(ValueError, match=r"images: expected one shape, \(3, 4, 5\) as the first, got \(3, 3, 5\)"):
        next(open_dataset(Stream(lambda i: PIXELS[i, :, : 4 - i // 9])).batches(10))
