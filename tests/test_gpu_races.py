"""Every pair of conflicting accesses of the device's sweep is ordered by streams, events and threads.

The sweep runs on arrays of the host with streams and events that only keep clocks (vectors: how far each stream and
thread is known to be).  What a kernel, a copy or a thread touches is written down with the clock it has; an access that
conflicts with an earlier one must know of it.  That waits are needed is shown by leaving some out.
"""

from __future__ import annotations

import threading
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.lib.array_utils import byte_bounds

pytest.importorskip("numba_cuda")
from sweep_parts import Network, make_job

from tilelab.errors import EngineError
from tilelab.geometry import Box
from tilelab.geometry.tiling import reflect

try:
    from tilelab.kernels import device
    from tilelab.run.sweep import device as device_sweep
    from tilelab.run.sweep import device_work, flow
except EngineError as error:
    pytest.skip(str(error), allow_module_level=True)


class Clocks:
    """Who knows of what, and who touched what.

    left_out: kinds of waits that do nothing.
    unordered: conflicting pairs that no wait orders; `pairs` counts all.
    """

    def __init__(self, left_out=()):
        self.left_out, self.pairs, self.unordered = set(left_out), 0, Counter()
        self.lock, self.turns, self.known = threading.RLock(), Counter(), {}
        self.accesses = []

    def clock(self, who):
        return self.known.setdefault(who, Counter())

    def me(self):
        return f"thread {threading.get_ident()}"

    def begin(self, who, after=()):
        """A new action of `who`, which knows what it knew and what `after` know."""
        clock = self.clock(who)
        for other in after:
            self.learn(clock, self.clock(other))
        self.turns[who] += 1
        clock[who] = self.turns[who]
        return clock

    @staticmethod
    def learn(clock, other):
        for who, turn in other.items():
            clock[who] = max(clock[who], turn)

    def touch(self, who, what, parts, *, writes):
        clock = self.clock(who)
        for low, high in parts:
            kept = []
            for access in self.accesses:
                first, last, wrote, by, turn, other = access
                if first < high and low < last and (wrote or writes):
                    self.pairs += 1
                    if by != who and turn > clock[by]:
                        self.unordered[other, what] += 1
                    if writes and low <= first and last <= high:
                        continue  # from now on this access stands for it
                kept.append(access)
            self.accesses = [*kept, (low, high, writes, who, clock[who], what)]

    def on_stream(self, stream, what, reads=(), writes=()):
        """An action that the calling thread puts on a stream."""
        with self.lock:
            self.begin(stream.name, after=[self.me()])
            for parts in reads:
                self.touch(stream.name, what, parts, writes=False)
            for parts in writes:
                self.touch(stream.name, what, parts, writes=True)

    def by_host(self, what, parts, *, writes):
        with self.lock:
            self.begin(self.me())
            self.touch(self.me(), what, parts, writes=writes)


def spans(array):
    start = array.__array_interface__["data"][0]
    return [(start, start + array.nbytes)]


def rows_of(canvas, begin, end):
    return [span for plane in canvas for row in range(begin, end) for span in spans(plane[row % canvas.shape[1]])]


def install(monkeypatch, clocks):
    """Streams, events, copies and kernels that only touch; queues that hand on what their writer knows."""
    count = iter(range(1 << 30))

    class Stream:
        def __init__(self):
            self.name = f"stream {next(count)}"

        def synchronize(self):
            with clocks.lock:
                clocks.begin(clocks.me(), after=[self.name])

    class Event:
        def __init__(self):
            self.name = f"event {next(count)}"

        def record(self, stream):
            with clocks.lock:
                clocks.begin(stream.name, after=[clocks.me()])
                clocks.known[self.name] = Counter(clocks.clock(stream.name))

        def wait(self, stream):
            with clocks.lock:
                if "wait" not in clocks.left_out:
                    clocks.learn(clocks.clock(stream.name), clocks.clock(self.name))

        def synchronize(self):
            with clocks.lock:
                if "synchronize" not in clocks.left_out:
                    clocks.learn(clocks.clock(clocks.me()), clocks.clock(self.name))

    def upload(host, target, stream):
        clocks.by_host("host fills pinned rows", spans(host), writes=True)
        clocks.on_stream(stream, "copy up", [spans(host)], [spans(target)])

    def download(source, host, stream):
        host[...] = 0
        clocks.on_stream(stream, "copy down", [spans(source)], [spans(host)])

    def copy(source, target, stream):
        clocks.on_stream(stream, "copy", [spans(source)], [spans(target)])

    def cut(band, origin, extent, placement, first, n, row, mean, gain, tiles, stream):
        rows = set((reflect(np.arange(row, row + tiles.shape[2]), extent[0]) % band.shape[1]).tolist())
        seen = [span for channel in band for r in rows for span in spans(channel[r])]
        clocks.on_stream(stream, "cut", [seen], [spans(tiles)])

    def blend(canvas, logits, placement, first, n, row, shares, origin, begin, end, stream):
        clocks.on_stream(stream, "blend", [spans(logits)], [rows_of(canvas, begin, end)])

    def finish(canvas, row, activation, labels, flag, probabilities, channels, logits, stream, sharpness):
        more = [spans(a) for a in (labels, flag, probabilities, logits) if a is not None]
        clocks.on_stream(stream, "finish", [], [rows_of(canvas, row, row + labels.shape[0]), *more])

    def clear(array, stream):
        array.fill(0)
        clocks.on_stream(stream, "clear", [], [spans(array)])

    put, get = flow.Channel.put, flow.Channel.get

    def telling_put(self, item):
        with clocks.lock:
            clocks.known[f"item {id(item)}"] = Counter(clocks.clock(clocks.me()))
        put(self, item)

    def learning_get(self):
        item = get(self)
        with clocks.lock:
            clocks.learn(clocks.clock(clocks.me()), clocks.clock(f"item {id(item)}"))
        return item

    info = device.DeviceInfo(0, "clocks", (9, 0), 1 << 40, 1 << 40, "13.0")
    for name, value in {
        "select": lambda index: info,
        "stream": Stream,
        "event": Event,
        "empty": np.empty,
        "pinned": np.empty,
        "upload": upload,
        "download": download,
        "copy": copy,
        "give_back": lambda: None,
    }.items():
        monkeypatch.setattr(device, name, value)
    monkeypatch.setattr(device_work, "kernels", SimpleNamespace(cut=cut, blend=blend, finish=finish))
    monkeypatch.setattr(device_work, "clear", clear)
    monkeypatch.setattr(flow.Channel, "put", telling_put)
    monkeypatch.setattr(flow.Channel, "get", learning_get)
    return Stream


class Engine(Network):
    name, precision, index = "clocks", "fp32", 0
    tiles_dtype = logits_dtype = np.dtype(np.float32)

    def enqueue(self, tiles, logits):
        self.clocks.on_stream(self.stream, "network", [spans(tiles)], [spans(logits)])


class Writer:
    def __init__(self, clocks):
        self.clocks = clocks

    def write(self, rows, threads=1):
        for array in rows:
            if array is not None:
                self.clocks.by_host("the sink reads", [byte_bounds(array)], writes=False)
        return 0

    def close(self):
        pass


def sweep(monkeypatch, seed, left_out=()):
    """A random sweep; returns its clocks."""
    rng, clocks = np.random.default_rng(seed), Clocks(left_out)
    stream = install(monkeypatch, clocks)
    volume = bool(rng.random() < 0.3)
    tile = tuple(int(rng.choice([4, 6, 8])) for _ in range(3 if volume else 2))
    overlap = tuple(int(rng.integers(0, t)) for t in tile)
    shape = tuple(int(rng.integers(3, 14)) for _ in range(3)) if volume else tuple(map(int, rng.integers(3, 30, 2)))
    array = np.zeros(shape, np.uint8) if rng.random() < 0.3 else rng.integers(0, 255, shape, dtype=np.uint8)
    engine = Engine(None, tile, batch=int(rng.choice([1, 2, 5])), outputs=3)
    engine.clocks, engine.stream = clocks, stream()
    chunks = tuple(int(rng.integers(1, n + 1)) for n in shape)
    asked = {"logits": bool(rng.random() < 0.5), "channels": np.arange(rng.integers(0, 3))}
    job = make_job(array, "zyx"[-len(shape) :], tile, overlap, engine=engine, chunks=chunks, **asked)
    device_sweep.DeviceSweep(job, engine, Box.whole(job.image.shape)).run(Writer(clocks))
    return clocks


def test_conflicting_accesses_are_ordered(monkeypatch):
    pairs = 0
    for seed in range(30):
        with monkeypatch.context() as patched:
            clocks = sweep(patched, seed)
        assert not clocks.unordered, (seed, clocks.unordered)
        pairs += clocks.pairs
    assert pairs > 10_000


@pytest.mark.parametrize("left_out", ["wait", "synchronize"])
def test_without_waits_they_are_not(monkeypatch, left_out):
    unordered = 0
    for seed in range(10):
        with monkeypatch.context() as patched:
            unordered += sum(sweep(patched, seed, [left_out]).unordered.values())
    assert unordered > 10
