"""Machines of 1 to 64 cores: what is counted by cores is never none and never more, and takes the memory planned."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
from memory_of_runs import idle
from sweep_parts import Network, make_job, scramble, whole
from tiny_models import make_spec, save_conv

import tilelab
from tilelab.engines.base import GpuRoom
from tilelab.engines.loading import affordable_streams
from tilelab.engines.registry import read_spec
from tilelab.engines.streams import time_batches
from tilelab.errors import PlanError
from tilelab.geometry import Box
from tilelab.machine import cpu
from tilelab.run.options import Options
from tilelab.run.plan.buffers import further_stream_bytes
from tilelab.run.plan.choice import Machine, choose_tiling
from tilelab.run.plan.device_buffers import largest_device_buffers
from tilelab.run.plan.estimate import overhead_seconds
from tilelab.run.plan.plan import make_plan
from tilelab.run.plan.rates import Rates
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.run.prepare import expected_streams

COUNTS = range(1, 65)
PLANE = ImageFacts((1, 9958, 9959), (1, 256, 256), 1, np.dtype(np.uint8))
PIXELS = 512 * 512


@pytest.fixture
def cores(monkeypatch):
    """Sets how many cores there are."""

    def use(count, quota="max 100000"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(count)), raising=False)
        monkeypatch.setattr(cpu.Path, "read_text", lambda path: quota if path.name == "cpu.max" else read(path))
        cpu._quota.cache_clear()

    read = cpu.Path.read_text
    yield use
    cpu._quota.cache_clear()


def test_threads_and_streams_are_at_least_one_and_at_most_the_cores(cores):
    for count in COUNTS:
        cores(count)
        assert cpu.core_count() == count
        assert 1 <= cpu.physical_core_count() <= count
        for workers in (None, 1, 2, 3, count, 2 * count + 1):
            streams = expected_streams(Options(workers=workers))
            assert streams >= 1
            assert streams * (workers or 1) <= max(count, workers or 1)
        assert expected_streams(Options(device="cuda:0,1", workers=2)) == 1
        for batch_bytes in (0, 1, 1 << 20, 1 << 60):
            assert 1 <= affordable_streams(None, batch_bytes) <= count


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("150000 100000", 2), ("800000 100000", 8), ("6400000 100000", 16)]
)
def test_a_container_has_the_cores_of_its_quota(cores, quota, expected):
    cores(16, quota)
    assert cpu.core_count() == expected
    assert 1 <= cpu.physical_core_count() <= expected


def request(streams, **more):
    spec = idle([512, 512], 1).spec
    return Request.of(PLANE, spec, Written(True), batch=2, streams=streams, **more)


def test_a_stream_costs_a_batch_of_tiles_and_one_of_logits():
    """The bound for any number of cores; other buffers are as many whatever there is."""
    batch = 2 * PIXELS * (1 + 3) * 4
    one = make_plan(request(1), memory_limit=1 << 50)
    for count in COUNTS:
        plan = make_plan(request(count), memory_limit=1 << 50)
        assert plan.units == one.units
        more = sum(plan.memory.values()) - sum(one.memory.values())
        assert more == further_stream_bytes(request(count)) == (count * batch if count > 1 else 0)


@pytest.mark.parametrize("limit", [1 << 28, 1 << 30, 1 << 32])
def test_every_machine_has_a_plan_within_its_limit_or_a_line(limit):
    """What the smallest of units needs grows with the streams: from some number on they are refused."""
    refused = []
    for count in COUNTS:
        try:
            plan = make_plan(request(count), memory_limit=limit)
        except PlanError as error:
            refused.append((count, str(error)))
        else:
            assert sum(plan.memory.values()) <= limit
    assert [count for count, _ in refused] == list(COUNTS)[len(COUNTS) - len(refused) :]
    for count, said in refused:
        assert "\n" not in said
        assert "lower --tile, --batch or --threads" in said or count == 1


def test_staging_buffers_of_a_gpu_do_not_depend_on_the_cores(cores):
    found = set()
    room = GpuRoom(np.dtype(np.float16), np.dtype(np.float16), 80 << 30)
    for count in (1, 2, 8, 64):
        cores(count)
        asked = request(expected_streams(Options(device="cuda")), gpu=room)
        buffers = largest_device_buffers(asked, make_plan(asked).largest_unit)
        found.add((buffers.device_bytes, sum(b.bytes for b in buffers.pinned.values())))
    assert len(found) == 1


def test_a_tile_is_chosen_and_a_time_is_told_on_every_machine():
    spec = read_spec("superalloy")
    for count in (1, 2, 3, 7, 16, 64):
        machine = Machine(Rates({PIXELS: 1e6}), count, count << 31)
        best = choose_tiling(PLANE, spec, Written(True), machine)[0]
        assert best.tiling.tile
        engine = idle([512, 512], count)
        plan = make_plan(request(count), memory_limit=1 << 50)
        for workers in (1, count):
            seconds = overhead_seconds(plan, engine, 0.1, 1.0, workers)
            assert 0 < seconds < math.inf
    assert len(time_batches(idle([16, 16], 64), lambda times: len(times) < 2)) == 2


def test_a_sweep_has_the_same_bytes_with_any_number_of_streams():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 250, (50, 61), dtype=np.uint8)
    image[10:30, 20:50] = 7
    expected = None
    for streams in (1, 2, 3, 5, 8, 13, 31, 64):
        engine = Network(scramble, (8, 12), batch=2, outputs=3, streams=streams)
        job = make_job(image, "yx", (8, 12), (2, 4), engine=engine, gain=0.02)
        units = [Box((0, 0, x), (1, 50, min(61, x + 20))) for x in range(0, 61, 20)]
        found, _ = whole(job, engine, units)
        expected = expected or found
        for kind, array in found.items():
            np.testing.assert_array_equal(array, expected[kind], f"{kind} with {streams} streams")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores are given to a process elsewhere")
def test_one_core_gives_the_bytes_of_all(tmp_path):
    image = np.random.default_rng(0).integers(0, 250, (200, 210), dtype=np.uint8)
    model = save_conv(tmp_path / "net.onnx", (32, 32), classes=3, spec=make_spec(classes=3))
    usable, found = os.sched_getaffinity(0), []
    for name, given in (("all", usable), ("one", {min(usable)})):
        os.sched_setaffinity(0, given)
        try:
            run = tilelab.infer(image, model, tmp_path / f"{name}.ome.zarr", options=Options(probabilities=("all",)))
        finally:
            os.sched_setaffinity(0, usable)
        result = tilelab.read_result(run.path)
        found.append([np.asarray(result.labels), np.asarray(result.probabilities)])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)
