"""The order of samples: seeded, resumable anywhere, the same on any number of ranks."""

from itertools import islice

import numpy as np
import pytest

from fastgen.data.indexed import epoch_order, index_batches


def take(n, batch_size, batches, **kwargs):
    return np.concatenate(list(islice(index_batches(n, batch_size, **kwargs), batches)))


def test_each_epoch_sees_each_sample_once_in_an_order_of_its_own():
    order = take(10, 5, 6, seed=3)
    epochs = order.reshape(3, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert not (epochs[0] == epochs[1]).all()
    assert not (epochs == take(10, 5, 6, seed=4).reshape(3, 10)).all()


def test_the_order_is_the_same_everywhere():
    assert epoch_order(8, seed=1, epoch=2).tolist() == [6, 0, 7, 5, 1, 4, 3, 2]


@pytest.mark.parametrize(
    ("n", "batch_size", "start"),
    [
        (10, 3, 0),
        (10, 3, 7),  # inside an epoch, off the batches' grid
        (10, 4, 10),  # at the end of an epoch
        (10, 4, 29),  # a batch that crosses into the next epoch
        (3, 8, 5),  # a batch larger than the data set, over four epochs
        (1, 2, 3),
    ],
)
def test_start_continues_an_uninterrupted_order(n, batch_size, start):
    whole = take(n, 1, 100, seed=5)
    assert (take(n, batch_size, 3, seed=5, start=start) == whole[start : start + 3 * batch_size]).all()


@pytest.mark.parametrize(("batch_size", "epochs", "start", "world"), [(3, 1, 0, 1), (4, 2, 7, 1), (8, 3, 0, 2), (64, 1, 0, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_end(batch_size, epochs, start, world, shuffle):
    options = {"seed": 2, "start": start, "shuffle": shuffle}
    whole = take(10, 1, 10 * epochs - start, **options)
    ranks = [list(index_batches(10, batch_size, epochs=epochs, rank=r, world=world, **options)) for r in range(world)]
    parts = [rank[i] for i in range(len(ranks[0])) for rank in ranks if i < len(rank)]
    assert (np.concatenate(parts) == whole).all()
    assert all(len(part) == batch_size for part in parts[:-1])
    assert shuffle or (whole == np.tile(np.arange(10), epochs)[start:]).all()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_global_batch(world):
    ranks = [list(islice(index_batches(10, 2, seed=1, start=3, rank=r, world=world), 7)) for r in range(world)]
    together = list(islice(index_batches(10, 2 * world, seed=1, start=3), 7))
    for parts, batch in zip(zip(*ranks, strict=True), together, strict=True):
        assert (np.concatenate(parts) == batch).all()
