"""Threads joined by bounded queues: the first error stops all, and every wait is counted.

A stage is a function that loops over one `Channel` and puts into the next; it runs in a thread of its own or, for one
of them (the engine), in the caller's.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """Another stage failed; this one has nothing left to do."""


@contextlib.contextmanager
def prompt_handover() -> Iterator[None]:
    """Let threads take the interpreter from each other after 0.2 ms instead of 5.

    After each batch the engine's thread needs it back from whichever stage holds it: that wait cost 5 % of a run on two
    cores.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(2e-4)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Flow:
    """A group of stages and the condition they wait on."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.error: BaseException | None = None
        self._threads: list[threading.Thread] = []
        self._running: set[threading.Thread] = set()

    def channel(self, capacity: int) -> Channel[T]:
        """A queue of at most `capacity` items between two stages."""
        return Channel(self, capacity)

    def pool(self, items: Sequence[T]) -> Channel[T]:
        """A queue that holds `items` and has room for just these: buffers that go round."""
        channel: Channel[T] = Channel(self, len(items))
        for item in items:
            channel.put(item)
        return channel

    def start(self, name: str, stage: Callable[[], None]) -> None:
        """Run `stage` in a thread."""

        def guarded() -> None:
            try:
                stage()
            except Stopped:
                pass
            except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
                self.fail(error)
            finally:
                with self.changed:
                    self._running.discard(threading.current_thread())
                    self.changed.notify_all()

        thread = threading.Thread(target=guarded, name=f"tilelab-{name}", daemon=True)
        try:
            with self.changed:  # before it starts: a Ctrl-C in between would leave one that nobody waits for
                self._running.add(thread)
                self._threads.append(thread)
            thread.start()
        except BaseException:  # a Ctrl-C, or the system has no more threads
            if thread.ident is None:
                with self.changed:
                    self._running.discard(thread)
                    self._threads = [other for other in self._threads if other is not thread]
            raise

    def fail(self, error: BaseException) -> None:
        """Stop every stage; the first error is the one that counts."""
        with self.changed:
            if self.error is None:
                self.error = error
            self.changed.notify_all()

    def join(self) -> None:
        """Wait for all threads, then raise the first error if there was one.

        Ctrl-C stops them, too, and comes when they have; a second one comes at once.
        """
        try:
            self._wait()
        except KeyboardInterrupt as stop:
            if self.error is not None:
                raise
            self.fail(stop)
            self._wait()
        for thread in self._threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def _wait(self) -> None:
        """Until all stages have ended: a thread that Ctrl-C kept from being joined is taken for ended by Python."""
        with self.changed:
            self.changed.wait_for(lambda: not self._running)


class Channel(Generic[T]):
    """A bounded queue between two stages; `waited` is the time its reader spent with nothing to do, in seconds."""

    def __init__(self, flow: Flow, capacity: int) -> None:
        self._flow = flow
        self._items: deque[T] = deque()
        self._capacity = capacity
        self._closed = False
        self._readers = 0  # that wait now
        self.waited = 0.0
        self.blocked = 0.0

    def put(self, item: T) -> None:
        """Append, waiting while the queue is full (counted in `blocked`)."""
        with self._flow.changed:
            began = time.perf_counter()
            while len(self._items) >= self._capacity and self._flow.error is None:
                self._flow.changed.wait()
            self.blocked += time.perf_counter() - began
            self._check()
            self._items.append(item)
            self._flow.changed.notify_all()

    def close(self) -> None:
        """Say that nothing more will come."""
        with self._flow.changed:
            self._closed = True
            self._flow.changed.notify_all()

    @property
    def starved(self) -> bool:
        """Whether a reader waits now."""
        return self._readers > 0 and not self._items

    def get(self) -> T | None:
        """The next item, or None when the queue is closed and empty."""
        with self._flow.changed:
            began = time.perf_counter()
            self._readers += 1
            while not self._items and not self._closed and self._flow.error is None:
                self._flow.changed.wait()
            self._readers -= 1
            self.waited += time.perf_counter() - began
            self._check()
            if not self._items:
                return None
            item = self._items.popleft()
            self._flow.changed.notify_all()
            return item

    def take(self) -> T:
        """The next item of a queue that is never closed."""
        item = self.get()
        if item is None:
            raise RuntimeError("a pool of buffers was closed")
        return item

    def __iter__(self) -> Iterator[T]:
        while (item := self.get()) is not None:
            yield item

    def _check(self) -> None:
        if self._flow.error is not None:
            raise Stopped
