"""Ranks that fall silent: a process that is stopped, or whose machine is gone without a word, would keep the others waiting in
their next collective operation for as long as that may take, an hour."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from fastgen.training.ranks import rank, world

DONE = "done"


@contextmanager
def heartbeat(minutes: float) -> Iterator[None]:
    """Inside, this rank shows in the background that it lives, and watches the next one (the last one watches the first). Where
    that, or the store through which the ranks are connected, is silent for so many minutes, the process ends with a line that
    names it and exit code 1, upon which torchrun ends the others. A rank that draws samples, writes or compiles is not silent.

    It does nothing in one process.
    """
    if world() == 1:
        yield
        return
    store = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]  # torch's stubs lack it
    beats = _Beats(store, 60 * minutes)
    threads = [Thread(target=target, daemon=True) for target in (beats.send, beats.watch)]
    for thread in threads:
        thread.start()
    try:
        yield
        with suppress(RuntimeError):  # the store is gone where its process ended first
            beats.store.set(_key(rank()), DONE)
    finally:
        beats.over.set()


@dataclass
class _Beats:
    """What the two threads share. The watching one never asks the store, whose answer may not come."""
    store: dist.Store
    seconds: float  # of silence that are too many
    over: Event = field(default_factory=Event)
    neighbour: bytes = b""  # its last word: a count, its process and host
    heard: float = field(default_factory=time.monotonic)  # when it last had another one
    answered: float = field(default_factory=time.monotonic)  # when the store last did

    def send(self) -> None:
        """Tells the store that this rank lives, and asks it for the next one's word."""
        self.store.set_timeout(timedelta(seconds=self.seconds))
        following, count = _key((rank() + 1) % world()), 0
        with suppress(RuntimeError):  # the store is gone: the others end, or `watch` says so
            while not self.over.wait(self.seconds / 20):
                count += 1
                self.store.set(_key(rank()), f"{count} process {os.getpid()} on {socket.gethostname()}")
                word = self.store.get(following) if self.store.check([following]) else b""
                self.answered = time.monotonic()
                if word != self.neighbour or word == DONE.encode():
                    self.neighbour, self.heard = word, self.answered

    def watch(self) -> None:
        """Ends the process where nothing was heard for too long."""
        before = time.monotonic()
        while not self.over.wait(self.seconds / 20):
            now = time.monotonic()
            if now - before > self.seconds / 4:  # this process itself was stopped: what it did not hear tells nothing
                self.heard = self.answered = now
            before = now
            if now - self.answered > self.seconds:
                _end(f"the store of rank 0 at {os.environ.get('MASTER_ADDR')}", self.seconds)
            elif now - self.heard > self.seconds:
                who = self.neighbour.decode().partition(" ")[2]
                _end(f"rank {(rank() + 1) % world()}" + (f" ({who})" if who else ""), self.seconds)


def _key(rank: int) -> str:
    return f"fastgen/heartbeat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{rank}"


def _end(who: str, seconds: float, end: Callable[[int], None] = os._exit) -> None:
    """Says who is silent and ends the process, whose other thread cannot be woken from what it waits for."""
    error = ConnectionError(f"{who} has been silent for {seconds:.0f} s: it is stopped, or its machine is gone")
    get_error_handler().record_exception(error)
    print(f"fastgen: error: {error}", file=sys.stderr, flush=True)
    end(1)
