"""Holding out a share of data that come without a test split: the same samples at every call."""

import hashlib
from collections.abc import Sequence

import numpy as np

from fastgen.data.dataset import NoTestSplit

LEAST = 16  # samples that a loss is to be measured on, where a tenth of the data has as many


def rows_of_split(split: str, share: float, n: int, labels: np.ndarray | None = None) -> np.ndarray:
    """The rows of a split, "train", "test" or "all", of n, of which `share` are held out: int64 (M,) in their order. Rows that
    are added leave the draws of the others as they are. labels: (N,), of each of which the share is held out.

    Raises NoTestSplit for "test" of too few."""
    return _of_split(np.random.Generator(np.random.PCG64(0)).bit_generator.random_raw(n), split, share, labels)


def files_of_split(split: str, share: float, names: Sequence[str], labels: np.ndarray | None = None) -> np.ndarray:
    """The same for files by their names, in any order. Raises NoTestSplit as `rows_of_split` does."""
    digests = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names]
    return _of_split(np.frombuffer(b"".join(digests), dtype=">u8"), split, share, labels)


def _of_split(keys: np.ndarray, split: str, share: float, labels: np.ndarray | None) -> np.ndarray:
    """The `share` of each class with the smallest keys is held out; more of few samples, at most a tenth."""
    rows = np.arange(len(keys))
    if split == "all" or share == 0:
        return rows
    labels = np.zeros(len(keys), np.int64) if labels is None else labels
    share = max(share, min(0.1, LEAST / len(keys)))
    mask = np.zeros(len(keys), bool)
    for label in np.unique(labels):
        members = rows[labels == label]
        mask[members[keys[members].argsort()][: int(share * len(members) + 0.5)]] = True
    if split == "test" and not mask.any():
        raise NoTestSplit(f"split: expected 'train' or 'all' for {len(keys)} samples, of which none is held out, got 'test'")
    return rows[mask == (split == "test")]
