"""`tilelab infer --dry-run`, and `tilelab plan` for images of a terabyte."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from s3_server import S3Server, TroubleProxy, environment

from tilelab.cli.main import main
from tilelab.engines.identity import identity_spec
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import EngineError, OutputError, StrictError
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.run.options import Options
from tilelab.run.plan.estimate import sample_tiles, stored_bytes
from tilelab.run.prepare import plan_image
from tilelab.run.rehearse import CopyingEngine, dry_run
from tilelab.run.thinned import ThinnedImage
from tilelab.sample import draw_superalloy

zarr = pytest.importorskip("zarr")

SMALL = SpecOverrides(tile=(64, 64), overlap=(16, 16))


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:1700, :1500]
    return (127 + 90 * np.sin(y / 31) * np.cos(x / 23) + rng.normal(0, 12, (1700, 1500))).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stack") / "stack.zarr"
    data = np.random.default_rng(0).integers(0, 256, (40, 700, 900)).astype(np.uint8)
    zarr.create_array(path, data=data, chunks=(8, 128, 128), dimension_names=list("zyx"))
    return path


def test_thinned_is_every_nth_block(pixels, tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(100, 64))
    image = open_image(tmp_path / "a.zarr")
    thinned = ThinnedImage(image, 40_000)
    steps = thinned._steps
    assert max(steps) > 1
    expected = np.concatenate([pixels[i : i + 100] for i in range(0, 1700, 100 * steps[0])])
    expected = np.concatenate([expected[:, i : i + 64] for i in range(0, 1500, 64 * steps[1])], axis=1)
    np.testing.assert_array_equal(thinned[:], expected)
    np.testing.assert_array_equal(thinned[33:150, 5:130], expected[33:150, 5:130])
    assert thinned[:].size <= 2 * 40_000
    assert thinned.bytes > 0


def test_a_small_image_is_kept_whole(pixels):
    image = open_image(pixels[:300, :200])
    np.testing.assert_array_equal(ThinnedImage(image)[:], pixels[:300, :200])


@pytest.mark.parametrize("suffix", [".ome.zarr", ".ome.tif", ".png"])
def test_rehearsal_of_a_plane_leaves_nothing(pixels, tmp_path, capsys, monkeypatch, suffix):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256))
    out = tmp_path / "results" / f"o{suffix}"
    arguments = ["infer", str(tmp_path / "a.tif"), "--model", "identity:3", "--dry-run", "-o", str(out)]
    assert main([*arguments, "--report", str(tmp_path / "r.json")]) == 0
    said = capsys.readouterr().out
    assert "identity fp32 on cpu loads the model" in said
    assert "pixels written are those that the copying engine must give" in said
    assert f"{out} can be written" in said
    if suffix != ".ome.zarr":
        assert "was converted to" in said
    assert "expected" in said
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["expected"]["bytes_read"] == pixels.size
    assert report["expected"]["seconds"] > 0
    assert not out.parent.exists()
    assert not list(scratch.iterdir())


def test_rehearsal_of_a_stack_that_is_thinned(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(ThinnedImage.__init__, "__defaults__", (300_000, None))
    found = dry_run(stack, "identity:1", tmp_path / "o.ome.zarr", Options(model=SMALL, workers=4), lambda line: None)
    blocks = next(line for line in found.checked if "blocks spread" in line)
    kept, of = int(blocks.split()[0]), int(blocks.split()[2])
    assert 0 < kept < of == 5 * 6 * 8
    assert found.expected.workers == 4


def test_a_wrong_result_is_noticed(pixels, tmp_path, monkeypatch):
    def wrong(self, tiles, out):
        out[...] = 0
        out[:, 1] = tiles[:, 0]

    monkeypatch.setattr(CopyingEngine, "run", wrong)
    with pytest.raises(EngineError, match="the rehearsal went wrong"):
        dry_run(pixels, "identity:3", tmp_path / "o.ome.zarr", Options(model=SMALL), lambda line: None)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said_before(pixels, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutputError, match="is no folder that may be written"):
        dry_run(pixels, "identity:1", tmp_path / "file" / "o.ome.zarr", Options(model=SMALL), lambda line: None)


def test_stored_bytes_and_samples(pixels, tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=pixels, chunks=(100, 100))
    image = open_image(tmp_path / "a.zarr")
    real = sum(p.stat().st_size for p in (tmp_path / "a.zarr").rglob("*") if p.name != "zarr.json")
    assert abs(stored_bytes(image) / real - 1) < 0.1
    part = open_image(tmp_path / "a.zarr", region="0:850,:")
    assert abs(stored_bytes(part) / real - 0.5) < 0.1
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="zlib")
    assert abs(stored_bytes(open_image(tmp_path / "a.tif")) / (tmp_path / "a.tif").stat().st_size - 1) < 0.01
    blank = pixels.copy()
    blank[600:] = 0
    spec = identity_spec(1, SMALL)
    samples = sample_tiles(Volume(open_image(blank)), plan_image(open_image(blank), spec, Options()))
    assert samples.tiles == 8
    assert 3 <= samples.blank <= 6


def test_time_and_cost_of_workers(stack, capsys):
    arguments = ["plan", str(stack), "--model", "identity:1", "--tile", "64", "--overlap", "16", "--json"]
    documents = {}
    for workers in (1, 4):
        assert main([*arguments, "--workers", str(workers), "--speed", "0.5", "--price", "3"]) == 0
        documents[workers] = json.loads(capsys.readouterr().out)
    one, four = documents[1], documents[4]
    assert one["seconds"] == pytest.approx(40 * 700 * 900 / 0.5e6 * (1 + one["tiles_computed_twice"]), rel=1e-6)
    assert one["cost"] == pytest.approx(3 * one["seconds"] / 3600)
    assert one["seconds"] / 4 < four["seconds"] < one["seconds"]
    assert four["worker_hours"] == pytest.approx(4 * four["seconds"] / 3600)
    assert one["engine"]["name"] is None
    assert main(["plan", str(stack), "--model", "identity:1", "--no-calibration", "--price", "3"]) == 2
    assert "--price needs a speed" in capsys.readouterr().err


def terabyte(folder: Path) -> Path:
    """A volume of 1.07 TB of which only a corner is there."""
    array = zarr.create_array(
        folder,
        shape=(4096, 16384, 16000),
        chunks=(1, 512, 512),
        shards=(1, 2048, 2048),
        dtype="u1",
        dimension_names=["z", "y", "x"],
    )
    array[0, :512, :512] = 7
    return folder


def plan_it(uri: str, capsys, *more: str) -> tuple[dict, float]:
    """The plan, and the processor's seconds that it took."""
    before = time.process_time()
    words = ["--ignore-pixel-size", "--workers", "64", "--speed", "5", "--price", "0.4"]
    assert main(["plan", uri, "--model", "superalloy", "--json", *words, *more]) == 0
    return json.loads(capsys.readouterr().out), time.process_time() - before


def check_terabyte(found: dict) -> None:
    assert found["bytes_read"] == 4096 * 16384 * 16000
    assert found["workers"] == 64
    assert found["units"] >= 64
    assert 0 <= found["tiles_computed_twice"] < 0.2
    least = 4096 * 16384 * 16000 / 5e6 / 64
    assert least <= found["seconds"] < 1.3 * least
    assert found["cost"] == pytest.approx(0.4 * 64 * found["seconds"] / 3600)
    assert found["memory"]["total"] < 2 << 30
    assert found["bytes_stored"] < 1 << 30
    assert found["sample_tiles"]["blank"] >= found["sample_tiles"]["read"] - 1


def test_a_terabyte_is_planned_almost_as_fast_as_a_corner_of_it(tmp_path, capsys):
    volume = str(terabyte(tmp_path / "tera.zarr"))
    corner = min(plan_it(volume, capsys, "--region", "0:4,0:2048,0:2048")[1] for _ in range(2))
    found, seconds = plan_it(volume, capsys)
    check_terabyte(found)
    assert seconds < 10 * corner + 1


def test_a_remote_terabyte_is_planned_from_few_requests(tmp_path, monkeypatch, capsys):
    pytest.importorskip("obstore", reason="extra `remote` is not installed")
    pytest.importorskip("moto", reason="extra `test` is not installed")
    from tilelab.io.storage.remote_store import open_store

    server = S3Server()
    proxy = TroubleProxy(server.url)
    try:
        server.make_bucket("big")
        for name, value in environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        folder = terabyte(tmp_path / "tera.zarr")
        for file in folder.rglob("*"):
            if file.is_file():
                open_store("s3://big").put(f"tera.zarr/{file.relative_to(folder).as_posix()}", file.read_bytes())
        before = len(proxy.seen)
        check_terabyte(plan_it("s3://big/tera.zarr", capsys)[0])
        assert len(proxy.seen) - before < 4 * 28 + 10  # of 28 places up to 4 chunks each, by the tiles that are chosen
        options = Options(model=SpecOverrides(tile=(256, 256)))
        rehearsed = dry_run("s3://big/tera.zarr", "identity:1", "s3://big/o.ome.zarr", options, lambda line: None)
        assert any("can be written" in line for line in rehearsed.checked)
        assert not list(open_store("s3://big").keys("o.ome.zarr"))
    finally:
        proxy.stop()
        server.stop()


def test_the_stand_in_is_asked_for_no_kind_of_image(tmp_path):
    """Of a model that knows its kind nothing could be rehearsed with --strict: no image is like what copying says."""
    drawn = draw_superalloy((512, 512))[0].astype(np.uint8)
    tifffile.imwrite(tmp_path / "home.tif", drawn)
    tifffile.imwrite(tmp_path / "away.tif", np.random.default_rng(0).integers(0, 256, (512, 512), np.uint8))
    options = Options(strict=True, pixel_size_nm=(1.0,), ignore_pixel_size=True, model=SpecOverrides(tile=(256, 256)))
    found = dry_run(tmp_path / "home.tif", "superalloy", tmp_path / "o.ome.zarr", options, lambda line: None)
    assert "pixels written are those" in " ".join(found.checked)
    with pytest.raises(StrictError, match=r"the kind of image that .*away\.tif is"):
        dry_run(tmp_path / "away.tif", "superalloy", tmp_path / "o.ome.zarr", options, lambda line: None)


@pytest.mark.parametrize("words", [{"series": "1"}, {"scale": 0.5}, {"invert": True}, {"exact": True}])
def test_what_an_image_is_opened_with_is_rehearsed(pixels, tmp_path, words):
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for image in (pixels[:90, :80], pixels[:310, :270]):
            tiff.write(image, photometric="minisblack", metadata=None)
    found = dry_run(
        tmp_path / "a.tif", "identity:3", tmp_path / "o.ome.zarr", Options(model=SMALL, **words), lambda line: None
    )
    size = 310 * 270 // 4 if "scale" in words else 310 * 270
    assert f"all {size} pixels written are those" in " ".join(found.checked)
