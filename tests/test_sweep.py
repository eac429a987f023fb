"""The sweep stitches exactly, and its result does not depend on how the work was split."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import pytest
from helpers import wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_parts import Collector, Memory, Network, make_job, scramble, whole

from tilelab.errors import EngineError, InputError, OutputError
from tilelab.geometry import WINDOWS, Box
from tilelab.io.images.volume import Volume
from tilelab.kernels import reference
from tilelab.run.sweep.flow import Flow
from tilelab.run.sweep.host import HostSweep
from tilelab.run.sweep.shares import make_shares
from tilelab.run.sweep.strip import Strip


def random_cuts(data, size, grain, name):
    points = data.draw(st.lists(st.integers(1, max(1, size // grain)), max_size=2, unique=True), label=name)
    edges = sorted({0, size, *(p * grain for p in points if p * grain < size)})
    return list(pairwise(edges))


@settings(max_examples=120)
@given(data=st.data(), seed=st.integers(0, 2**31), window=st.sampled_from(WINDOWS), volume=st.booleans())
def test_identity_returns_the_input_whatever_the_tiling_and_the_split(data, seed, window, volume):
    rng = np.random.default_rng(seed)
    stride = data.draw(st.sampled_from([1, 2, 4]), label="stride")
    axes = 3 if volume else data.draw(st.sampled_from([2, 3]), label="axes")
    model_axes = 3 if volume else 2
    tile = tuple(stride * data.draw(st.integers(1, 6), label="tile") for _ in range(model_axes))
    overlap = tuple(data.draw(st.integers(0, t - stride), label="overlap") for t in tile)
    shape = tuple(data.draw(st.integers(1, 40 if axes == 2 else 13), label="size") for _ in range(axes))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16]), label="dtype")
    array = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    batch = data.draw(st.integers(1, 3), label="batch")
    chunks = tuple(data.draw(st.integers(1, n), label="chunk") for n in shape)
    engine = Network(lambda tiles: tiles, tile, batch=batch)
    job = make_job(array, "zyx"[-axes:], tile, overlap, stride=stride, window=window, engine=engine, chunks=chunks)

    parts = [random_cuts(data, n, data.draw(st.integers(1, 5), label="grain"), "cuts") for n in job.image.shape]
    boxes = [Box((z[0], y[0], x[0]), (z[1], y[1], x[1])) for z in parts[0] for y in parts[1] for x in parts[2]]
    result, _ = whole(job, engine, boxes)
    np.testing.assert_array_equal(np.rint(result["logits"][0]).reshape(shape), array)
    undivided, tiles = whole(job, engine)
    np.testing.assert_array_equal(result["logits"], undivided["logits"])  # to the last bit
    np.testing.assert_array_equal(result["labels"], undivided["labels"])
    assert tiles <= len(job.lattice)


@settings(max_examples=25)
@given(data=st.data(), seed=st.integers(0, 2**31), window=st.sampled_from(WINDOWS))
def test_a_run_resumed_at_any_row_ends_with_the_same_bytes(data, seed, window):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, 256, (37, 29), np.uint8)
    mix = rng.normal(size=(3, 5)).astype(np.float32)

    def function(tiles):  # depends on the place inside the tile, so blending matters
        ramp = np.linspace(-1, 1, tiles.shape[-1], dtype=np.float32)
        features = np.stack(
            [tiles[:, 0], tiles[:, 0] * ramp, tiles[:, 0] * ramp[:, None], ramp + 0 * tiles[:, 0], tiles[:, 0] ** 2], 1
        )
        return np.einsum("kf,bfyx->bkyx", mix, features)

    engine = Network(function, (12, 12), outputs=3)
    job = make_job(array, "yx", (12, 12), (5, 5), window=window, engine=engine, gain=1 / 255, channels=np.arange(3))
    undisturbed, _ = whole(job, engine)
    at = data.draw(st.integers(1, 36))
    again, _ = whole(job, engine, starts=[at])
    for name in undisturbed:
        np.testing.assert_array_equal(again[name][..., at:, :], undisturbed[name][..., at:, :])


@settings(max_examples=150)
@given(data=st.data(), seed=st.integers(0, 2**31), window=st.sampled_from(WINDOWS), volume=st.booleans())
def test_pieces_are_a_canvas_of_the_whole_unit_to_the_last_bit(data, seed, window, volume):
    rng = np.random.default_rng(seed)
    stride = data.draw(st.sampled_from([1, 2]), label="stride")
    tile = tuple(stride * data.draw(st.integers(1, 5), label="tile") for _ in range(3 if volume else 2))
    overlap = tuple(data.draw(st.integers(0, t - stride), label="overlap") for t in tile)
    shape = tuple(data.draw(st.integers(1, 12 if volume else 25), label="size") for _ in tile)
    engine = Network(None, tile, outputs=data.draw(st.integers(1, 3)))
    job = make_job(np.zeros(shape, np.uint8), "zyx"[-len(tile) :], tile, overlap, stride=stride, window=window,
                   engine=engine)  # fmt: skip
    ranges = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True), label="unit"))
              for n in job.image.shape]  # fmt: skip
    unit = HostSweep(job, engine, Box(*zip(*ranges, strict=True)))
    made = unit.buffers.made
    height = data.draw(st.integers(1, made["sums"].shape[1]), label="rows at a time")
    sums = np.full((engine.outputs, height, *made["sums"].shape[2:]), np.nan, np.float32)
    strip = Strip(unit, engine, sums, tuple(np.full(made[f"waiting {name}"].shape, np.nan, np.float32)
                                            for name in ("rows", "lines", "columns")))  # fmt: skip
    extent = [b - a for a, b in ((unit.start, unit.stop), unit.cross_range, unit.col_range)]
    canvas, got = (np.full((engine.outputs, *extent), fill, np.float32) for fill in (0, np.nan))
    shares = make_shares(unit, engine.spec)[0]
    done = np.zeros(extent, bool)
    for j, c, x in product(unit.rows, unit.cross_tiles, unit.col_tiles):
        logits = rng.normal(size=(engine.outputs, *job.frame.sweep_first(job.lattice.tile))).astype(np.float32)
        if rng.random() < 0.1:
            logits.flat[rng.integers(logits.size)] = np.inf
        told = rng.random() < 0.9  # else there is a mask
        at = unit.sweep.position(j) - unit.start
        if told:
            origin = unit.cross.position(c) - unit.cross_range[0], unit.cols.position(x) - unit.col_range[0]
            rows = max(0, -at), min(logits.shape[1], extent[0] - at)
            with np.errstate(invalid="ignore"):  # infinity of no share
                reference.blend(canvas, logits, shares.sweep(j), shares.cross[c], shares.cols[x], at, *rows, *origin)
        for piece in strip.add(j, c, x, logits if told else None):
            where = tuple(slice(a - o, b - o) for (a, b), (o, _) in zip(
                piece[:3], ((unit.start, unit.stop), unit.cross_range, unit.col_range), strict=True))  # fmt: skip
            rows, lines, columns = (b - a for a, b in piece[:3])
            assert np.isnan(got[:, *where]).all()
            assert not done[where].any()
            got[:, *where] = piece.sums[:, :rows, :lines, :columns]
            assert piece.finite == np.isfinite(got[:, *where]).all()
            done[where] = True  # each pixel is in one piece
    assert done.all()
    np.testing.assert_array_equal(got, canvas)


def test_each_pixel_is_read_once_and_each_tile_inferred_once():
    array = np.random.default_rng(0).integers(0, 256, (100, 90), np.uint8)
    engine = Network(lambda tiles: tiles, (16, 16))
    job = make_job(array, "yx", (16, 16), (4, 4), engine=engine, chunks=(10, 10))
    _, tiles = whole(job, engine)
    assert tiles == len(job.lattice) == engine.calls
    assert job.image.image.reads.min() == job.image.image.reads.max() == 1


def test_symmetries_undo_themselves_and_average():
    array = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    engine = Network(lambda tiles: tiles, (16, 16))
    job = make_job(array, "yx", (16, 16), (4, 4), engine=engine, symmetries=8)
    result, _ = whole(job, engine)
    np.testing.assert_array_equal(np.rint(result["logits"][0, 0]), array)
    assert engine.calls == 8 * len(job.lattice)
    # a network that is not symmetric: the mean over the group is
    ramp = np.linspace(0, 1, 16, dtype=np.float32)
    engine = Network(lambda tiles: 0 * tiles + ramp, (16, 16))
    job = make_job(array[:16, :16], "yx", (16, 16), (0, 0), engine=engine, symmetries=8)
    result, _ = whole(job, engine)
    np.testing.assert_allclose(result["logits"], 0.5, atol=1e-6)


def test_blank_tiles_are_inferred_once_and_change_nothing(monkeypatch):
    array = np.zeros((200, 96), np.uint8)
    array[90:120, 40:60] = np.random.default_rng(0).integers(1, 256, (30, 20))
    array[150:] = 255

    def function(tiles):
        return np.concatenate([tiles * np.linspace(0, 1, 16, dtype=np.float32), 1 - tiles], 1)

    engine = Network(function, (16, 16), outputs=2)
    job = make_job(array, "yx", (16, 16), (4, 4), engine=engine, gain=1 / 255)
    result, tiles = whole(job, engine)
    assert tiles < len(job.lattice) / 2
    monkeypatch.setattr("tilelab.run.plan.buffers.BLANKS", 0)
    plain, all_tiles = whole(job, engine)
    assert all_tiles == len(job.lattice)
    for name in plain:
        np.testing.assert_array_equal(result[name], plain[name])


def test_a_mask_keeps_what_it_covers_and_spares_the_rest():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (128, 96), np.uint8)
    keep = np.zeros((128, 96), np.uint8)
    keep[40:70, 10:30] = 1
    engine = Network(lambda t: np.concatenate([t - 0.5, 0.5 - t], 1), (16, 16), outputs=2)
    options = {"engine": engine, "gain": 1 / 255, "channels": np.array([1])}
    plain, _ = whole(make_job(array, "yx", (16, 16), (4, 4), **options), engine)
    job = make_job(array, "yx", (16, 16), (4, 4), mask=Volume(Memory(keep, "yx")), **options)
    masked, tiles = whole(job, engine)
    assert 0 < tiles < len(job.lattice) / 4
    np.testing.assert_array_equal(masked["labels"], plain["labels"] * keep)
    np.testing.assert_array_equal(masked["probabilities"], plain["probabilities"] * keep)


def test_a_grey_image_fills_all_channels_and_colour_channels_stay_apart():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (20, 20), np.uint8)
    engine = Network(lambda t: t, (8, 8), channels=3, outputs=3)
    result, _ = whole(make_job(grey, "yx", (8, 8), (2, 2), engine=engine), engine)
    for k in range(3):
        np.testing.assert_array_equal(np.rint(result["logits"][k, 0]), grey)
    colour = rng.integers(0, 256, (3, 20, 20), np.uint8)
    result, _ = whole(make_job(colour, "cyx", (8, 8), (2, 2), engine=engine), engine)
    np.testing.assert_array_equal(np.rint(result["logits"][:, 0]), colour)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_pixels_that_are_not_finite_are_named(bad):
    array = np.ones((64, 48), np.float32)
    array[50, 20] = bad
    engine = Network(lambda t: t, (16, 16))
    with pytest.raises(InputError, match=r"NaN or infinite"):
        whole(make_job(array, "yx", (16, 16), (4, 4), engine=engine), engine)


@pytest.mark.parametrize("stage", ["read", "engine", "write", "interrupt"])
def test_an_error_in_any_stage_ends_all_of_them(stage):
    import threading

    array = np.random.default_rng(0).integers(0, 256, (400, 64), np.uint8)
    calls = []

    def function(tiles):
        calls.append(1)
        if stage == "engine" and len(calls) == 20:
            raise MemoryError("engine")
        if stage == "interrupt" and len(calls) == 20:
            raise KeyboardInterrupt
        return tiles

    engine = Network(function, (16, 16))
    job = make_job(array, "yx", (16, 16), (4, 4), engine=engine, chunks=(16, 64))
    if stage == "read":
        plain = job.image.image.read

        def read(box):
            if box.start[0] > 200:
                raise InputError("broken chunk")
            return plain(box)

        job.image.image.read = read
    result = {"logits": np.zeros((1, 1, 400, 64), np.float32), "labels": np.zeros((1, 400, 64), np.uint8)}
    collector = Collector(result, Box.whole(job.image.shape), 0, 1)
    if stage == "write":
        plain_write = collector.write

        def write(rows, threads):
            if collector.at > 100:
                raise OutputError("disk full")
            return plain_write(rows, threads)

        collector.write = write
    expected = {"read": InputError, "engine": MemoryError, "write": OutputError, "interrupt": KeyboardInterrupt}[stage]
    with pytest.raises(expected):
        HostSweep(job, engine, Box.whole(job.image.shape)).run(collector)
    stages = {f"tilelab-{name}" for name in ("read", "cut", "blend", "write")}
    assert not stages & {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("count", range(4))
def test_ctrl_c_while_the_stages_begin_ends_those_that_have(count, monkeypatch):
    array = np.random.default_rng(0).integers(0, 256, (100, 64), np.uint8)
    engine = Network(scramble, (16, 16))
    job = make_job(array, "yx", (16, 16), (4, 4), engine=engine)
    result = {"logits": np.zeros((1, 1, 100, 64), np.float32), "labels": np.zeros((1, 100, 64), np.uint8)}
    collector = Collector(result, Box.whole(job.image.shape), 0, 1)
    start, begun = Flow.start, []

    def stopped(self, name, stage):
        if len(begun) == count:
            raise KeyboardInterrupt
        begun.append(name)
        start(self, name, stage)

    monkeypatch.setattr(Flow, "start", stopped)
    with pytest.raises(KeyboardInterrupt):
        HostSweep(job, engine, Box.whole(job.image.shape)).run(collector)
    stages = {f"tilelab-{name}" for name in ("read", "cut", "blend", "write")}
    assert not stages & {thread.name for thread in threading.enumerate()}


def test_ctrl_c_while_the_last_rows_are_written_comes_when_the_stages_have_stopped():
    flow, ended = Flow(), []
    rows = flow.channel(1)

    def write():
        wait_for(lambda: flow.changed._waiters, "the main thread to wait")  # before, a Ctrl-C would end the tests
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        time.sleep(0.2)
        try:
            rows.get()
        finally:
            ended.append("write")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs the tests may have another
    try:
        flow.start("write", write)
        with pytest.raises(KeyboardInterrupt):
            flow.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == ["write"]


# --- several tiles at a time


@dataclass
class Unhurried(Network):
    """Takes another time for each tile, so that they end in another order than they began.

    The first runs wait until one is under way on every stream.
    """

    pause: float = 0.01
    busy: int = 0
    most: int = 0
    begun: int = 0

    def __post_init__(self):
        self.together = threading.Barrier(self.streams)

    def run(self, tiles, out):
        with TURN:
            self.begun += 1
            first = self.begun <= self.streams
            self.busy += 1
            self.most = max(self.most, self.busy)
        if first:
            self.together.wait(120)
        time.sleep(self.pause * float(tiles.flat[0]) % (3 * self.pause))
        try:
            super().run(tiles, out)
        finally:
            with TURN:
                self.busy -= 1


TURN = threading.Lock()


@pytest.mark.parametrize("slow", ["engine", "writer"])
def test_the_writer_has_the_cores_that_an_engine_leaves(slow):
    pixels = np.zeros((200, 32), np.uint8)
    pixels[:, ::3] = np.arange(200)[:, None]
    job = make_job(pixels, "yx", (16, 16), (4, 4))
    engine = Network(lambda x: (time.sleep(0.02 * (slow == "engine")), x)[1], (16, 16), streams=3)
    result = {"logits": np.zeros((1, 1, 200, 32), np.float32), "labels": np.zeros((1, 200, 32), np.uint8)}
    collector = Collector(result, Box.whole(job.image.shape), 0, 1)
    write, seen = collector.write, []

    def write_slowly(rows, threads):
        seen.append(threads)
        time.sleep(0.05 * (slow == "writer"))
        return write(rows, threads)

    collector.write = write_slowly
    HostSweep(job, engine, Box.whole(job.image.shape)).run(collector)
    assert set(seen) <= {1, 3}
    assert seen[-1] == 3, "the engine was done"
    assert seen.count(1 if slow == "engine" else 3) > len(seen) // 2, seen


@pytest.mark.parametrize(("streams", "batch"), [(2, 1), (5, 1), (3, 2)])
def test_any_number_of_streams_gives_the_same_bytes(streams, batch):
    array = np.random.default_rng(0).integers(0, 255, (60, 70), np.uint8)
    array[:20, :40] = 7  # blank tiles among the others
    one = Network(np.sqrt, (16, 16))
    want, tiles = whole(make_job(array, "yx", (16, 16), (4, 4)), one)
    engine = Unhurried(np.sqrt, (16, 16), batch=batch, streams=streams)
    got, same = whole(make_job(array, "yx", (16, 16), (4, 4)), engine)
    assert (same, engine.most, engine.calls) == (tiles, streams, -(-tiles // batch))
    for name, part in want.items():
        assert part.tobytes() == got[name].tobytes()


def test_what_goes_wrong_on_a_stream_ends_the_sweep():
    def fails(tiles):
        if tiles.max() == 200:
            raise EngineError("out of memory")
        return tiles

    array = np.random.default_rng(0).integers(0, 199, (60, 70), np.uint8)
    array[50, 50] = 200
    engine = Unhurried(fails, (16, 16), streams=3)
    with pytest.raises(EngineError, match="out of memory"):
        whole(make_job(array, "yx", (16, 16), (4, 4)), engine)
    assert engine.busy == 0
    assert not [t for t in threading.enumerate() if t.name.startswith("tilelab-engine")]
