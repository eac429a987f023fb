"""Labels as a neuroglancer precomputed volume: what TensorStore reads back is the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
from hypothesis import given
from hypothesis import strategies as st
from result_files import CLASSES, METADATA, make_result

from tilelab.cli.main import main
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import InputError, Interrupted, OutputError
from tilelab.io.images.open import open_image
from tilelab.io.results import precomputed_shards as _precomputed_shards
from tilelab.io.results.precomputed import read_precomputed_info, write_precomputed
from tilelab.io.results.precomputed_shards import Sharding
from tilelab.io.results.result import read_result
from tilelab.run.infer import infer
from tilelab.run.options import Options


def read_scale(path: Path, level: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """All of a scale, ``(z, y, x)``, and where it begins (x, y, z)."""
    store: Any = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "scale_index": level,
        }
    ).result()
    return store.read().result()[..., 0].T, store.domain.origin[:3]


def spread(path: Path, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch, result: Path) -> Path:
    """A volume with other sizes of minishards and shards."""
    monkeypatch.setattr(_precomputed_shards, "_MINISHARD", bits[0])
    monkeypatch.setattr(_precomputed_shards, "_SHARD", bits[1])
    return write_precomputed(result, path)


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((1300, 1101), "2d"), ((5, 600, 1100), "2d"), ((70, 300, 530), "3d"), ((3, 7), "2d"), ((33, 20, 20), "3d")],
)
@pytest.mark.parametrize("bits", [(6, 15), (1, 3), (0, 0)])
def test_tensorstore_reads_every_scale(
    tmp_path: Path, shape: tuple[int, ...], kind: Any, bits: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = make_result(tmp_path / "r.ome.zarr", shape, kind)
    out = spread(tmp_path / "r.precomputed", bits, monkeypatch, result.path)
    info = json.loads((out / "info").read_text())
    assert (info["data_type"], info["type"], info["num_channels"]) == ("uint8", "segmentation", 1)
    assert len(info["scales"]) == len(result.labels)
    for level, labels in enumerate(result.labels):
        found, origin = read_scale(out, level)
        np.testing.assert_array_equal(found, labels[...].reshape(found.shape))
        assert origin == (0, 0, 0)
        size = labels.pixel_size_nm
        assert size is not None
        assert (
            info["scales"][level]["resolution"] == [*size[:0:-1], size[0]] if len(size) == 3 else [*size[::-1], size[0]]
        )
    assert sum(file.stat().st_size for file in out.rglob("*.shard")) > 0
    with open_image(out) as image:
        np.testing.assert_array_equal(image[...], result.labels[0][...])
    names = json.loads((out / "segment_properties" / "info").read_text())["inline"]
    assert names["ids"] == ["1", "2"]
    assert names["properties"][0]["values"] == [known.name for known in CLASSES[1:]]
    assert read_precomputed_info(out).metadata == METADATA


def test_few_files_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    result = make_result(tmp_path / "r.ome.zarr", (5, 600, 1100))
    first, second = (write_precomputed(result.path, tmp_path / f"{name}.precomputed") for name in "ab")
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert len([file for file in files if file.suffix == ".shard"]) == len(result.labels)
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in files)
    assert not [file for file in tmp_path.iterdir() if "partial" in file.name]


def test_background_takes_no_space(tmp_path: Path) -> None:
    from tilelab.geometry import Box
    from tilelab.io.results.ome_zarr import OmeZarrSink
    from tilelab.io.results.sink import Finished
    from tilelab.io.zarr.layout import Layout

    labels = np.zeros((1, 600, 900), np.uint8)
    labels[0, 300, 700] = 2
    sink = OmeZarrSink.create(tmp_path / "r.ome.zarr", Layout.fit((600, 900)), classes=CLASSES)
    sink.writer(Box.whole((1, 600, 900)), 0, 1).write(Finished(labels, None, None))
    sink.finalize()
    out = write_precomputed(tmp_path / "r.ome.zarr", tmp_path / "r.precomputed")
    np.testing.assert_array_equal(read_scale(out, 0)[0], labels)
    assert (out / "0" / "0.shard").stat().st_size < 2000
    assert json.loads((out / "info").read_text())["scales"][0]["resolution"] == [1, 1, 1]
    empty = OmeZarrSink.create(tmp_path / "e.ome.zarr", Layout.fit((600, 900)), classes=CLASSES)
    empty.finalize()
    out = write_precomputed(tmp_path / "e.ome.zarr", tmp_path / "e.precomputed")
    assert not list(out.rglob("*.shard"))
    assert not read_scale(out, 0)[0].any()


@given(st.tuples(st.integers(1, 9), st.integers(1, 20), st.integers(1, 5)))
def test_every_chunk_has_its_number_in_one_minishard(grid: tuple[int, int, int]) -> None:
    sharding = Sharding(grid)
    seen = {}
    for shard in range(1 << sharding.shard_bits):
        for minishard in range(1 << sharding.minishard_bits):
            box = sharding.minishard_box(shard, minishard)
            numbers = dict(sharding.numbers(shard, minishard))
            assert list(numbers) == sorted(numbers)
            assert len(numbers) == box.size
            assert all(a <= i < b for at in numbers.values() for i, a, b in zip(at, box.start, box.stop, strict=True))
            seen.update({at: number for number, at in numbers.items()})
    assert len(seen) == len(set(seen.values())) == np.prod(grid)


def options(**more: Any) -> Options:
    return Options(model=SpecOverrides(tile=(64, 64), overlap=(16, 16)), **more)


def test_infer_writes_it_and_knows_it_again(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (3, 300, 400), np.uint8)
    out = tmp_path / "labels.precomputed"
    image = open_image(array, pixel_size_nm=(40, 4, 4), region=":,100:,50:")
    run = infer(image, "identity:3", out, options=options())
    assert run.path == out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.precomputed"]
    kept = infer(image, "identity:3", tmp_path / "labels.ome.zarr", options=options())
    found, origin = read_scale(out, 0)
    np.testing.assert_array_equal(found, read_result(kept.path).labels[0][...])
    assert origin == (50, 100, 0)
    assert open_image(out).pixel_size_nm == (40, 4, 4)
    assert infer(image, "identity:3", out, options=options()).already_finished
    with pytest.raises(OutputError, match="another job"):
        infer(image, "identity:2", out, options=options())
    other = infer(image, "identity:2", out, options=options(restart=True))
    assert not other.already_finished
    assert read_scale(out, 0)[0].max() == 1


def test_an_interrupted_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tilelab.io.results.precomputed as module

    array = np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8)
    out = tmp_path / "labels.precomputed"
    whole = module._write_scale

    def die(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_scale", die)
    with pytest.raises(Interrupted, match="the same command continues"):
        infer(array, "identity:3", out, options=options())
    assert not out.exists()
    monkeypatch.setattr(module, "_write_scale", whole)

    def infer_again(*args: Any) -> None:
        raise AssertionError("the tiles were there already")

    monkeypatch.setattr("tilelab.run.execute.execute", infer_again)
    infer(array, "identity:3", out, options=options())
    assert read_scale(out, 0)[0].max() == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["labels.precomputed"]


def test_what_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "labels.precomputed"
    result = make_result(tmp_path / "r.ome.zarr", (60, 70), labels=False)
    with pytest.raises(OutputError, match="no labels"):
        write_precomputed(result.path, out)
    np.save(tmp_path / "a.npy", np.zeros((60, 70), np.uint8))
    assert main(["infer", str(tmp_path / "a.npy"), "-m", "identity", "--no-labels", "-o", str(out)]) == 2
    assert "leave --no-labels out" in capsys.readouterr().err
    out.mkdir()
    (out / "info").write_text("{}")
    with pytest.raises(InputError, match="was not made by tilelab"):
        read_precomputed_info(out)
    with pytest.raises(OutputError, match="was not made by tilelab"):
        infer(np.zeros((60, 70), np.uint8), "identity", out, options=options())
    with pytest.raises(OutputError, match="was not made by tilelab"):
        infer(np.zeros((60, 70), np.uint8), "identity", out, options=options(restart=True))
    with pytest.raises(OutputError, match="was not made by tilelab"):
        write_precomputed(make_result(tmp_path / "l.ome.zarr", (60, 70)).path, out)
    assert (out / "info").read_text() == "{}"
