"""IndexedDataset: batches of a source in a seeded order, from one tensor on the device when it fits, else streamed by workers."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from fastgen.data.arrays import ArraySource
from fastgen.data.dataset import Sample, SampleDataset, check_batches
from fastgen.data.folder import FolderSource
from fastgen.data.memory import free_memory
from fastgen.data.reader import Batch, Reader, Source
from fastgen.errors import expect, is_whole

CHUNK = 64  # images that a worker decodes at a time where all are read once and kept


class IndexedDataset(SampleDataset):
    """Samples of a `Source`, read by index, in a seeded order.

    len() counts broken images too: each is replaced by the next good one, so that the order of the others depends neither on
    which are broken nor on when that is noticed. batches() raises ValueError where more than `max_broken` are. resident: whether
    all samples are kept as one tensor on the device; "auto": where they fit a quarter of its free memory.
    """

    def __init__(self, source: Source, *, max_broken: int = 100, resident: bool | Literal["auto"] = "auto"):
        self.source, self.resident = source, resident
        self.reader = Reader(source, max_broken)
        self.shape = self.reader.shape
        self.kind = "images" if self.reader.dtype == np.uint8 else "values"
        self.features, self.table = (source.features, source.table) if isinstance(source, ArraySource) else (None, None)
        self._tensors: dict[torch.device, tuple[torch.Tensor, torch.Tensor | None]] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        expect("index", index, is_whole(index), "a whole number")
        if not -len(self) <= index < len(self):
            raise IndexError(f"index: expected a number from {-len(self)} to {len(self) - 1}, got {index}")
        samples, labels, _ = self.reader.read([index % len(self)])
        return samples[0] if labels is None else (samples[0], int(labels[0]))

    @property
    def classes(self) -> list[str] | None:
        return self.source.classes

    @property
    def broken(self) -> list[tuple[str, str]]:
        return [(self.source.name(i), reason) for i, reason in sorted(self.reader.broken.items())]

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        device: str | torch.device = "cpu",
        workers: int | None = None,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = None,
        shuffle: bool = True,
    ) -> Iterator[Batch]:
        check_batches(batch_size, seed, start, workers, rank, world, epochs, shuffle)
        device = torch.device(device)
        workers = min(8, _cores()) if workers is None else workers
        order = index_batches(
            len(self), batch_size, seed=seed, start=start, rank=rank, world=world, epochs=epochs, shuffle=shuffle
        )
        if self._is_resident(device):
            return _select(*self._on_device(device, workers), order)
        return self._stream(order, workers, device, seed)

    def _is_resident(self, device: torch.device) -> bool:
        if self.resident != "auto":
            return self.resident
        if device in self._tensors:
            return True
        size = len(self) * int(np.prod(self.shape)) * self.reader.dtype.itemsize
        in_memory = isinstance(self.source, ArraySource) or size <= free_memory(torch.device("cpu")) // 4
        on_device = device.type != "cuda" or size <= free_memory(device) // 4
        return in_memory and on_device and self.source.fixed

    def _on_device(self, device: torch.device, workers: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if device not in self._tensors:
            images, labels = next(iter(self._tensors.values()), None) or self._read_all(workers)
            self._tensors[device] = (images.to(device), None if labels is None else labels.to(device))
        return self._tensors[device]

    def _read_all(self, workers: int) -> Batch:
        if isinstance(self.source, ArraySource):
            return self.source.samples, self.source.labels
        images = torch.empty(len(self), *self.shape, dtype=torch.uint8 if self.kind == "images" else torch.float32)
        labels: list[Any] = []
        chunks = [list(range(i, min(i + CHUNK, len(self)))) for i in range(0, len(self), CHUNK)]
        for chunk, (image, label) in zip(chunks, self._read_in_order(chunks, workers), strict=True):
            images[chunk[0] : chunk[-1] + 1] = image
            labels.append(label)
        return images, None if labels[0] is None else torch.cat(labels)

    def _read_in_order(self, chunks: list[list[int]], workers: int) -> Iterator[Batch]:
        if not isinstance(self.source, FolderSource) or workers == 0:  # others' datasets may not be thread-safe
            yield from self._stream(iter(chunks), workers, torch.device("cpu"), seed=0)
            return
        with ThreadPoolExecutor(workers) as pool:
            try:
                for image, label, _ in pool.map(self.reader.read, chunks):
                    yield image, label
            finally:
                pool.shutdown(cancel_futures=True)

    def _stream(
        self, order: Iterator[np.ndarray] | Iterator[list[int]], workers: int, device: torch.device, seed: int
    ) -> Iterator[Batch]:
        closing = multiprocessing.Event() if workers else None
        loader: DataLoader = DataLoader(
            self.reader,
            batch_sampler=order,  # type: ignore[arg-type]
            num_workers=workers,
            collate_fn=_as_read,
            pin_memory=device.type == "cuda",
            worker_init_fn=partial(_outlive_signals, closing=closing),
            generator=torch.Generator().manual_seed(seed),  # leaves torch's own, which others draw from, alone
        )
        with ExitStack() as ending:
            if closing is not None:  # at the exit, too, which waits for them: a traceback may hold this generator until then
                atexit.register(closing.set)
                ending.callback(atexit.unregister, closing.set)
                ending.callback(closing.set)
            for read in loader:
                if isinstance(read, ValueError):
                    raise read
                image, label, broken = read
                self.reader.note(broken)
                image = image.to(device, non_blocking=True)
                yield image, None if label is None else label.to(device, non_blocking=True)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The order of n samples in an epoch, numbered from 0: a permutation of range(n), int64 (n,)."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)


def index_batches(
    n: int,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    epochs: int | None = None,
    shuffle: bool = True,
) -> Iterator[np.ndarray]:
    """The indices of batch after batch, each int64 (batch_size,), in [0, n): without end, or, for a number of epochs, until every
    index came as often, the last batch smaller where they do not fill it.

    The permutations of the epochs follow each other without a gap: no sample is left out where a batch reaches from one epoch
    into the next. Of each global batch of world·batch_size, rank r takes the indices from r·batch_size on. start: samples already
    consumed, over all ranks; what follows depends on it alone, not on the batch sizes so far.
    """
    order = lru_cache(maxsize=2)(lambda epoch: epoch_order(n, seed, epoch) if shuffle else np.arange(n))
    for begin in count(start + rank * batch_size, world * batch_size):
        end = begin + batch_size if epochs is None else min(begin + batch_size, epochs * n)
        if begin >= end:
            return
        touched = range(begin // n, (end - 1) // n + 1)
        yield np.concatenate([order(e)[max(begin - e * n, 0) : end - e * n] for e in touched])


def _select(images: torch.Tensor, labels: torch.Tensor | None, order: Iterator[np.ndarray]) -> Iterator[Batch]:
    for indices in order:
        index = torch.from_numpy(indices)
        if images.is_cuda:  # a copy from pageable memory would wait for the GPU
            index = index.pin_memory()
        index = index.to(images.device, non_blocking=True)
        yield images.index_select(0, index), None if labels is None else labels.index_select(0, index)


def _cores() -> int:
    """How many this process may use; a container may own fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _outlive_signals(worker: int, closing: Any) -> None:
    """A terminal sends SIGINT, and torchrun SIGTERM, to readers, too; the process that they read for finishes its step, saves and
    then ends them: SIGTERM does so once `closing`, an Event, is set."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0) if closing.is_set() else None)


def _as_read(batch: Any) -> Any:
    return batch
