"""Several batches at a time, for engines that compute each on a stream of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np

from tilelab.arrays import Float32
from tilelab.engines.base import Engine


def batches_ahead(streams: int) -> int:
    """Batches that may wait or run while the oldest is waited for: one for each stream, so that none is idle."""
    return streams if streams > 1 else 0


class Streams:
    """As many threads as an engine has streams; with one, calls run where they are made.

    Attributes:
        ahead: calls that may wait or run while the oldest is waited for; see `batches_ahead`.
    """

    def __init__(self, engine: Engine) -> None:
        self._pool = ThreadPoolExecutor(engine.streams, "tilelab-engine") if engine.streams > 1 else None
        self.ahead = batches_ahead(engine.streams)

    def submit(self, call: Callable[..., None], *arguments: object) -> Future[None]:
        """Begin a call, or make it."""
        if self._pool is not None:
            return self._pool.submit(call, *arguments)
        call(*arguments)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def run_each(self, call: Callable[..., None], tiles: Float32, outs: Iterable[Float32]) -> None:
        """Make a call for each of `outs`, all at once, and wait for them."""
        for run in [self.submit(call, tiles, out) for out in outs]:
            run.result()

    def __enter__(self) -> Streams:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what runs, drop what waits."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def time_batches(engine: Engine, more: Callable[[list[float]], bool]) -> list[float]:
    """Seconds per batch with all streams busy, of noise, as often as `more` says of the times so far.

    Each is the time of one batch on every stream at once, over the number of streams.
    """
    tiles = np.random.default_rng(0).standard_normal((engine.batch, engine.spec.channels, *engine.tile), np.float32)
    outs = np.empty((engine.streams, engine.batch, engine.spec.values, *engine.spec.core), np.float32)
    times: list[float] = []
    with Streams(engine) as streams:
        while more(times):
            began = time.perf_counter()
            streams.run_each(engine.run, tiles, outs)
            times.append((time.perf_counter() - began) / len(outs))
    return times
