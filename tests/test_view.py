"""The page: what its server gives, to whom, and that a real browser shows it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import shutil
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tilelab import infer
from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.results.ome_zarr import OmeZarrSink
from tilelab.io.results.sink import Finished
from tilelab.io.zarr.layout import Layout
from tilelab.spec import ClassInfo
from tilelab.view.gather import Gathering
from tilelab.view.layers import Layer, Scene, viewer_state
from tilelab.view.pyramid import ChunkCache, Level, Pyramid
from tilelab.view.server import ViewServer

CLASSES = (ClassInfo("matrix", "#000000"), ClassInfo("precipitate", "#3987e5"), ClassInfo("crack", "#c98500"))


def write_result(path: Path, labels: np.ndarray, **more) -> None:
    layout = Layout.fit((1, *labels.shape))
    sink = OmeZarrSink.create(path, layout, classes=CLASSES, probabilities=(1,), **more)
    writer = sink.writer(Box((0, 0, 0), (1, *labels.shape)), 0, 1)
    writer.write(Finished(labels[None], np.where(labels == 1, 255, 0).astype(np.uint8)[None, None], None))
    writer.close()
    sink.finalize()


@pytest.fixture
def files(tmp_path):
    """A micrograph of 700 x 900 pixels and its result."""
    image = np.add.outer(np.arange(700), np.arange(900)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", image)
    labels = ((image // 100) % 3).astype(np.uint8)
    write_result(
        tmp_path / "image.ome.zarr", labels, pixel_size_nm=(4.0, 4.0), metadata={"image": {"path": "/gone/image.tif"}}
    )
    return tmp_path, image, labels


@contextmanager
def serving(*names, **view):
    pytest.importorskip("neuroglancer", reason="the page is neuroglancer's")
    with Gathering(lambda line: None) as gathered:
        for name in names:
            gathered.add(str(name))
        server = ViewServer(gathered.scene(), **view)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def ask(server, path, *, host=None, method="GET", body=None):
    link = urlsplit(server.url)
    connection = http.client.HTTPConnection(link.hostname, link.port, timeout=20)
    try:
        connection.request(method, path, body=body, headers={"Host": host or link.netloc})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_a_result_lies_on_its_micrograph(files):
    folder, image, labels = files
    with serving(folder / "image.ome.zarr") as server:
        layers = {layer.name: layer for layer in server.scene.layers}
        assert list(layers) == ["image.tif", "p(precipitate)", "classes"]
        assert layers["image.tif"].size == layers["classes"].size == (4.0, 4.0, 4.0)
        assert layers["classes"].names == {1: "precipitate", 2: "crack"}
        for number, whole in ((0, image), (2, labels)):
            status, data = ask(server, f"/{server.token}/data/{number}/0/0/1/1")
            assert status == 200
            chunk = np.frombuffer(data, whole.dtype).reshape(512, 512)
            assert np.array_equal(chunk[:188, :388], whole[512:, 512:])
            assert not chunk[188:].any()
        array = json.loads(ask(server, f"/{server.token}/data/2/0/.zarray")[1])
        assert array["shape"] == [1, 700, 900]
        assert array["dtype"] == "|u1"
        names = json.loads(ask(server, f"/{server.token}/data/2/names/info")[1])
        assert names["inline"]["ids"] == ["1", "2"]


def test_a_region_of_unknown_size_keeps_its_place(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.arange(300 * 200, dtype=np.uint16).reshape(300, 200))
    metadata = {"image": {"path": str(tmp_path / "image.tif")}, "region": "50:150,20:120"}
    write_result(tmp_path / "r.ome.zarr", np.ones((100, 100), np.uint8), origin_px=(50.0, 20.0), metadata=metadata)
    with Gathering(lambda line: None) as gathered:
        gathered.add(str(tmp_path / "r.ome.zarr"))
        labels = gathered.scene().layers[-1]
        scale, move = labels.zarr_attributes(units=False)["multiscales"][0]["datasets"][0]["coordinateTransformations"]
        assert scale["scale"] == [1.0, 1.0, 1.0]
        assert move["translation"] == [0.0, 50.0, 20.0]


def ends_of(layer):
    """Where the outer edges of a layer lie on y and x, at each of its levels."""
    (scales,) = layer.zarr_attributes(units=False)["multiscales"]
    for level, dataset in zip(layer.pyramid.levels, scales["datasets"], strict=True):
        scale, move = (one[one["type"]] for one in dataset["coordinateTransformations"])
        yield [(move[a] - scale[a] / 2, move[a] + (level.shape[a] - 0.5) * scale[a]) for a in (1, 2)]


@pytest.mark.parametrize("scale", [0.5, 0.9, 2.0])
@pytest.mark.parametrize("kind", ["ome.zarr", "ome.tif"])
def test_a_resampled_result_covers_its_image_whose_pixel_size_nobody_knows(tmp_path, scale, kind):
    tifffile.imwrite(tmp_path / "image.tif", np.random.default_rng(0).integers(0, 255, (300, 200), np.uint8))
    run = infer(tmp_path / "image.tif", "identity:3", tmp_path / f"r.{kind}", scale=scale)
    for named in (None, str(tmp_path / "image.tif")):
        with Gathering(lambda line: None) as gathered:
            gathered.add(str(run.path), image=named)
            first, *others = gathered.scene().layers
            for layer in others:
                assert np.allclose(list(ends_of(layer)), [next(ends_of(first))] * len(layer.pyramid.levels), atol=1)


def test_a_copy_of_the_resampled_image_lies_under_its_result(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.random.default_rng(0).integers(0, 255, (300, 200), np.uint8))
    run = infer(tmp_path / "image.tif", "identity:3", tmp_path / "r.ome.zarr", scale=0.5, with_image=True)
    with Gathering(lambda line: None) as gathered:
        gathered.add(str(run.path))
        first, *others = gathered.scene().layers
        assert first.pyramid.levels[0].shape == (1, 150, 100)
        assert all(list(ends_of(layer)) == list(ends_of(first)) for layer in others)


@pytest.mark.parametrize(("size", "known"), [(None, None), (4.0, "image"), (16.0, "labels")])
def test_coarse_labels_cover_the_image_from_edge_to_edge(tmp_path, size, known):
    """Places are those of centres, so a coarse pixel lies further in than a fine one."""
    sizes = {known: {"resolution": (1e7 / size,) * 2, "resolutionunit": "CENTIMETER"}} if known else {}
    tifffile.imwrite(tmp_path / "image.tif", np.zeros((80, 120), np.uint8), **sizes.get("image", {}))
    labels = (np.indices((20, 30)).sum(axis=0) % 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "labels.tif", labels, **sizes.get("labels", {}))
    with Gathering(lambda line: None) as gathered:
        gathered.add(str(tmp_path / "labels.tif"), image=str(tmp_path / "image.tif"))
        image, classes = gathered.scene().layers
    assert (image.kind, classes.kind) == ("image", "labels")
    assert np.allclose(list(ends_of(image)), list(ends_of(classes)))
    if known:
        assert np.allclose((image.size[1], classes.size[1]), (4.0, 16.0))


def test_a_region_of_known_size_keeps_its_place_on_an_image_without(tmp_path):
    tifffile.imwrite(tmp_path / "image.tif", np.arange(300 * 200, dtype=np.uint16).reshape(300, 200))
    region = {"origin_px": (50.0, 20.0), "metadata": {"region": "50:150,20:120"}}
    write_result(tmp_path / "r.ome.zarr", np.ones((100, 100), np.uint8), pixel_size_nm=(4.0, 4.0), **region)
    with Gathering(lambda line: None) as gathered:
        gathered.add(str(tmp_path / "r.ome.zarr"), image=str(tmp_path / "image.tif"))
        image, *_, classes = gathered.scene().layers
    assert image.size[1:] == (4.0, 4.0)
    assert next(ends_of(image)) == [(-2.0, 1198.0), (-2.0, 798.0)]
    assert next(ends_of(classes)) == [(198.0, 598.0), (78.0, 478.0)]


def test_the_whole_image_fits_the_page_whatever_its_pixels():
    """The unit of the page's scales is the smallest side of a pixel, which may be that between the slices."""
    whole = np.zeros((100, 1100, 1100), np.uint8)
    level = Level(whole.shape, (1.0, 1.0, 1.0), lambda box: whole[box.slices])
    layer = Layer("a", "image", Pyramid.of([level], whole.dtype, ChunkCache()), (2.0, 8.0, 4.0))
    scene = Scene("a", (layer,), True)
    assert viewer_state(scene, "")["crossSectionScale"] == pytest.approx(1100 * 8 / 2 / 400 * 1.05)  # of four panels
    assert viewer_state(scene, "", full_size=True)["crossSectionScale"] == 2.0
    assert viewer_state(scene, "")["projectionScale"] == pytest.approx(1100 * 8 / 2 * 1.2)


def test_an_image_that_breaks_off_is_shown_as_far_as_it_goes(tmp_path):
    tifffile.imwrite(
        tmp_path / "image.tif", np.arange(1 << 20, dtype=np.uint16).reshape(1024, 1024), compression="zlib"
    )
    damaged = bytearray((tmp_path / "image.tif").read_bytes())
    damaged[len(damaged) // 3 : len(damaged) // 2] = b"\xff" * (len(damaged) // 2 - len(damaged) // 3)
    (tmp_path / "image.tif").write_bytes(damaged)
    with Gathering(lambda line: None) as gathered:
        gathered.add_image(str(tmp_path / "image.tif"), {})
        (layer,) = gathered.scene().layers
        with pytest.raises(InputError, match=r"image\.tif is corrupt"):
            layer.pyramid.levels[0].read(Box((0, 0, 0), (1, 1024, 1024)))
        low, high = viewer_state(gathered.scene(), "")["layers"][0]["shaderControls"]["contrast"]["range"]
        assert 0 <= low < high <= 65535  # of what can be read


@pytest.mark.parametrize("layers", [None, 5, [None], [{"name": ["a"]}], [{"name": None}]])
def test_a_state_that_is_none_does_no_harm(files, tmp_path, layers, capsys):
    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        body = json.dumps({"s": {"layers": layers}}).encode()
        good = isinstance(layers, list) and all(isinstance(layer, dict) for layer in layers)
        assert ask(server, f"/{server.token}/state/page", method="POST", body=body)[0] == (200 if good else 400)
        assert len(server.begin_state("http://127.0.0.1:1/x/data")["layers"]) == 3
    (tmp_path / "view.json").write_text(json.dumps({"layers": layers}))
    if not good:
        assert main(["view", "--state", str(tmp_path / "view.json"), str(folder / "image.tif"), "--no-open"]) == 2
        assert "no saved view" in capsys.readouterr().err


def test_each_tab_keeps_its_own_view_when_the_page_is_renewed(files):
    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        for tab, x in (("a", 1), ("b", 2)):
            body = json.dumps({"s": {"position": [x, 0, 0]}, "g": 1, "c": tab}).encode()
            assert ask(server, f"/{server.token}/state/page", method="POST", body=body)[0] == 200
        link = urlsplit(server.url)
        shown = []
        for tab in ("a", "b", "new"):
            connection = http.client.HTTPConnection(link.hostname, link.port, timeout=20)
            connection.request("GET", f"/{server.token}/events/page?c={tab}&gs=1")
            stream = connection.getresponse()
            lines = [stream.readline() for _ in range(4)]  # its configuration and its state, a blank line behind each
            server.renew()
            lines += [stream.readline()]
            told = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
            shown.append([one["s"]["position"][0] for one in told if one["k"] == "s"])
            stream.close()
            connection.close()
        assert shown == [[1, 1], [2, 2], [2, 2]]


def test_a_tab_that_moves_is_not_taken_back(files, monkeypatch):
    """What the page was given while it moved was an older place."""
    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        assert server.is_quiet("a")
        server.tell({"position": [1, 0, 0]}, "a")
        monkeypatch.setattr("tilelab.view.server._QUIET_SECONDS", 3600.0)
        assert not server.is_quiet("a")
        assert server.is_quiet("b")
        monkeypatch.setattr("tilelab.view.server._QUIET_SECONDS", 0.0)
        assert server.is_quiet("a")


def test_what_a_closed_server_was_told_spoils_no_other_request(files):
    """A tab of an earlier server at the same port goes on telling its state."""
    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        link = urlsplit(server.url)
        connection = http.client.HTTPConnection(link.hostname, link.port, timeout=20)
        for path, method, body, status in (
            ("/gone/state/page", "POST", b'{"s": {}}', 404),
            (f"/{server.token}/data/0/.zattrs", "GET", None, 200),
        ):
            connection.request(method, path, body=body)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
        connection.close()


def test_others_get_nothing(files):
    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        good = f"/{server.token}/data/0/.zattrs"
        assert ask(server, good)[0] == 200
        assert ask(server, good, host="localhost:80")[0] == 200
        for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "127.0.0.1@evil.example"):
            assert ask(server, good, host=host)[0] == 403
        wrong = server.token[:-1] + ("a" if server.token[-1] != "a" else "b")
        for path in (
            "/",
            f"/{wrong}/data/0/.zattrs",
            "/v/page/",
            f"/{server.token}/",
            f"/{server.token}/v/page/../../../../etc/passwd",
            f"/{server.token}/v/page/%2e%2e/server.py",
            f"/{server.token}/data/../image.tif",
            f"/{server.token}/data/0/0/0/9/9",
            f"/{server.token}/data/9/.zattrs",
            f"/{server.token}/data/0/99/.zarray",
        ):
            assert ask(server, path)[0] == 404, path
        assert ask(server, f"/{server.token}/state/page", method="POST", body=b"{")[0] == 400
        assert ask(server, f"/{server.token}/state/page", method="PUT", body=b"{}")[0] == 501
        assert ask(server, f"/{server.token}/v/page/")[0] == 200


def test_a_view_is_kept_without_its_addresses(files):
    from tilelab.cli.view import _without_sources

    folder, *_ = files
    with serving(folder / "image.ome.zarr") as server:
        state = viewer_state(server.scene, "http://127.0.0.1:1/x/data")
        state["layers"][2]["selectedAlpha"] = 0.9
        body = json.dumps({"s": state | {"position": [1, 2, 0]}, "pg": "", "g": 1, "c": "page"}).encode()
        assert ask(server, f"/{server.token}/state/page", method="POST", body=body)[0] == 200
        kept = _without_sources(server.state)
        assert "127.0.0.1" not in json.dumps(kept)
    with serving(folder / "image.ome.zarr", state=kept) as server:
        begun = server.begin_state("http://127.0.0.1:2/y/data")
        assert begun["position"] == [1, 2, 0]
        assert begun["layers"][2]["selectedAlpha"] == 0.9
        assert begun["layers"][2]["source"][0]["url"].startswith("http://127.0.0.1:2/y/data/2")


def test_results_of_every_kind_have_names_and_their_micrograph(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (200, 300), np.uint8)
    tifffile.imwrite(tmp_path / "image.tif", pixels)
    for kind in ("ome.zarr", "ome.tif", "png", "precomputed"):
        run = infer(tmp_path / "image.tif", "identity:3", tmp_path / f"r.{kind}")
        with Gathering(lambda line: None) as gathered:
            gathered.add(str(run.path))
            scene = gathered.scene()
            layers = {layer.name: layer for layer in scene.layers}
            assert {"image.tif", "classes"} <= set(layers), kind
            assert not scene.units
            classes = layers["classes"]
            assert list(classes.names) == [1, 2], kind
            assert classes.size == layers["image.tif"].size == (1.0, 1.0, 1.0)
            found = classes.pyramid.read_chunk(0, (0, 0, 0))[0, :200, :300]
            assert np.array_equal(found, np.ceil(pixels.astype(float) * 3 / 256).clip(1) - 1), kind


def test_labels_and_images_are_told_apart(tmp_path):
    labels = np.zeros((64, 64), np.uint8)
    labels[8:20, 8:20] = 2
    tifffile.imwrite(tmp_path / "labels.tif", labels)
    tifffile.imwrite(tmp_path / "stack.tif", np.random.default_rng(0).integers(0, 65535, (5, 40, 50), np.uint16))
    said = []
    with Gathering(said.append) as gathered:
        gathered.add(str(tmp_path / "labels.tif"), image=str(tmp_path / "stack.tif"))
        kinds = [(layer.kind, layer.pyramid.levels[0].shape) for layer in gathered.scene().layers]
    assert kinds == [("image", (5, 40, 50)), ("labels", (1, 64, 64))]
    assert any("labels" in line for line in said)
    assert not any("--no-labels" in line for line in said)  # is none of view's flags
    with Gathering(said.append) as gathered, pytest.raises(InputError, match=r"does not exist|no such"):
        gathered.add(str(tmp_path / "nothing.tif"))


def test_a_page_of_a_plane_without_levels_begins_before_all_of_it_was_read():
    read = []

    def of(box):
        read.append(box.size)
        return np.full(box.shape, 7 if box.start[1] < 20_000 else 9, np.uint16)

    level = Level((1, 30_000, 30_000), (1.0, 1.0, 1.0), of)
    layer = Layer("a", "image", Pyramid.of([level], np.dtype(np.uint16), ChunkCache(), flat=True), (1.0, 1.0, 1.0))
    assert layer.contrast() == (7.0, 9.0)
    assert sum(read) < 0.02 * 30_000**2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(1, 6, 8), (1, 5, 7), (3, 5, 8), (4, 2, 2)])
def test_coarse_pixels_are_means_with_halves_rounded_up(shape, dtype):
    block = np.random.default_rng(0).integers(0, 256 if dtype == np.uint8 else 65536, shape).astype(dtype)
    block.flat[0] = 255 if dtype == np.uint8 else 65535
    pyramid = Pyramid.of([Level(shape, (1.0, 1.0, 1.0), lambda box: block[box.slices])], block.dtype, ChunkCache())
    times = (1 if shape[0] == 1 else 2, 2, 2)
    whole = np.pad(block, [(0, -n % t) for n, t in zip(shape, times, strict=True)], mode="edge").astype(np.float64)
    means = sum(whole[z :: times[0], y::2, x::2] for z, y, x in np.ndindex(*times)) / np.prod(times)
    coarse = pyramid._halve(block, times)
    assert coarse.dtype == dtype
    assert np.allclose(coarse, means if dtype == np.float32 else np.floor(means + 0.5), rtol=1e-6)


@given(st.tuples(st.integers(1, 3), st.integers(1, 2500), st.integers(1, 2500)), st.booleans(), st.data())
@settings(max_examples=20, deadline=None)
def test_chunks_are_the_pixels(shape, is_labels, data):
    whole = (np.indices(shape).sum(axis=0) % 5).astype(np.uint8)
    level = Level(shape, (1.0, 1.0, 1.0), lambda box: whole[box.slices])
    pyramid = Pyramid.of([level], whole.dtype, ChunkCache(1 << 20), labels=is_labels, flat=True)
    assert max(pyramid.levels[-1].shape[1:]) <= 1024
    number = data.draw(st.integers(0, len(pyramid.levels) - 1))
    expected = whole
    for _ in range(number):
        expected = pyramid._halve(expected, (1, 2, 2))
    assert pyramid.levels[number].shape == expected.shape
    index = tuple(data.draw(st.integers(0, (n - 1) // c)) for n, c in zip(expected.shape, pyramid.chunk, strict=True))
    chunk = pyramid.read_chunk(number, index)
    assert chunk.shape == pyramid.chunk
    start = [i * c for i, c in zip(index, pyramid.chunk, strict=True)]
    part = expected[tuple(slice(s, s + c) for s, c in zip(start, pyramid.chunk, strict=True))]
    assert np.array_equal(chunk[tuple(slice(0, n) for n in part.shape)], part)


@pytest.mark.skipif(importlib.util.find_spec("playwright") is None, reason="no playwright to drive a browser")
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_shows_it(files):
    from playwright.sync_api import sync_playwright

    folder, *_ = files
    flags = "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    flags += "--disable-sync --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader"
    with serving(folder / "image.ome.zarr") as server, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags.split())
        try:
            page = browser.new_page(viewport={"width": 900, "height": 600})
            outside = []
            page.on("request", lambda r: r.url.startswith(("http", "ws")) and outside.append(urlsplit(r.url).netloc))
            with page.expect_response(lambda r: "/data/2/0/0/0/0" in r.url or "/data/2/0/0/1/0" in r.url):
                page.goto(server.url)
            page.get_by_text("precipitate").first.wait_for(timeout=60_000)
            found = set()
            for _ in range(40):
                page.wait_for_timeout(500)
                found = _colors(page.screenshot())
                if found >= {"blue", "orange"}:
                    break
            assert found >= {"blue", "orange"}
            assert set(outside) == {urlsplit(server.url).netloc}
        finally:
            browser.close()


def _colors(png: bytes) -> set[str]:
    """Which of the classes' colours fill some of the middle of a picture."""
    import io

    from PIL import Image

    r, _, b = np.moveaxis(np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int16)[100:500, 50:550], 2, 0)
    share = {"blue": ((b - r) > 30).mean(), "orange": ((r - b) > 30).mean()}
    return {name for name, part in share.items() if part > 0.05}


@pytest.mark.parametrize("words", [("--device", "cpu"), ("--precision", "fp32"), ("--engine", "openvino")])
def test_what_is_for_a_model_is_refused_without_one(files, words, capsys):
    pytest.importorskip("neuroglancer", reason="the page is neuroglancer's")
    assert main(["view", str(files[0] / "image.tif"), *words, "--no-open"]) == 2
    assert f"{words[0]} is for what a model makes" in capsys.readouterr().err


@pytest.mark.parametrize("named", ["em.h5", "em.h5::/raw", "z_*.tif"])
def test_a_micrograph_that_is_no_file_alone_is_found(tmp_path, monkeypatch, named):
    """From any folder, and where it lies beside the result; wherever it was, the result has the same bytes."""
    (home := tmp_path / "home").mkdir()
    monkeypatch.chdir(home)
    pixels = np.random.default_rng(0).integers(0, 255, (2, 90, 80), np.uint8)
    with h5py.File("em.h5", "w") as file:
        file["raw"] = pixels[0]
    for z, plane in enumerate(pixels):
        tifffile.imwrite(f"z_{z}.tif", plane)
    runs = [infer(f"{place}{named}", "identity:2", f"{n}.ome.zarr") for n, place in enumerate(("", f"{home}/"))]
    one, other = ((run.path / "zarr.json").read_text() for run in runs)
    assert one == other
    (tmp_path / "away").mkdir()
    shutil.move("0.ome.zarr", tmp_path / "away")
    monkeypatch.chdir(tmp_path)
    for moved in (("home/1.ome.zarr",), ("away/0.ome.zarr", *map(str, home.glob("*_?.tif")), "home/em.h5")):
        for path in moved[1:]:
            shutil.move(path, tmp_path / "away")
        with Gathering(lambda line: None) as gathered:
            gathered.add(moved[0])
            layers = gathered.scene().layers
        assert [layer.kind for layer in layers] == ["image", "probability", "labels"]


def test_a_view_is_saved_over_no_micrograph(files, capsys):
    pytest.importorskip("neuroglancer", reason="the page is neuroglancer's")
    folder, *_ = files
    shutil.copy(folder / "image.tif", folder / "other.tif")
    pixels = (folder / "other.tif").read_bytes()
    for target, said in (
        ("other.tif", "another kind of file"),
        ("image.tif", "would overwrite"),
        ("gone/view.json", "there is no folder"),
    ):
        command = ["view", "--save-state", str(folder / target), str(folder / "image.tif"), "--no-open"]
        assert main(command) == 2
        assert said in capsys.readouterr().err
    assert (folder / "other.tif").read_bytes() == pixels
