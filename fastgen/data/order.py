"""The order in which samples are seen: a permutation per epoch, cut into batches, resumable at any sample."""

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count

import numpy as np


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of range(n), int64 (n,), that epoch `epoch` of a run with this seed follows."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)


def index_batches(
    n: int, batch_size: int, *, seed: int = 0, start: int = 0, rank: int = 0, world: int = 1
) -> Iterator[np.ndarray]:
    """Yield int64 (batch_size,) indices into n samples, for ever.

    The epochs' permutations are laid end to end, so no sample is dropped where a batch crosses from one epoch
    into the next. Rank r of `world` takes rows r*batch_size:(r+1)*batch_size of each global batch of
    world*batch_size. `start` counts global samples already consumed: what follows depends on it alone, not on
    the batch sizes that led there.
    """
    order = lru_cache(maxsize=2)(lambda epoch: epoch_order(n, seed, epoch))
    for first in count(start + rank * batch_size, world * batch_size):
        yield _take(order, n, first, first + batch_size)


def _take(order: Callable[[int], np.ndarray], n: int, first: int, last: int) -> np.ndarray:
    epochs = range(first // n, (last - 1) // n + 1)
    return np.concatenate([order(e)[max(first - e * n, 0) : last - e * n] for e in epochs])
