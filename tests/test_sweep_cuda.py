"""The sweep on the device gives the bytes of the sweep on the CPU; without a GPU, in Numba's simulator."""

from __future__ import annotations

import os
from itertools import pairwise

import numpy as np
import pytest
from helpers import run_in_simulator
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("numba_cuda")
from sweep_parts import Collector, DeviceNetwork, Memory, Network, make_job, scramble, sweep_device, whole

from tilelab.engines.base import GpuRoom
from tilelab.errors import EngineError, InputError, OutputError, PlanError, TilelabError
from tilelab.geometry import WINDOWS, AxisTiling, Box, Frame, Lattice
from tilelab.io.images.volume import Volume
from tilelab.run.plan.buffers import GROUPS, seen_range, sizes
from tilelab.run.plan.device_buffers import band_rows, check_device, device_buffers
from tilelab.run.plan.request import ImageFacts, Request, Written

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
EXAMPLES = 4 if SIMULATED else 60


def test_simulator():
    run_in_simulator(__file__, "device_gives or device_stops")


@settings(max_examples=EXAMPLES)
@given(data=st.data(), seed=st.integers(0, 2**31), window=st.sampled_from(WINDOWS), volume=st.booleans())
def test_device_gives_the_bytes_of_the_cpu(device, data, seed, window, volume):
    rng = np.random.default_rng(seed)
    stride = data.draw(st.sampled_from([1, 2, 4]), label="stride")
    axes = 3 if volume else data.draw(st.sampled_from([2, 3]), label="axes")
    tile = tuple(stride * data.draw(st.integers(1, 4), label="tile") for _ in range(3 if volume else 2))
    overlap = tuple(data.draw(st.integers(0, t - stride), label="overlap") for t in tile)
    shape = tuple(data.draw(st.integers(1, 22 if axes == 2 else 6), label="size") for _ in range(axes))
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.float32]), label="dtype")
    array = (rng.random(shape) * 250).astype(dtype)
    if data.draw(st.booleans(), label="blanks"):  # large areas of few values
        array = np.where(rng.random() < 0.5, array, 0) // 100 * 100
        array[tuple(slice(n // 3, None) for n in shape)] = 7
    batch = data.draw(st.integers(1, 4), label="batch")
    chunks = tuple(data.draw(st.integers(1, n), label="chunk") for n in shape)
    masked = data.draw(st.booleans(), label="mask")
    asked = {"logits": data.draw(st.booleans()), "channels": np.arange(data.draw(st.integers(0, 3)))}
    if masked:
        asked["mask"] = Volume(Memory((rng.random(shape) > 0.9).astype(np.uint8), "zyx"[-axes:]))
    arguments = {"batch": batch, "outputs": 3}
    engine = DeviceNetwork(scramble, tile, **arguments).on(device)
    host = Network(scramble, tile, **arguments)
    named = "zyx"[-axes:]
    job = make_job(
        array, named, tile, overlap, stride=stride, window=window, engine=engine, gain=0.02, chunks=chunks, **asked
    )
    whole_shape = job.image.shape
    cut = data.draw(st.integers(0, whole_shape[2] - 1), label="lane")
    units = [Box.whole(whole_shape)]
    if cut:
        units = [Box((0, 0, 0), (*whole_shape[:2], cut)), Box((0, 0, cut), whole_shape)]
    tiles = []
    got, stalls = sweep_device(job, engine, units, progress=tiles.append)
    assert (job.image.image.reads <= len(units)).all()
    expected, inferred = whole(job, host, units)
    for name in expected:
        if name == "probabilities":
            assert np.abs(got[name].astype(int) - expected[name]).max(initial=0) <= 1
        else:
            np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert sum(tiles) == sum(s.tiles + s.blank for s in stalls)
    assert sum(s.tiles for s in stalls) == inferred, "tiles that are blank or unwanted are the same ones as on the CPU"


@pytest.mark.parametrize("symmetries", [1, 8])
def test_device_gives_blank_tiles_to_the_engine_once_for_each_value(device, symmetries):
    rng = np.random.default_rng(6)
    array = np.full((40, 44), 9, np.uint8)
    array[16:24, :20], array[32:] = 200, 50
    array[:12, 30:] = rng.integers(0, 255, (12, 14))
    engine = DeviceNetwork(scramble, (8, 8), batch=3, outputs=3).on(device)
    host = Network(scramble, (8, 8), batch=3, outputs=3)
    job = make_job(array, "yx", (8, 8), (2, 2), engine=engine, gain=0.02, symmetries=symmetries)
    got, (stalls,) = sweep_device(job, engine)
    expected, inferred = whole(job, host)
    assert stalls.tiles == inferred < len(job.lattice) // 2
    assert stalls.blank == len(job.lattice) - inferred
    np.testing.assert_array_equal(got["logits"], expected["logits"])
    np.testing.assert_array_equal(got["labels"], expected["labels"])


@pytest.mark.parametrize("volume", [False, True])
def test_device_gives_the_symmetric_average_of_the_cpu(device, volume):
    rng = np.random.default_rng(3)
    tile = (4, 6, 6) if volume else (6, 6)
    array = rng.integers(0, 255, (5, 9, 13) if volume else (17, 13), dtype=np.uint8)
    engine = DeviceNetwork(scramble, tile, batch=2, outputs=3).on(device)
    host = Network(scramble, tile, batch=2, outputs=3)
    named = "zyx" if volume else "yx"
    job = make_job(array, named, tile, (2,) * len(tile), engine=engine, gain=0.02, symmetries=8)
    got, _ = sweep_device(job, engine)
    expected, _ = whole(job, host)
    np.testing.assert_array_equal(got["labels"], expected["labels"])
    np.testing.assert_array_equal(got["logits"], expected["logits"])
    assert engine.calls == host.calls


def test_device_gives_the_same_when_continued(device):
    rng = np.random.default_rng(4)
    array = rng.integers(0, 255, (40, 11), dtype=np.uint8)
    engine = DeviceNetwork(scramble, (8, 8), batch=3, outputs=3).on(device)
    job = make_job(array, "yx", (8, 8), (3, 3), engine=engine, gain=0.02)
    box = Box((0, 0, 0), (1, 40, 11))
    got, _ = sweep_device(job, engine, [box], starts=[17])
    expected, _ = sweep_device(job, engine, [box])
    np.testing.assert_array_equal(got["logits"][:, :, 17:], expected["logits"][:, :, 17:])
    assert np.isnan(got["logits"][:, :, :17]).all()


def test_device_gives_half_precision_tiles_and_logits(device):
    rng = np.random.default_rng(5)
    array = rng.integers(0, 255, (20, 20), dtype=np.uint8)
    engine = DeviceNetwork(lambda tiles: tiles, (8, 8), batch=2).on(device)
    engine.tiles_dtype = engine.logits_dtype = np.dtype(np.float16)
    job = make_job(array, "yx", (8, 8), (4, 4), engine=engine)
    got, _ = sweep_device(job, engine)
    # whole numbers below 2048 are exact in float16, and shares add up to one
    np.testing.assert_allclose(got["logits"][0, 0], array, atol=1e-4)
    assert {seen.dtype for seen in engine.seen} == {np.dtype(np.float16)}


def test_device_stops_at_logits_that_are_not_finite(device):
    def network(tiles):
        out = tiles.copy()
        out[:, 0, 3, 3] = np.where(tiles[:, 0, 3, 3] == 7, np.nan, out[:, 0, 3, 3])
        return out

    array = np.zeros((32, 8), np.uint8)
    array[19, 3] = 7
    engine = DeviceNetwork(network, (8, 8)).on(device)
    job = make_job(array, "yx", (8, 8), (0, 0), engine=engine)
    with pytest.raises(EngineError, match="NaN or infinite logits in 0:1,16:24,0:8"):
        sweep_device(job, engine)


@pytest.mark.parametrize("where", ["read", "engine", "write"])
def test_device_stops_all_stages_at_the_first_error(device, where, monkeypatch):
    from tilelab.run.sweep.device import DeviceSweep

    def fail(*_, **__):
        raise {"read": InputError, "engine": EngineError, "write": OutputError}[where]("as planned")

    engine = DeviceNetwork(lambda tiles: tiles, (8, 8)).on(device)
    job = make_job(np.zeros((64, 8), np.uint8), "yx", (8, 8), (0, 0), engine=engine)
    collector = Collector({"labels": np.zeros((1, 64, 8), np.uint8)}, Box.whole((1, 64, 8)), 0, 1)
    target = {"read": (job.image, "read"), "engine": (engine, "function"), "write": (collector, "write")}[where]
    monkeypatch.setattr(*target, fail)
    with pytest.raises(TilelabError, match="as planned"):
        DeviceSweep(job, engine, Box.whole((1, 64, 8))).run(collector)


@settings(max_examples=200)
@given(size=st.integers(1, 200), tile=st.integers(1, 12), stride=st.integers(1, 4), data=st.data())
def test_ring_of_raw_rows_holds_two_neighbouring_tile_rows(size, tile, stride, data):
    axis = AxisTiling(size, tile * stride, data.draw(st.integers(0, (tile - 1) * stride)), stride)
    first = data.draw(st.integers(0, len(axis) - 1))
    tiles = range(first, data.draw(st.integers(first, len(axis) - 1)) + 1)
    rows = band_rows(axis, tiles)
    ranges = [seen_range(axis, range(j, j + 1)) for j in tiles]
    assert all(b[0] >= a[0] for a, b in pairwise(ranges)), "rows are only ever left behind"
    assert rows >= max(high - low for low, high in ranges)
    assert all(b[1] - a[0] <= rows for a, b in pairwise(ranges))
    assert rows <= axis.tile + axis.step or rows <= ranges[-1][1] - ranges[0][0]


def make_request(**types):
    shape = (1, 9959, 9958)
    lattice = Lattice.fit(shape, (1, 512, 512), (0, 128, 128), stride=(1, 32, 32))
    image = ImageFacts(shape, (1, 512, 512), 1, np.dtype(np.uint8))
    room = GpuRoom(
        **{"tiles_dtype": np.dtype(np.float32), "logits_dtype": np.dtype(np.float32), "free_bytes": 0} | types
    )
    spec = Network(None, (512, 512), outputs=2).spec
    return Request(image, spec, Written(True), lattice, Frame(1), batch=16, gpu=room)


def test_planned_memory_counts_every_buffer():
    whole_image = Box.whole((1, 9959, 9958))
    buffers = device_buffers(make_request(), whole_image)
    found = sizes(buffers.device)
    assert found["canvas"] == 2 * 512 * 9958 * 4
    assert found["raw rows"] == (512 + 384) * 9958
    assert found["tiles"] == 16 * 512 * 512 * 4
    assert found["logits"] == 2 * found["tiles"]
    assert found["labels"] == GROUPS * 384 * 9958
    assert buffers.device_bytes == sum(found.values())
    half = device_buffers(make_request(logits_dtype=np.dtype(np.float16)), whole_image)
    assert sizes(half.device)["logits"] * 2 == found["logits"]
    narrow = device_buffers(make_request(), Box((0, 0, 0), (1, 9959, 2048)))
    assert narrow.device_bytes < buffers.device_bytes


def test_too_little_device_memory_is_refused_with_its_parts():
    request = make_request()
    buffers = device_buffers(request, Box.whole((1, 9959, 9958)))
    check_device(request, buffers, 1 << 40)
    with pytest.raises(PlanError, match=r"needs .* MiB of GPU memory \(canvas .*100.0 MiB are free: raise --lanes"):
        check_device(request, buffers, 100 << 20)
