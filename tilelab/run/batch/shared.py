"""What the images of a batch have in common: engines that each is loaded once, memory, and the word to stop."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from tilelab.arrays import Float32
from tilelab.engines.base import Engine
from tilelab.errors import Interrupted
from tilelab.machine.memory import default_memory_limit
from tilelab.run.infer import load_and_warm_up
from tilelab.run.options import Options
from tilelab.run.plan.plan import BASE_BYTES, Plan


class SharedEngine:
    """An engine for several sweeps at once: no more calls of `run` are under way than it has streams."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._free = threading.BoundedSemaphore(engine.streams)
        self.model_digest = engine.model_digest  # made once: it reads the files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        with self._free:
            self._engine.run(tiles, out)


class Engines:
    """The engine of a batch, or one for each shape of tiles that its images have; loaded once, closed together."""

    def __init__(self, model: str | Path | Engine | Callable[[Any], Any]) -> None:
        self._model = model
        self._lock = threading.Lock()
        self._loaded: dict[Any, Engine] = {}

    def take(self, options: Options) -> Engine:
        """The engine that `options` ask for.

        Raises:
            TilelabError: it cannot be loaded.
        """
        key = (options.model, options.batch)
        with self._lock:
            if key not in self._loaded:
                engine = self._model
                if isinstance(engine, str | Path) or callable(engine):
                    engine = load_and_warm_up(engine, options)
                self._loaded[key] = cast("Engine", SharedEngine(engine))
            return self._loaded[key]

    def close(self) -> None:
        """Close those that were loaded here."""
        if isinstance(self._model, str | Path) or callable(self._model):
            for engine in self._loaded.values():
                engine.close()
        self._loaded.clear()


class Turns:
    """Lets as many images sweep at a time as their plans leave memory for, in the order in which they ask.

    Args:
        options: of the batch; their limit is that of all images together.
        alone: whether only one may sweep at a time, as on a GPU, whose memory and order are one.
    """

    def __init__(self, options: Options, *, alone: bool) -> None:
        self._limit = options.memory_bytes or default_memory_limit()
        self._alone = alone
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._held = 0
        self._sweeping = 0
        self.stopped = False

    @contextlib.contextmanager
    def turn(self, plan: Plan) -> Iterator[None]:
        """Held while the units of a plan are done.

        Raises:
            Interrupted: the batch is to stop.
        """
        need, ticket = max(0, plan.memory_bytes - BASE_BYTES), object()
        with self._changed:
            self._waiting.append(ticket)
            self._changed.wait_for(lambda: self.stopped or (self._waiting[0] is ticket and self._fits(need)))
            self._waiting.remove(ticket)
            self._changed.notify_all()
            self.check()
            self._held += need
            self._sweeping += 1
        try:
            yield
        finally:
            with self._changed:
                self._held -= need
                self._sweeping -= 1
                self._changed.notify_all()

    def _fits(self, need: int) -> bool:
        return not self._sweeping or (not self._alone and BASE_BYTES + self._held + need <= self._limit)

    def stop(self) -> None:
        """Let nobody begin any more."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()

    def check(self) -> None:
        """Raise `Interrupted` where the batch is to stop."""
        if self.stopped:
            raise Interrupted("stopped; the same command continues")
