"""What `measure` will take is told before, for any size, and is what it takes."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

import tilelab
from tests.result_files import CLASSES, METADATA, make_result
from tilelab.cli import main
from tilelab.errors import PlanError
from tilelab.evaluation.labels import open_labels
from tilelab.geometry import Box
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.zarr.layout import Layout

SIDE = 10240


def draw_terabyte(folder: Path) -> Path:
    """A finished result of 10240 voxels a side of which no chunk is there: what was written is background alone."""
    path = folder / "terabyte.ome.zarr"
    sink = OmeZarrSink.create(
        path, Layout.fit((SIDE,) * 3, (30.0, 8.0, 8.0), "3d"), classes=CLASSES, probabilities=(), axes="zyx",
        pixel_size_nm=(30.0, 8.0, 8.0), metadata=METADATA,
    )  # fmt: skip
    (sink.partial / "zarr.json").write_bytes(sink.description.read_bytes())
    sink.partial.rename(path)
    return path


def test_a_terabyte_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = draw_terabyte(tmp_path)
    plan = tilelab.measure.plan(path, min_size="50px")
    assert plan.shape == (SIDE,) * 3
    assert plan.bytes_read == SIDE**3
    assert plan.blocks * np.prod(plan.block) >= SIDE**3
    assert plan.objects == 0
    assert plan.samples[0] == plan.samples[1] > 0
    assert "empty labels" in plan.notes[0]
    assert plan.seconds is not None
    assert 10 < plan.seconds < 1e6
    assert np.prod(plan.block) < plan.memory["total"] < 2**30
    assert main(["measure", str(path), "--plan", "--objects", str(tmp_path / "o.ome.zarr")]) == 0
    told = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
    assert "1,073,741.8 MP" in told["labels"]
    assert "the labels 2 times" in told["read"]
    assert "4.5 TiB" in told["write"]
    assert not (tmp_path / "o.ome.zarr").exists()


def blobs(side: int, seed: int = 0) -> Any:
    """Squares of two classes, alike everywhere."""
    rng = np.random.default_rng(seed)
    small = (rng.random((side // 8, side // 8)) < 0.08) * rng.integers(1, 3, (side // 8, side // 8))
    return np.kron(small, np.ones((8, 8))).astype(np.uint8)


def test_what_was_told_is_what_it_takes(tmp_path: Path) -> None:
    """Objects within a tenth, memory within a factor of 2.5; the time is the machine's."""
    classes = blobs(4096)
    tifffile.imwrite(tmp_path / "blobs.tif", classes, tile=(256, 256), compression="zlib")
    plan = tilelab.measure.plan(tmp_path / "blobs.tif", threads=2)
    tracemalloc.start()
    with tilelab.measure(tmp_path / "blobs.tif", threads=2) as survey:
        table = survey.table()
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.objects == pytest.approx(survey.objects.count, rel=0.1)
    known = plan.memory["total"] - plan.memory["rest"]  # the rest is no array's
    assert known / 2.5 < peak < known * 2.5
    assert plan.bytes_written["table"] > 50 * len(table)
    assert plan.bytes_read == classes.size
    assert plan.bytes_stored is not None
    assert plan.assumptions == survey.assumptions


def test_what_is_read_again_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", blobs(512), tile=(64, 64))
    tifffile.imwrite(tmp_path / "grey.tif", np.zeros((512, 512), np.uint16))
    first = tilelab.measure.plan(tmp_path / "a.tif", image=tmp_path / "grey.tif")
    assert (first.passes, first.bytes_read) == (1, 512 * 512 * 3)
    parted = tilelab.measure.plan(tmp_path / "a.tif", part=1.0, layer="1", fibres=("1", "2"))
    assert parted.passes == 4
    numbered = tilelab.measure.plan(tmp_path / "a.tif", numbered=True)
    assert numbered.seconds is None
    assert "told apart" in numbered.notes[0]
    command = ["measure", str(tmp_path / "a.tif"), "--numbered", "--plan"]
    assert main(command) == 0
    assert "time" in capsys.readouterr().out.split("unknown")[0].splitlines()[-1]
    assert main([*command, "--strict"]) == 2
    assert "--pixel-size" in capsys.readouterr().err


def test_a_folder_is_planned_image_by_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        make_result(tmp_path / f"{name}.ome.zarr", (300, 400))
    assert main(["measure", str(tmp_path), "--plan", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {tuple(found[name]["shape"]) for name in found} == {(1, 300, 400)}
    assert len(found) == 2


def test_part_of_labels_is_what_they_hold_there(tmp_path: Path) -> None:
    make_result(tmp_path / "a.ome.zarr", (6, 90, 80), "3d")
    labels = open_labels(tmp_path / "a.ome.zarr")
    part = labels.part(Box((2, 10, 20), (5, 70, 80)))
    assert part.shape == (3, 60, 60)
    assert np.array_equal(part.read(Box((1, 5, 0), (3, 60, 50))), labels.read(Box((3, 15, 20), (5, 70, 70))))
    part.close()
    assert labels.read(Box((0, 0, 0), (1, 1, 1))).shape == (1, 1, 1)
    labels.close()


def test_an_axis_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", blobs(128), tile=(64, 64))
    monkeypatch.setattr("tilelab.measure.forecast.MOST_PIXELS", 100)
    with pytest.raises(PlanError, match="at most 100"):
        tilelab.measure.plan(tmp_path / "a.tif")
