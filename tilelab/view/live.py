"""A run whose next pixels are chosen by the eye: what is looked at is inferred, and what is inferred is kept.

Blocks of the size of a chunk are computed in the order in which the page asks for them, unless it has moved on.  A tile
that several blocks need is inferred once.  When all blocks of a unit are there it is written like any unit, so that
`infer` goes on from there; units are as small as the result's shards allow.  Bytes never depend on the split.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.engines.base import Engine
from tilelab.errors import ModelError, TilelabError
from tilelab.geometry import Box, Cuts, Unit
from tilelab.io.results.level_image import LevelImage
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.result import read_result
from tilelab.io.results.sink import Finished, partial_path
from tilelab.io.storage.place import Place
from tilelab.run.execute import drop_empty, journal_of, take_up
from tilelab.run.infer import claim_run, load_and_warm_up
from tilelab.run.journal.local import Journal
from tilelab.run.map_tiles import KeptRows
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import Prepared, plan_request, prepare
from tilelab.run.sweep.start import make_sweep
from tilelab.run.target import begun_fingerprint, clear_way, is_finished, work_path
from tilelab.view.gather import Gathering, Note
from tilelab.view.pyramid import Level, NotWanted, asker_gone

BLOCK_PX = 512
_TILE_BYTES = 256 << 20
_BLOCK_BYTES = 512 << 20
_LOOK_SECONDS = 0.1

Index = tuple[int, int, int]


@contextlib.contextmanager
def open_live(
    image: str, model: str, out: str | None, options: Options, gathered: Gathering, note: Note
) -> Iterator[Live | None]:
    """Add an image and what a model makes of it where it is looked at; None when that result is finished already.

    Raises:
        TilelabError: as `infer`.
    """
    from tilelab.run.autotile import choose_tile

    target = claim_run(image, model, out, options)
    if target.suffix != ".zarr":
        raise ModelError(f"{target} cannot grow while it is looked at: name it .ome.zarr")
    work = work_path(target)
    options = choose_tile(model, image, options, note, begun_fingerprint(target, work))
    with contextlib.ExitStack() as opened:
        remembering = cast("Engine", RememberingEngine(load_and_warm_up(model, options, opened, note)))
        prepared = opened.enter_context(prepare(image, remembering, options))
        for said in (*prepared.notes, *prepared.assumptions):
            note(str(said))
        if prepared.plan.frame.sweep_axis == 0:
            raise ModelError(
                "the blocks of a 3-D model take too long to be waited for: run infer, then view its result"
            )
        chosen = {name: getattr(options, name) for name in ("level", "series", "channel", "timepoint", "axes")}
        gathered.add_image(image, chosen | {"pixel_size_nm": options.pixel_size_nm})
        if is_finished(target, work, prepared.fingerprint, restart=False):
            gathered.add_result(read_result(target))
            yield None
            return
        clear_way(target, work, prepared.fingerprint, restart=False)
        live = opened.enter_context(Live.begin(prepared, work, options, note))
        live.show(gathered)
        yield live


class RememberingEngine:
    """An engine that gives logits again which it gave lately, or is about to give, for the same pixels."""

    on_device = None

    def __init__(self, engine: Engine) -> None:
        self._engine, self._held = engine, 0
        self._known: OrderedDict[bytes, Float32] = OrderedDict()
        self._under_way: set[bytes] = set()
        self._news = threading.Condition()
        self._room = threading.Semaphore(engine.streams)  # several sweeps ask at a time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, tiles: Float32, out: Float32) -> None:
        """See `Engine.run`."""
        key = hashlib.blake2b(tiles.data, digest_size=16).digest()
        with self._news:
            self._news.wait_for(lambda: key not in self._under_way)
            known = self._known.get(key)
            if known is None:
                self._under_way.add(key)
            else:
                self._known.move_to_end(key)
        if known is not None:
            out[...] = known
            return
        try:
            with self._room:
                self._engine.run(tiles, out)
            self._keep(key, out.copy())
        finally:
            with self._news:
                self._under_way.discard(key)
                self._news.notify_all()

    def _keep(self, key: bytes, logits: Float32) -> None:
        with self._news:
            self._known[key] = logits
            self._held += logits.nbytes
            while self._held > _TILE_BYTES:
                self._held -= self._known.popitem(last=False)[1].nbytes


@dataclass
class _Asked:
    """A block that somebody waits for."""

    gone: list[Callable[[], bool]] = field(default_factory=list)
    error: BaseException | None = None
    dropped: bool = False
    begun: bool = False


class Live:
    """Blocks of an unfinished result, computed when they are asked for; a context.

    Attributes:
        computed: how many blocks were.
        units_done: units that are on disk.
        unwritten: why a unit that was looked at as a whole is not.
    """

    def __init__(self, prepared: Prepared, plan: Plan, journal: Journal, sink: OmeZarrSink) -> None:
        self.prepared, self.plan, self._journal, self._sink = prepared, plan, journal, sink
        self.computed = 0
        self.unwritten: TilelabError | OSError | None = None
        self._blocks: OrderedDict[Index, Finished] = OrderedDict()
        self._asked: OrderedDict[Index, _Asked] = OrderedDict()
        self._news = threading.Condition()
        self._closing = False
        info = sink.info
        self._stored = {
            what: LevelImage(info.arrays(sink.partial, what)[0], None)
            for what in ("labels", "probabilities")
            if info.arrays(sink.partial, what)
        }
        self._writing = threading.Lock()
        # one block has hardly a new tile: as many blocks at a time as the engine takes tiles
        self._workers = [
            threading.Thread(target=self._work, name=f"tilelab-live-{i}", daemon=True)
            for i in range(prepared.engine.streams)
        ]
        for worker in self._workers:
            worker.start()

    @classmethod
    @contextlib.contextmanager
    def begin(cls, prepared: Prepared, work: Place, options: Options, note: Note) -> Iterator[Live]:
        """Take up or begin the unfinished result at `work`, in the smallest units that there can be."""
        cuts = tuple(Cuts(n, g) for n, g in zip(prepared.plan.source.shape, prepared.plan.layout.grain, strict=True))
        prepared = replace(prepared, plan=plan_request(prepared.plan.request, options, cuts))
        journal = journal_of(prepared, work)
        try:
            plan, sink = take_up(prepared, journal, work, options, note)
            live = cls(prepared, plan, journal, sink)
            try:
                yield live
            finally:
                live.close()
        finally:
            drop_empty(journal, partial_path(work))
            journal.close()

    @property
    def units_done(self) -> int:
        """Units that are on disk, whole."""
        units = self.plan.units
        return sum(at == units[number].box.stop[1] for number, at in list(self._journal.positions.items()))

    def told_at_end(self) -> str:
        """What to say when the page is left."""
        done, units = self.units_done, len(self.plan.units)
        if self.unwritten is not None:
            return (
                f"{done} of {units} parts of {self._sink.path} are finished, others were not written: {self.unwritten}"
            )
        if not done:
            return f"no part of {self._sink.path} was looked at as a whole, so none is kept"
        return f"{done} of {units} parts of {self._sink.path} are finished: infer with the same model does the rest"

    def show(self, gathered: Gathering) -> None:
        """Add labels and probabilities."""
        info, image = self._sink.info, self.prepared.image
        shape = self.plan.source.shape
        z, y, x = (1,) * (3 - len(shape)) + tuple(shape)
        for at, index in enumerate(info.probabilities):
            level = Level((z, y, x), (1.0, 1.0, 1.0), self._reader("probabilities", at))
            gathered.add_levels([level], info, probability=index, near=image, flat=True)
        if info.labels:
            level = Level((z, y, x), (1.0, 1.0, 1.0), self._reader("labels"))
            gathered.add_levels([level], info, probability=None, near=image, flat=True)

    def _reader(self, what: str, channel: int = 0) -> Callable[[Box], Array]:
        return lambda box: self.read(what, box, channel)

    def read(self, what: str, box: Box, channel: int = 0) -> Array:
        """Pixels of the result, computed where they are not yet; uint8 ``(z, y, x)``.

        Raises:
            NotWanted: whoever asked has gone before its turn.
            TilelabError: the engine failed.
        """
        return self._join(what, box, channel, self._block)

    def look_ahead(self, side: int = BLOCK_PX) -> None:
        """Begin with the middle, so many pixels to each side of it, before anybody asks."""
        shape = self.plan.source.shape
        z, y, x = (n // 2 for n in (1,) * (3 - len(shape)) + tuple(shape))
        cells = self._cells(Box((z, max(0, y - side), max(0, x - side)), (z + 1, y + side, x + side)))
        near = sorted(cells, key=lambda cell: math.dist(cell[1:], (y / BLOCK_PX - 0.5, x / BLOCK_PX - 0.5)))
        with self._news:
            for index in near:
                if all(a < b for a, b in zip(self._box(index).start, self._box(index).stop, strict=True)):
                    self._asked.setdefault(index, _Asked()).gone.append(lambda: False)
            self._news.notify_all()

    def _join(self, what: str, box: Box, channel: int, block_of: Callable[[Index], Finished]) -> Array:
        out = np.empty(box.shape, np.uint8)
        for index in self._cells(box):
            cell = self._box(index)
            block = block_of(index)
            part: Array = getattr(block, what)
            part = part if what == "labels" else part[channel]
            start = tuple(max(a, b) for a, b in zip(box.start, cell.start, strict=True))
            stop = tuple(min(a, b) for a, b in zip(box.stop, cell.stop, strict=True))
            into = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, box.start, strict=True))
            of = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, cell.start, strict=True))
            out[into] = part[of]
        return out

    def close(self) -> None:
        """Compute no more."""
        with self._news:
            self._closing = True
            self._news.notify_all()
        for worker in self._workers:
            worker.join()

    def _cells(self, box: Box) -> Iterator[Index]:
        steps = (1, BLOCK_PX, BLOCK_PX)
        z, y, x = (range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, steps, strict=True))
        return ((k, j, i) for k in z for j in y for i in x)

    def _box(self, index: Index) -> Box:
        shape = self.plan.source.shape
        start = (index[0], index[1] * BLOCK_PX, index[2] * BLOCK_PX)
        stop = (start[0] + 1, start[1] + BLOCK_PX, start[2] + BLOCK_PX)
        return Box(start, tuple(min(a, n) for a, n in zip(stop, shape, strict=True)))

    def _block(self, index: Index) -> Finished:
        """One block, waited for."""
        gone = asker_gone.get()
        with self._news:
            while True:
                if (found := self._blocks.get(index)) is not None:
                    self._blocks.move_to_end(index)
                    return found
                if self._closing:
                    raise NotWanted
                asked = self._asked.setdefault(index, _Asked())
                if gone not in asked.gone:
                    asked.gone.append(gone)
                    self._news.notify_all()
                self._news.wait(1.0)
                if asked.error is not None:
                    raise asked.error
                if asked.dropped:
                    raise NotWanted

    def _work(self) -> None:
        """Compute what is asked for, in turn, until it is closed."""
        while (taken := self._take()) is not None:
            index, asked = taken
            try:
                block = self._on_disk(index) or self._compute(index)
                with self._news:
                    self._keep(index, block)
                    del self._asked[index]
                    self._news.notify_all()
                try:
                    with self._writing:
                        self._write_units(index)
                except (TilelabError, OSError) as error:  # who looks has the block already
                    self.unwritten = error
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                with self._news:
                    asked.error = error
                    self._asked.pop(index, None)
                    self._news.notify_all()

    def _take(self) -> tuple[Index, _Asked] | None:
        """The first block that nobody computes yet and somebody still waits for; None when it is closed."""
        with self._news:
            while not self._closing:
                for index, asked in list(self._asked.items()):
                    if asked.begun:
                        continue
                    if all(gone() for gone in asked.gone):
                        asked.dropped = True
                        del self._asked[index]
                        self._news.notify_all()
                        continue
                    asked.begun = True
                    return index, asked
                self._news.wait()
            return None

    def _compute(self, index: Index) -> Finished:
        rows = KeptRows(self.plan.frame.sweep_axis)
        make_sweep(self.prepared.job, self.prepared.engine, self._box(index)).run(rows)
        with self._news:
            self.computed += 1
        wanted = {what: rows.joined(what) for what in self._stored}
        return Finished(wanted.get("labels"), wanted.get("probabilities"), None)

    def _on_disk(self, index: Index) -> Finished | None:
        """A block of rows that are finished in the result."""
        box = self._box(index)
        units = self._units(box)
        if not all(self._position(unit) >= min(box.stop[1], unit.box.stop[1]) for unit in units):
            return None
        found: dict[str, Array] = {}
        for what, image in self._stored.items():
            lead = image.shape[:1] if "c" in image.axes else ()
            kept = [a for a in range(3) if "zyx"[a] in image.axes]
            region = Box((0,) * len(lead) + tuple(box.start[a] for a in kept), lead + tuple(box.stop[a] for a in kept))
            found[what] = image.read(region).reshape(*lead, *box.shape)
        return Finished(found.get("labels"), found.get("probabilities"), None)

    def _position(self, unit: Unit) -> int:
        """Up to where a unit is on disk."""
        return self._journal.positions.get(unit.index, unit.box.start[1])

    def _units(self, box: Box) -> list[Unit]:
        """The units that have a pixel of `box`."""
        counts = [len(cut) for cut in self.plan.units.cuts]
        ranges = [
            range(a // cut.extent, -(-b // cut.extent))
            for a, b, cut in zip(box.start, box.stop, self.plan.units.cuts, strict=True)
        ]
        return [
            self.plan.units[(k * counts[1] + j) * counts[2] + i]
            for k in ranges[0]
            for j in ranges[1]
            for i in ranges[2]
        ]

    def _keep(self, index: Index, block: Finished) -> None:
        """Keep a block as long as there is room; those that were not looked at for longest go."""
        self._blocks[index] = block
        size = sum(part.nbytes for part in block[:2] if part is not None)
        while len(self._blocks) * size > _BLOCK_BYTES:
            self._blocks.popitem(last=False)

    def _write_units(self, index: Index) -> None:
        """Write every unit of which this was the last block."""
        for unit in self._units(self._box(index)):
            if self._position(unit) == unit.box.stop[1]:
                continue
            with self._news:  # what others compute meanwhile may push them out
                held = {cell: self._blocks.get(cell) for cell in self._cells(unit.box)}
            blocks = {cell: block for cell, block in held.items() if block is not None}
            if len(blocks) < len(held):
                continue
            labels, chances = (self._gather(what, unit.box, blocks) for what in ("labels", "probabilities"))
            rows = Finished(labels, chances, None)
            writer = self._sink.writer(unit.box, unit.box.start[1], 1)
            try:
                writer.write(rows)
                self._journal.record(unit.index, writer.stored)
            finally:
                writer.close()
            self._journal.positions[unit.index] = unit.box.stop[1]

    def _gather(self, what: str, box: Box, blocks: Mapping[Index, Finished]) -> Array | None:
        if what not in self._stored:
            return None
        channels = len(self._sink.info.probabilities) if what == "probabilities" else 1
        parts = [self._join(what, box, channel, blocks.__getitem__) for channel in range(channels)]
        return parts[0] if what == "labels" else np.stack(parts)
