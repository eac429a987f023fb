"""A plan counts what its units hold: the sweep makes the arrays that were planned, and the process grows by no more."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_of_runs import idle
from sweep_parts import Collector, Network, make_job

from tilelab.engines.base import EngineMemory
from tilelab.errors import PlanError
from tilelab.geometry import Box
from tilelab.run.options import Options
from tilelab.run.plan.buffers import further_stream_bytes, host_buffers, largest_host_buffers
from tilelab.run.plan.plan import make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.run.prepare import prepare
from tilelab.run.sweep.host import HostSweep
from tilelab.spec import ClassInfo, ModelSpec


def spec_of(axes="yx", tile=(64, 64), overlap=(16, 16), channels=1, outputs=3, neighbours=0, stride=1):
    return ModelSpec(
        classes=tuple(ClassInfo(f"c{i}", "#000000") for i in range(outputs)),
        activation="softmax",
        axes=axes,
        tile=tile,
        overlap=overlap,
        stride=stride,
        channels=channels,
        neighbours=neighbours,
    )


@settings(max_examples=60)
@given(data=st.data(), volume=st.booleans())
def test_no_unit_holds_more_than_the_largest(data, volume):
    axes = 3 if volume else 2
    stride = data.draw(st.sampled_from([1, 4]), label="stride")
    tile = tuple(stride * data.draw(st.integers(1, 6), label="tile") for _ in range(axes))
    overlap = tuple(data.draw(st.integers(0, n - stride), label="overlap") for n in tile)
    shape = tuple(data.draw(st.integers(2 if volume else 1, 40), label="size") for _ in range(3))
    chunks = tuple(data.draw(st.integers(1, n), label="chunk") for n in shape)
    extent = tuple(data.draw(st.integers(1, n), label="extent") for n in shape)
    neighbours = 0 if volume else data.draw(st.integers(0, 2), label="neighbours")
    channels = 2 * neighbours + 1
    spec = spec_of("zyx"[-axes:], tile, overlap, channels, neighbours=neighbours, stride=stride)
    image = ImageFacts(shape, chunks, channels, np.dtype(np.uint8))
    request = Request.of(
        image,
        spec,
        Written(True, tuple(range(data.draw(st.integers(0, 2)))), data.draw(st.sampled_from([0, 3]))),
        batch=2,
        streams=data.draw(st.sampled_from([1, 3])),
        symmetries=8 if tile[-1] == tile[-2] and data.draw(st.booleans()) else 1,
        masked=data.draw(st.booleans()),
    )
    largest = largest_host_buffers(request, extent)
    start = tuple(data.draw(st.integers(0, n - e), label="start") for n, e in zip(shape, extent, strict=True))
    one = host_buffers(request, Box(start, tuple(a + e for a, e in zip(start, extent, strict=True))))
    for kind in ("made", "passing"):
        planned, held = getattr(largest, kind), getattr(one, kind)
        assert planned.keys() == held.keys()
        for name, buffer in held.items():
            assert buffer.dtype == planned[name].dtype
            assert all(a <= b for a, b in zip(buffer.shape, planned[name].shape, strict=True)), name


@pytest.mark.parametrize("streams", [1, 4, 16])
@pytest.mark.parametrize("asked", [{}, {"symmetries": 8}, {"logits": False, "channels": np.arange(2)}])
def test_the_sweep_makes_the_arrays_that_are_planned_and_no_other(streams, asked, monkeypatch):
    """Counted while an engine runs: all are made by then, and NumPy says what it holds."""
    array = np.random.default_rng(0).integers(0, 255, (300, 200), np.uint8)
    engine = Network(lambda t: t[:, [0, 0, 0]], (64, 64), batch=2, outputs=3, streams=streams)
    job = make_job(array, "yx", (64, 64), (16, 16), engine=engine, **asked)
    box = Box.whole(job.image.shape)
    held = []

    def run(tiles, out):
        held.append(sum(trace.size for trace in arrays(tracemalloc.take_snapshot()) if of_the_sweep(trace)))
        out[...] = 1

    engine.run = run
    written = {
        "labels": np.empty(job.image.shape, np.uint8),
        "probabilities": np.empty((len(job.channels), *job.image.shape), np.uint8),
        "logits": np.empty((3, *job.image.shape), np.float32),
    }
    sweep = HostSweep(job, engine, box)
    tracemalloc.start(1)
    try:
        sweep.run(Collector(written, box, 0, 1))
    finally:
        tracemalloc.stop()
    assert set(held) == {sum(buffer.bytes for buffer in sweep.buffers.made.values())}
    plan = make_plan(job.request(engine))
    assert plan.memory.items() >= sweep.buffers.bytes.items()  # the only unit is the largest


def arrays(snapshot):
    domain = np.lib.tracemalloc_domain
    return [trace for trace in snapshot.traces if trace.domain == domain]


def of_the_sweep(trace):
    return trace.size >= 1 << 12 and trace.traceback[0].filename.endswith("host.py")


PLANE, STACK = [1500, 4200], [6, 1100, 1200]
CASES = {
    "1 stream": {"engine": {"tile": [512, 512], "streams": 1}},
    "4 streams": {"engine": {"tile": [512, 512], "streams": 4}},
    "16 streams, lanes": {"engine": {"tile": [256, 256], "streams": 16}, "options": {"lanes": 2}},
    "64 streams": {"engine": {"tile": [256, 256], "streams": 64, "outputs": 4}},
    "probabilities": {"engine": {"tile": [256, 256], "streams": 1}, "options": {"probabilities": ["all"]}},
    "logits": {"engine": {"tile": [256, 256], "streams": 4}, "options": {"logits": True}, "image": [PLANE, "uint16"]},
    "symmetries": {"engine": {"tile": [256, 256], "streams": 4, "batch": 2}, "options": {"symmetries": True}},
    "masked floats": {
        "engine": {"tile": [256, 256], "streams": 1},
        "options": {"mask": [PLANE, "uint8"]},
        "image": [PLANE, "float32"],
    },
    "2.5-D": {"engine": {"tile": [256, 256], "streams": 4, "neighbours": 2}, "image": [STACK, "uint8"]},
    "3-D": {"engine": {"tile": [8, 96, 96], "streams": 16}, "image": [[12, 600, 700], "uint8"]},
}


def grow(folder: Path, cases: list[Any]) -> list[Any]:
    """What each case held, one after the other in a process of their own."""
    (folder / "cases.json").write_text(json.dumps([{"image": [PLANE, "uint8"], "options": {}} | c for c in cases]))
    command = [sys.executable, Path(__file__).with_name("memory_of_runs.py"), folder, folder / "cases.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), done.stderr
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not say what a process holds")
    return dict(zip(CASES, grow(tmp_path_factory.mktemp("runs"), list(CASES.values())), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_run_grows_by_no_more_than_its_plan(runs, case, tmp_path):
    run = runs[case]
    planned = sum(run["planned"].values())  # with what allocators keep of what they were given back
    if run["grown"] > planned:  # what the C library kept of the cases before counts, too: alone it does not
        (run,) = grow(tmp_path, [CASES[case]])
    print(f"{case}: grew by {run['grown'] >> 20} MiB of {planned >> 20} planned, {run['units']} units")
    assert run["grown"] <= planned, run


def test_streams_that_do_not_fit_are_refused_and_said():
    image = ImageFacts((1, 3000, 4200), (1, 256, 256), 1, np.dtype(np.uint8))
    one, many = (Request.of(image, spec_of(tile=(512, 512)), Written(True), streams=n) for n in (1, 64))
    limit = sum(make_plan(one).memory.values())
    with pytest.raises(PlanError, match="lower --tile, --batch or --threads"):
        make_plan(many, memory_limit=limit)
    plan = make_plan(many, memory_limit=limit + further_stream_bytes(many))
    assert plan.units == make_plan(one, memory_limit=limit).units


def test_a_run_that_goes_on_with_less_memory_is_not_told_to_change_its_tiles():
    image = ImageFacts((1, 3000, 9000), (1, 256, 256), 1, np.dtype(np.uint8))
    request = Request.of(image, spec_of(tile=(256, 256)), Written(True))
    begun = make_plan(request, memory_limit=1 << 30)
    limit = begun.memory_bytes - 1
    assert make_plan(request, memory_limit=limit).memory_bytes <= limit
    with pytest.raises(PlanError, match=r"raise --memory, or begin anew with --restart$"):
        make_plan(request, memory_limit=limit, cuts=begun.units.cuts)


BUSY = """
import random, sys, time
import numpy as np
from tilelab.engines.registry import load_engine
from tilelab.machine.memory import resident_memory
from concurrent.futures import ThreadPoolExecutor

engine = load_engine("superalloy", engine="onnxruntime", precision="fp32", tile=(512, 512), threads=int(sys.argv[1]))
tiles = np.zeros((1, 1, 512, 512), np.float32)
outs = np.ones((4 * engine.streams, 1, engine.spec.values, 512, 512), np.float32)
draw, before = random.Random(0), resident_memory()

def run(out):
    time.sleep(draw.random() / 5)
    engine.run(tiles, out)
    return resident_memory()

with ThreadPoolExecutor(engine.streams) as pool:
    print(engine.streams, max(pool.map(run, outs)) - before, engine.memory.more_host_bytes)
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_engine_whose_batches_begin_anyhow_takes_no_more_than_is_planned(threads):
    """Those of the trial begin together; in a run one begins when another is over."""
    pytest.importorskip("onnxruntime")
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not say what a process holds")
    done = subprocess.run([sys.executable, "-c", BUSY, str(threads)], capture_output=True, text=True, check=True)
    streams, grown, more = map(int, done.stdout.split())
    print(f"{streams} streams: grew by {grown >> 20} MiB of {more >> 20} planned")
    assert grown <= more + (8 << 20)
    if streams == 1:
        assert more <= 8 << 20, "batches that never meet need no more than the first"


def test_what_an_engine_may_still_take_is_in_the_plan_and_beside_the_limit():
    options = Options(intensity_range=(0, 255), ignore_pixel_size=True, memory_bytes=1 << 30)
    engine, planned = idle([64, 64], 1), []
    for more in (0, 1 << 40):
        engine.memory = EngineMemory(more_host_bytes=more)
        with prepare(np.zeros((64, 64), np.uint8), engine, options) as prepared:
            planned.append(prepared.plan.memory)
    assert planned[1] == planned[0] | {"engine": 1 << 40}
