"""A plan for a GPU: what a unit takes there, lanes that its memory has room for, and what to lower where none fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelab.cli.plan_document import as_text, examine_plan
from tilelab.engines.base import GpuRoom
from tilelab.engines.registry import load_engine
from tilelab.errors import PlanError
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.run.options import Options
from tilelab.run.plan.device_buffers import MOST_BLOCKS, device_buffers, largest_device_buffers
from tilelab.run.plan.plan import make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.run.prepare import plan_image

F16, F32 = np.dtype(np.float16), np.dtype(np.float32)
SPEC = load_engine("identity:3", tile=(64, 64)).spec


def picture(shape=(300, 500)):
    return open_image(np.zeros(shape, np.uint8), axes="yx")


def make_request(shape=(1, 9959, 20000), spec=SPEC, free=80 << 30, types=(F32, F32), **more):
    image = ImageFacts(shape, tuple(min(n, 512) for n in shape), 1, np.dtype(np.uint8))
    return Request.of(image, spec, Written(True), batch=8, gpu=GpuRoom(*types, free), **more)


def test_gpu_memory_is_told():
    engine = load_engine("identity:3", tile=(64, 64))
    plan = plan_image(picture(), SPEC, Options(), 8, gpu=GpuRoom(F32, F32, 80 << 30))
    memory = examine_plan(plan, engine, None, []).device_memory
    assert memory.parts["tiles"] == 8 * SPEC.channels * 64 * 64 * 4
    assert memory.total == sum(memory.parts.values())
    assert "GPU memory" in as_text(examine_plan(plan, engine, None, []))
    # the host holds what is on its way to and from the GPU, no tiles and no canvas
    assert not {"tiles", "canvas", "logits"} & set(plan.memory)


def test_without_a_gpu_there_is_no_such_line():
    engine = load_engine("identity:3", tile=(64, 64))
    plan = plan_image(picture(), engine.spec, Options(), 1)
    document = examine_plan(plan, engine, None, [])
    assert document.device_memory is None
    assert "GPU memory" not in as_text(document)


def test_types_and_symmetries_are_counted():
    def parts(**more):
        return largest_device_buffers(make_request(**more), (1, 300, 500)).device

    full, half, turned = parts(), parts(types=(F16, F16)), parts(types=(F16, F16), symmetries=8)
    assert half["logits"].bytes * 2 == full["logits"].bytes
    assert turned["turned tiles"].bytes == half["tiles"].bytes
    assert turned["summed logits"].dtype == turned["blank tiles"].dtype == F32


def test_lanes_are_as_narrow_as_the_memory_asks_for():
    wide = make_plan(make_request())
    assert len(wide.units) == 1
    needed = largest_device_buffers(wide.request, wide.largest_unit).device_bytes
    narrow = make_plan(make_request(free=needed // 2))
    assert len(narrow.units) > 1
    for unit in narrow.units:
        assert device_buffers(narrow.request, unit.box).device_bytes <= needed // 2


def test_a_gpu_without_room_for_the_narrowest_lane_is_refused_with_the_parts():
    with pytest.raises(PlanError, match=r"of GPU memory \(\w.*1\.\d MiB are free: lower --batch or --tile$"):
        make_plan(make_request(free=2 << 20))


def test_more_lines_than_a_grid_has_blocks_are_cut():
    spec = load_engine("identity").spec
    volume = type(spec)(classes=spec.classes, activation="sigmoid", axes="zyx", tile=(8, 32, 32), overlap=(2, 8, 8))
    plan = make_plan(make_request((16, 3 * MOST_BLOCKS, 64), volume), memory_limit=1 << 50)
    assert plan.largest_unit[1] <= MOST_BLOCKS
    assert len(plan.units) >= 3
    assert len(make_plan(replace(plan.request, gpu=None), memory_limit=1 << 50).units) == 1


def test_a_run_that_is_continued_keeps_its_lanes_or_is_refused():
    wide = make_plan(make_request())
    needed = largest_device_buffers(wide.request, wide.largest_unit).device_bytes
    again = make_plan(make_request(free=needed), cuts=wide.units.cuts)
    assert again.units.cuts == wide.units.cuts
    with pytest.raises(PlanError, match=r"are free: free some, or begin anew with --restart"):
        make_plan(make_request(free=needed - 1), cuts=wide.units.cuts)


def test_workers_plan_for_the_gpu_with_the_least_memory():
    pytest.importorskip("distributed")
    from tilelab.run.cluster.crew import RemoteEngine, _agreed
    from tilelab.run.cluster.order import EngineAccount, EngineFacts

    facts = EngineFacts("e", "cuda", "fp16", 8, SPEC.to_json(), "digest", ())
    rooms = [GpuRoom(F16, F16, free << 30) for free in (70, 20, 40)]
    accounts = {f"worker {i}": EngineAccount(facts, 1, (), (), room, "logits") for i, room in enumerate(rooms)}
    assert RemoteEngine(_agreed(accounts), np.copy).gpu_room == rooms[1]
    accounts = {name: account._replace(gpu_room=None) for name, account in accounts.items()}
    assert RemoteEngine(_agreed(accounts), np.copy).gpu_room is None


@settings(max_examples=100)
@given(data=st.data(), symmetries=st.sampled_from([1, 8]), volume=st.booleans())
def test_no_unit_takes_more_than_was_planned_for_the_largest(data, symmetries, volume):
    axes = 3 if volume else 2
    tile = tuple(data.draw(st.integers(1, 12), label="tile") for _ in range(axes - 1))
    tile = (*tile, tile[-1]) if not volume else (tile[0], tile[1], tile[1])
    overlap = tuple(data.draw(st.integers(0, t - 1), label="overlap") for t in tile)
    spec = type(SPEC)(classes=SPEC.classes, axes="zyx"[-axes:], tile=tile, overlap=overlap)
    shape = tuple(data.draw(st.integers(2, 60), label="size") for _ in range(3))
    request = make_request(shape, spec, symmetries=symmetries)
    start = tuple(data.draw(st.integers(0, n - 1), label="start") for n in shape)
    stop = tuple(data.draw(st.integers(a + 1, n), label="stop") for a, n in zip(start, shape, strict=True))
    found = device_buffers(request, Box(start, stop))
    most = largest_device_buffers(request, tuple(b - a for a, b in zip(start, stop, strict=True)))
    for kind in ("device", "pinned"):
        for name, buffer in getattr(found, kind).items():
            assert buffer.bytes <= getattr(most, kind)[name].bytes, name
