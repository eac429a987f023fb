"""What the images of a batch have in common: engines that each is loaded once, memory, and the word to stop."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from msgspec.structs import replace

from tilelab.arrays import Float32
from tilelab.engines.base import DeviceEngine, Engine
from tilelab.engines.registry import read_spec
from tilelab.errors import EngineError, Interrupted
from tilelab.machine.memory import default_memory_limit
from tilelab.run.infer import load_and_warm_up
from tilelab.run.options import Options, load
from tilelab.run.plan.plan import BASE_BYTES, Plan
from tilelab.spec import ModelSpec

_KEPT = 2  # engines that nobody uses


class SharedEngine:
    """An engine for several sweeps at once: no more calls of `run` are under way than `free` lets."""

    def __init__(self, engine: Engine, free: threading.Semaphore) -> None:
        self._engine, self._free = engine, free
        self.model_digest = engine.model_digest  # made once: it reads the files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        with self._free:
            self._engine.run(tiles, out)


class TiledEngine:
    """What another engine would be with tiles of another shape; it is loaded when it first has to run.

    So a result that is finished is known as such without.

    Args:
        like: the engine.
        spec, batch: its own.
        load: gives the engine itself.
        free: as for `SharedEngine`.
    """

    def __init__(
        self, like: Engine, spec: ModelSpec, batch: int, load: Callable[[], Engine], free: threading.Semaphore
    ) -> None:
        self._like, self._load, self._free = like, load, free
        self.spec, self.tile, self.batch = spec, spec.tile, batch
        self._lock = threading.Lock()
        self._own: Engine | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._like, name)

    @property
    def on_device(self) -> DeviceEngine | None:
        """See `Engine.on_device`."""
        return None if self._like.on_device is None else self._loaded().on_device

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        own = self._loaded()
        with self._free:
            own.run(tiles, out)

    def _loaded(self) -> Engine:
        with self._lock:
            if self._own is None:
                self._own = self._load()
                if self._own.spec != self.spec or self._own.batch != self.batch:
                    raise EngineError("the engine is not what it was taken for: give a --tile")
            return self._own

    def close(self) -> None:
        """Close it, if it was loaded."""
        if self._own is not None:
            self._own.close()


@dataclass
class _Held:
    engine: Engine
    users: int = 0


class Engines:
    """The engine of a batch, for each shape of tiles that its images have; each loaded once, a few kept.

    Args:
        model: as for `infer`.
        options: of the first image.
        note: told where kernels have to be compiled.

    Attributes:
        first: the engine for that one.

    Raises:
        TilelabError: it cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path | Engine | Callable[[Any], Any],
        options: Options,
        note: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    ) -> None:
        self._model, self._lock = model, threading.Lock()
        with contextlib.ExitStack() as opened:
            if isinstance(model, str | Path) or callable(model):
                engine = load_and_warm_up(model, options, opened, note)
            else:
                engine = model
            self._opened = opened.pop_all()
        self._free = threading.BoundedSemaphore(engine.streams)
        self.first = cast("Engine", SharedEngine(engine, self._free))
        self._key = options.model, options.batch, options.precision
        self._others: OrderedDict[Any, _Held] = OrderedDict()

    @contextlib.contextmanager
    def use(self, options: Options) -> Iterator[Engine]:
        """The engine that `options` ask for, not closed meanwhile.

        Raises:
            TilelabError: the model does not have such tiles.
        """
        asked = self._key[-1] if options.precision == self.first.precision else options.precision
        key = options.model, options.batch, asked
        if key == self._key or not isinstance(self._model, str | Path):
            yield self.first
            return
        with self._lock:
            held = self._others.get(key) or self._others.setdefault(key, _Held(self._tiled(self._model, options)))
            self._others.move_to_end(key)
            held.users += 1
        try:
            yield held.engine
        finally:
            with self._lock:
                held.users -= 1
                idle = [key for key, other in self._others.items() if not other.users]
                for key in idle[: max(0, len(idle) - _KEPT)]:
                    self._others.pop(key).engine.close()

    def _tiled(self, model: str | Path, options: Options) -> Engine:
        told = read_spec(model, options.model)
        assert told is not None  # noqa: S101 - it is only None without overrides
        spec = replace(self.first.spec, tile=told.tile, overlap=told.overlap, window=told.window)
        batch = options.batch or self.first.batch
        if options.precision not in (self._key[-1], self.first.precision):  # of a result that was begun so
            return cast("Engine", SharedEngine(load(model, options), self._free))
        return cast("Engine", TiledEngine(self.first, spec, batch, lambda: load(model, options), self._free))

    def close(self) -> None:
        """Close those that were loaded here."""
        for held in self._others.values():
            held.engine.close()
        self._others.clear()
        self._opened.close()


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
