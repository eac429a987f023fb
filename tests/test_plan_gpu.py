"""`tilelab plan` for a GPU: what a unit takes there, and what to lower where that is too much."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from tilelab.cli.plan_document import as_text, examine_plan
from tilelab.engines.base import EngineMemory
from tilelab.engines.registry import load_engine
from tilelab.io.images.open import open_image
from tilelab.run.options import Options
from tilelab.run.prepare import plan_image


@pytest.mark.parametrize(("free", "enough"), [(1 << 20, False), (80 << 30, True)])
def test_gpu_memory_is_told(free: int, enough: bool) -> None:
    spec = load_engine("identity:3", tile=(64, 64)).spec
    plan = plan_image(open_image(np.zeros((300, 500), np.uint8), axes="yx"), spec, Options(), 8)
    gpu = SimpleNamespace(
        name="e",
        device="cuda:0",
        precision="fp16",
        batch=8,
        memory=EngineMemory(device_bytes=10 << 20),
        info=SimpleNamespace(free_bytes=free),
        tiles_dtype=np.dtype(np.float32),
        logits_dtype=np.dtype(np.float32),
    )
    gpu.on_device = gpu
    document = examine_plan(plan, gpu, None, [])
    memory = document.device_memory
    assert memory.parts["engine"] == 10 << 20
    assert memory.parts["tiles"] == 8 * spec.channels * 64 * 64 * 4
    assert memory.total == sum(memory.parts.values())
    assert "GPU memory" in as_text(document)
    assert ("lower --batch or --tile" in as_text(document)) is not enough


def test_without_a_gpu_there_is_no_such_line() -> None:
    engine = load_engine("identity:3", tile=(64, 64))
    plan = plan_image(open_image(np.zeros((300, 500), np.uint8), axes="yx"), engine.spec, Options(), 1)
    document = examine_plan(plan, engine, None, [])
    assert document.device_memory is None
    assert "GPU memory" not in as_text(document)
