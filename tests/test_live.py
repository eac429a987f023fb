"""What a page makes before the run: the bytes of `infer`, kept for it, and only what was looked at."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tifffile
from tiny_models import save_conv

from tilelab import infer
from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import ModelError, OutputError
from tilelab.geometry import Box
from tilelab.io.results.result import read_result
from tilelab.io.storage.local_path import LocalPath
from tilelab.run.options import Options
from tilelab.run.progress import Silent
from tilelab.view import live as live_module
from tilelab.view.gather import Gathering
from tilelab.view.growing import GrowingPage
from tilelab.view.live import RememberingEngine, open_live
from tilelab.view.pyramid import NotWanted, asker_gone

OPTIONS = Options(model=SpecOverrides(overlap=(16, 16), mean=(128.0,), std=(40.0,)), device="cpu")


@pytest.fixture
def files(tmp_path):
    """An image of four shards, and a model that sees its neighbourhood."""
    pixels = np.random.default_rng(0).integers(0, 255, (2300, 2200), np.uint8)
    tifffile.imwrite(tmp_path / "image.tif", pixels, tile=(256, 256))
    model = save_conv(tmp_path / "model.onnx", (128, 128))
    return tmp_path, tmp_path / "image.tif", model


@contextlib.contextmanager
def looking(image, model, out):
    with (
        Gathering(lambda line: None) as gathered,
        open_live(str(image), str(model), str(out), OPTIONS, gathered, lambda line: None) as live,
    ):
        yield gathered.scene(), live


def same_files(one, other):
    names = sorted(p.relative_to(one) for p in one.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(other) for p in other.rglob("*") if p.is_file())
    return [str(name) for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


def test_what_is_looked_at_has_the_bytes_of_infer_and_is_kept_for_it(files):
    folder, image, model = files
    whole = infer(image, model, folder / "whole.ome.zarr", options=OPTIONS)
    labels = read_result(whole.path).labels[0]
    with looking(image, model, folder / "seen.ome.zarr") as (scene, live):
        layer = scene.layers[-1]
        assert [la.name for la in scene.layers if la.kind == "labels"] == ["classes"]
        chunk = layer.pyramid.read_chunk(0, (0, 1, 2))
        assert np.array_equal(chunk[0], labels[512:1024, 1024:1536])
        assert live.computed == 1
        layer.pyramid.read_chunk(0, (0, 1, 2))
        assert live.computed == 1  # looked at again, nothing is computed
        corner = Box((0, 2048, 2048), (1, 2300, 2200))
        assert np.array_equal(live.read("labels", corner)[0], labels[2048:, 2048:])
        for _ in range(300):  # it is written after it was given
            if live.units_done:
                break
            time.sleep(0.1)
        assert live.units_done == 1
        with pytest.raises(OutputError, match="another run"):
            infer(image, model, folder / "seen.ome.zarr", options=OPTIONS)
    assert not (folder / "seen.ome.zarr").exists()
    with looking(image, model, folder / "seen.ome.zarr") as (_, live):
        assert np.array_equal(live.read("labels", corner)[0], labels[2048:, 2048:])
        assert live.computed == 0  # it was on the disk
    said = []
    done = infer(image, model, folder / "seen.ome.zarr", options=OPTIONS, note=said.append)
    assert any("continuing" in line for line in said)
    assert same_files(whole.path, done.path) == []


@pytest.mark.parametrize("kept", [512 << 20, 1 << 20])
def test_many_who_ask_at_a_time_get_the_bytes_of_infer(files, monkeypatch, kept):
    """Also where there is room for few blocks, so that they are pushed out while units are written."""
    monkeypatch.setattr(live_module, "_BLOCK_BYTES", kept)
    folder, image, model = files
    labels = read_result(infer(image, model, folder / "whole.ome.zarr", options=OPTIONS).path).labels[0][...]
    with looking(image, model, folder / "seen.ome.zarr") as (scene, live):
        live.look_ahead()
        chunk = scene.layers[-1].pyramid.read_chunk
        places = [(j, i) for j in range(5) for i in range(5)] * 2
        with ThreadPoolExecutor(12) as pool:
            for (j, i), found in zip(places, pool.map(lambda at: chunk(0, (0, *at)), places), strict=True):
                expected = labels[512 * j : 512 * (j + 1), 512 * i : 512 * (i + 1)]
                assert np.array_equal(found[0][: expected.shape[0], : expected.shape[1]], expected)
        assert live.computed >= 25


def test_an_engine_that_remembers_computes_once_what_many_ask_for():
    computed = []

    class Slow:
        streams = 2

        def run(self, tiles, out):
            computed.append(int(tiles[0]))
            time.sleep(0.02)
            if tiles[0] == 9:
                raise ValueError
            out[...] = 2 * tiles

    engine = RememberingEngine(Slow())  # type: ignore[arg-type]

    def ask(value):
        out = np.empty(1, np.float32)
        engine.run(np.full(1, value, np.float32), out)
        return float(out[0])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [1, 2, 1, 2, 3] * 4)) == [2, 4, 2, 4, 6] * 4
        failed = [pool.submit(ask, 9) for _ in range(3)]
        assert all(isinstance(one.exception(), ValueError) for one in failed)
    assert sorted(computed) == [1, 2, 3, 9, 9, 9]


def test_nothing_is_left_of_nothing_and_a_finished_result_is_shown(files):
    folder, image, model = files
    with looking(image, model, folder / "r.ome.zarr") as (scene, live):
        scene.layers[-1].pyramid.read_chunk(0, (0, 0, 0))
        assert live.units_done == 0
        assert "none is kept" in live.told_at_end()
    assert not any(folder.glob("r.ome.zarr*"))
    infer(image, model, folder / "r.ome.zarr", options=OPTIONS)
    with looking(image, model, folder / "r.ome.zarr") as (scene, live):
        assert live is None
        assert scene.layers[-1].kind == "labels"
    with pytest.raises(ModelError, match=r"\.ome\.zarr"), looking(image, model, folder / "r.png"):
        pass


def test_who_has_gone_costs_nothing(files):
    folder, image, model = files
    with looking(image, model, folder / "r.ome.zarr") as (_, live):
        found = []

        def ask():
            asker_gone.set(lambda: True)
            try:
                live.read("labels", Box((0, 0, 0), (1, 100, 100)))
            except NotWanted:
                found.append("gone")

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join(30)
        assert found == ["gone"]
        assert live.computed == 0


def test_a_page_grows_with_its_run(files):
    pytest.importorskip("neuroglancer", reason="the page is neuroglancer's")
    folder, image, model = files
    opened = []
    page = GrowingPage(str(image), {}, LocalPath(folder / "r.ome.zarr"), lambda line: None, opened.append)
    seen = {}

    class Looking(Silent):
        def advance(self, tiles):
            (server,) = opened
            seen["unfinished"] = server.scene.layers[-1].pyramid.read_chunk(0, (0, 0, 0))
            seen["state"] = server.begin_state("base")
            seen["version"] = server.version

    try:
        run = infer(image, model, folder / "r.ome.zarr", options=OPTIONS, progress=page.wrap(Looking()))
        assert seen["version"] >= 1
        *_, classes = seen["state"]["layers"]
        assert classes["source"][0]["url"].startswith(f"base.{seen['version']}/")
        assert seen["state"]["layers"][0]["source"][0]["url"].startswith("base/0/")  # the image is not read again
        server = page.finish(str(run.path))
        assert server is opened[0]
        assert server.version > seen["version"]
        labels = read_result(run.path).labels[0]
        assert np.array_equal(server.scene.layers[-1].pyramid.read_chunk(0, (0, 1, 1))[0], labels[512:1024, 512:1024])
        assert not seen["unfinished"].any() or np.array_equal(labels[:512, :512], seen["unfinished"][0])
    finally:
        page.close()


def test_what_could_not_be_written_is_said_in_the_end(files, monkeypatch):
    folder, image, model = files

    def full(*_):
        raise OutputError("the disk is full")

    with looking(image, model, folder / "seen.ome.zarr") as (_, live):
        monkeypatch.setattr(type(live._sink), "writer", full)
        live.read("labels", live.plan.units[len(live.plan.units) - 1].box)
        began = time.monotonic()
        while live.unwritten is None and time.monotonic() < began + 60:
            time.sleep(0.02)
        assert live.told_at_end().endswith("others were not written: the disk is full")
