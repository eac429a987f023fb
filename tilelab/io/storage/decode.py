"""Decoding in threads, and a small store of decoded pieces that will be wanted again."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import TypeVar

from tilelab.arrays import Array
from tilelab.machine.cpu import core_count

T = TypeVar("T")

LARGE_BYTES = 64 * 2**20
"""A decoded piece beyond this is worth a warning; the pieces kept for later take no more, unless one alone does."""

MOST_THREADS = 8
_MOST_REQUESTS = 32  # to remote stores at a time: each spends its time waiting


class DecodedPieces:
    """Decoded pieces that a read used in part, kept for the next one, up to `LARGE_BYTES`.

    A single piece may be larger (a plane stored as one strip); then it alone is kept.  Pieces that were used as a whole
    are not kept: the sweep reads every chunk once.
    """

    def __init__(self) -> None:
        self._pieces: OrderedDict[Hashable, Array] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._large = threading.Lock()

    def get(self, key: Hashable, nbytes: int, decode: Callable[[], Array], *, keep: bool) -> Array:
        """The piece `key`, of `nbytes` when decoded: the kept one, or a new one from `decode`."""
        piece = self.find(key)
        if piece is None and nbytes <= LARGE_BYTES // 4:
            piece = self._decode(key, decode, keep)
        elif piece is None:
            with self._large:  # several threads want the same large piece: one decodes it, never two at a time
                piece = self.find(key)
                if piece is None:
                    piece = self._decode(key, decode, keep)
        return piece

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._pieces.clear()
            self._bytes = 0

    def find(self, key: Hashable) -> Array | None:
        """The piece `key`, if it is kept."""
        with self._lock:
            if key in self._pieces:
                self._pieces.move_to_end(key)
            return self._pieces.get(key)

    def _decode(self, key: Hashable, decode: Callable[[], Array], keep: bool) -> Array:
        piece = decode()
        if keep:
            with self._lock:
                if key not in self._pieces:
                    self._pieces[key] = piece
                    self._bytes += piece.nbytes
                while self._bytes > LARGE_BYTES and len(self._pieces) > 1:
                    self._bytes -= self._pieces.popitem(last=False)[1].nbytes
        return piece


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="tilelab-decode")


@cache
def _request_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_REQUESTS, thread_name_prefix="tilelab-request")


if hasattr(os, "register_at_fork"):  # threads do not survive a fork
    os.register_at_fork(after_in_child=_pool.cache_clear)
    os.register_at_fork(after_in_child=_request_pool.cache_clear)


def for_each(work: Callable[[T], object], items: Iterable[T], *, threads: bool = True, requests: bool = False) -> None:
    """Call `work` on every item, in no particular order, in this thread and others (decoders release the GIL).

    The first exception ends it and is raised; nothing runs any more when this returns.  Without `threads` it is a loop,
    for work that is little more than copying.  With `requests` the work waits for a remote store: many at a time.
    """
    todo = list(items)
    helpers = min(len(todo), core_count(), MOST_THREADS) - 1 if threads else 0
    if requests:
        helpers = min(len(todo), _MOST_REQUESTS) - 1
    pool = _request_pool if requests else _pool
    position = itertools.count()
    stopped = threading.Event()

    def drain() -> None:
        while not stopped.is_set() and (i := next(position)) < len(todo):
            try:
                work(todo[i])
            except BaseException:
                stopped.set()
                raise

    futures = [pool().submit(drain) for _ in range(helpers)]
    try:
        drain()
    finally:
        # Whoever has not begun has nothing left to do: do not wait in the queue behind another read.
        running = [future for future in futures if not future.cancel()]
        wait(running)
    for future in running:
        future.result()
