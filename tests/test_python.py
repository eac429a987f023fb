"""tilelab from Python: images and results are arrays, calls take keywords and lists, notebooks see pictures."""

from __future__ import annotations

import base64
import inspect
import io
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture

import tilelab
from tilelab.errors import InputError, OutputError, PlanError
from tilelab.geometry import Box
from tilelab.io.images.lazy import LazyArray
from tilelab.run.notebook import Bar, RunBar, in_notebook
from tilelab.sample import draw_superalloy


class Chunked(LazyArray):
    """An array that counts the pixels it decodes, whole chunks at a time."""

    def __init__(self, pixels: np.ndarray, chunks: tuple[int, ...], phase: tuple[int, ...] = ()) -> None:
        self.pixels, self.chunks, self.chunk_phase = pixels, chunks, phase
        self.shape, self.dtype, self.axes = pixels.shape, pixels.dtype, "czyx"[-pixels.ndim :]
        self.largest = 0
        self.rows: set[int] = set()

    def read(self, box: Box) -> np.ndarray:
        self.largest = max(self.largest, box.size)
        self.rows |= set(range(box.start[0], box.stop[0]))
        return self.pixels[box.slices].copy()

    def fingerprint(self) -> dict[str, str]:
        return {"content": str(hash(self.pixels.tobytes()))}


def slices(size: int) -> st.SearchStrategy[Any]:
    ends = st.none() | st.integers(-size - 2, size + 2)
    steps = st.none() | st.integers(-7, 7).filter(bool)
    return st.builds(slice, ends, ends, steps) | st.integers(-size, size - 1)


@given(st.data())
def test_indices_are_numpys(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 24)] * 3))
    chunks = data.draw(st.tuples(*[st.integers(1, 9)] * 3))
    phase = data.draw(st.just(()) | st.tuples(*[st.integers(0, c - 1) for c in chunks]))
    pixels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
    index = data.draw(st.tuples(*map(slices, shape[: data.draw(st.integers(0, 3))])))
    if data.draw(st.booleans()):
        index = (..., *index) if len(index) == 3 else (*index, ...)
    np.testing.assert_array_equal(Chunked(pixels, chunks, phase)[index], pixels[index])


def test_steps_skip_chunks_and_read_little_at_once() -> None:
    lazy = Chunked(np.zeros((4096, 512), np.uint8), (16, 512))
    assert lazy[::64, ::64].shape == (64, 8)
    assert len(lazy.rows) == 64, "rows between were read"
    lazy = Chunked(np.zeros((4096, 512), np.uint8), (16, 512))
    assert lazy[::3, ::2].shape == (1366, 256)
    assert lazy.largest <= 256 * 512


@pytest.mark.parametrize("index", [1.5, np.zeros(3, bool), [1, 2], None, (0, 0, 0), (..., ...), 99, -99])
def test_what_is_no_basic_index_is_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        Chunked(np.zeros((8, 8), np.uint8), (4, 4))[index]


def test_an_image_is_an_array_to_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    with tilelab.open_image(tmp_path / "a.tif") as image:
        assert (image.ndim, image.size, image.nbytes, len(image)) == (2, 2000, 2000, 40)
        assert np.asarray(image).dtype == np.uint8
        assert np.asarray(image, dtype=np.float32).dtype == np.float32
        np.testing.assert_array_equal(np.array(image), pixels)
        np.testing.assert_array_equal(image == pixels, np.ones((40, 50), bool))
        np.testing.assert_array_equal((image > 100) & (image < 200), (pixels > 100) & (pixels < 200))
        np.testing.assert_array_equal(1.0 - image / np.float32(255), 1.0 - pixels / np.float32(255))
        assert (np.mean(image), np.max(image)) == (pixels.mean(), pixels.max())
        np.testing.assert_array_equal(np.stack(list(image)), pixels)
        assert {image: 1}[image] == 1
        assert image
        with pytest.raises(ValueError, match="without a copy"):
            np.asarray(image, copy=False)
        monkeypatch.setattr("tilelab.io.images.lazy.available_memory", lambda: 1000)
        with pytest.raises(PlanError, match=r"takes 2\.0 KiB in memory, 1000 B are free: take a part"):
            np.asarray(image)


def test_an_image_is_an_array_to_dask(tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array")
    pixels = np.random.default_rng(0).integers(0, 255, (300, 500), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64))
    with tilelab.open_image(tmp_path / "a.tif") as image:
        for array in (da.asarray(image), da.from_array(image, chunks=(64, 128)), da.from_array(image)):
            np.testing.assert_array_equal(array[::3, 5:].compute(), pixels[::3, 5:])
        assert da.from_array(image).name == da.from_array(image).name, "its name is its content's"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a drawn micrograph and its result."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("drawn")
    tifffile.imwrite(folder / "sample.tif", draw_superalloy((300, 400))[0], resolution=(5e5, 5e5), resolutionunit=3)
    tilelab.infer(folder / "sample.tif", "superalloy", folder / "a.ome.zarr", **FAST)
    return folder


FAST = {"tile": 128, "overlap": 0.25, "device": "cpu", "ignore_pixel_size": True}


def test_a_run_has_its_pixels(drawn: Path) -> None:
    run = tilelab.infer(drawn / "sample.tif", "superalloy", drawn / "a.ome.zarr", **FAST)
    result = tilelab.read_result(run)
    assert run.already_finished
    np.testing.assert_array_equal(run.labels, result.labels[0])
    np.testing.assert_array_equal(run.probabilities, result.probabilities[0])
    assert repr(run).startswith("<Run ")
    assert repr(result).endswith(
        "yx 300 x 400: labels, probabilities of matrix, secondary precipitate, tertiary precipitate>"
    )
    tiff = tilelab.infer(drawn / "sample.tif", "superalloy", drawn / "b.ome.tif", **FAST)
    np.testing.assert_array_equal(tiff.labels, run.labels)
    with pytest.raises(InputError, match="labels alone"):
        _ = tiff.probabilities


def test_a_level_has_another_name_for_dask_when_it_is_made_anew(drawn: Path, tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array")
    names = []
    for model in ("identity:2", "identity:3", "identity:3"):
        run = tilelab.infer(drawn / "sample.tif", model, tmp_path / "r.ome.zarr", tile=128, overlap=32, restart=True)
        names.append(da.asarray(tilelab.read_result(run).labels[0]).name)
    assert names[0] != names[1] == names[2]


def test_arrays_of_all_kinds_have_the_result_of_the_file(drawn: Path) -> None:
    da, zarr = pytest.importorskip("dask.array"), pytest.importorskip("zarr")
    pixels = tifffile.imread(drawn / "sample.tif")
    stored = zarr.create_array(drawn / "in.zarr", shape=pixels.shape, chunks=(64, 64), dtype="uint8")
    stored[...] = pixels
    expected = np.asarray(tilelab.read_result(drawn / "a.ome.zarr").labels[0])
    for n, array in enumerate((pixels, da.from_array(pixels, chunks=100), stored, tilelab.open_image(pixels))):
        run = tilelab.infer(array, "superalloy", drawn / f"array{n}.ome.zarr", **FAST)
        np.testing.assert_array_equal(run.labels, expected)


def test_a_list_is_a_batch_in_its_order(drawn: Path, tmp_path: Path) -> None:
    images = []
    for n in range(3):
        images.append(tmp_path / f"{'cab'[n]}.tif")
        tifffile.imwrite(images[-1], draw_superalloy((150, 150), 2 * n)[0])
    images[1].write_bytes(b"no image")
    done = tilelab.infer(images, "superalloy", tmp_path / "results", tile=128, overlap=32, device="cpu")
    assert [one.name for one in done] == ["c", "a", "b"]
    assert [bool(one.error) for one in done] == [False, True, False]
    assert done[2].run is not None
    assert done[2].run.labels.shape == (150, 150)
    with pytest.raises(OutputError, match="folder"):
        tilelab.infer(images, "superalloy")
    with pytest.raises(InputError, match="list holds paths of images, not ndarray"):
        tilelab.infer([np.zeros((9, 9))], "superalloy", tmp_path / "results")


@pytest.mark.parametrize(("word", "near"), [("tiles", "tile"), ("overlaps", "overlap"), ("worker", "workers"),
                                            ("precison", "precision"), ("devices", "device")])  # fmt: skip
def test_an_unknown_option_names_the_nearest(word: str, near: str) -> None:
    with pytest.raises(TypeError, match=f"no option '{word}': did you mean '{near}'"):
        tilelab.infer("sample.tif", "superalloy", **{word: 1})
    with pytest.raises(TypeError, match=f"did you mean '{near}'"):
        tilelab.plan("sample.tif", "superalloy", **{word: 1})


def test_scores_and_measures_of_arrays_are_those_of_files(drawn: Path, tmp_path: Path) -> None:
    truth = draw_superalloy((300, 400))[1]
    tifffile.imwrite(tmp_path / "truth.tif", truth)
    run = tilelab.infer(drawn / "sample.tif", "superalloy", drawn / "a.ome.zarr", **FAST)
    one = tilelab.evaluate(run, tmp_path / "truth.tif", objects=True, tolerance=2)
    other = tilelab.evaluate(run.labels, truth.astype(np.int64), objects=True, tolerance=2)
    np.testing.assert_array_equal(one.pooled.confusion, other.pooled.confusion)
    assert repr(one.objects) == repr(other.objects)
    assert repr(one) == repr(other)
    assert repr(one).startswith("<Evaluation of 1: mean IoU 0.")
    with tilelab.measure(run, min_size=20) as of_file, tilelab.measure(run.labels, min_size="20px") as of_array:
        assert of_file.objects.count == of_array.objects.count > 0
        assert of_array.classes == run.result.classes
        np.testing.assert_array_equal(of_file.table()["area_px"], of_array.table()["area_px"])
    assert run.labels[0, 0] < 3, "who opened it closes it"


@pytest.mark.parametrize(
    ("call", "near"),
    [
        (lambda: tilelab.evaluate("a", "b", truth_maps="1:1"), "truth_map"),
        (lambda: tilelab.measure("a", minsize=1), "min_size"),
        (lambda: tilelab.export("a", "b.onnx", tiles=64), "tile"),
    ],
)
def test_an_unknown_wish_names_the_nearest(call: Any, near: str) -> None:
    with pytest.raises(TypeError, match=f"did you mean '{near}'"):
        call()


def test_public_calls_bring_no_torch_and_no_dask_and_rooms_are_called(tmp_path: Path) -> None:
    code = """
import sys, tilelab, tilelab.models, tilelab.measure as room
from tilelab.measure import measure
from tilelab.models import build_model
assert room is tilelab.measure and tilelab.measure.measure is measure
assert "superalloy" in tilelab.models()
names = [getattr(tilelab, name) for name in tilelab.__all__]
try:
    tilelab.measure("missing.tif")
except tilelab.TilelabError as error:
    print(error)
print([name for name in ("torch", "dask", "distributed", "matplotlib", "IPython", "onnx") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "missing.tif" in done.stdout


def test_help_of_a_called_room_is_that_of_the_function() -> None:
    assert list(inspect.signature(tilelab.measure).parameters)[:2] == ["source", "question"]
    assert list(inspect.signature(tilelab.models).parameters) == []


def test_a_recipe_is_a_file_a_name_or_a_dictionary(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training extra not installed")
    recipe = {"name": "a", "network": {"architecture": "unet"}, "run": {"steps": 4}, "classes": [{"name": "one"}]}
    with pytest.raises(InputError, match="the recipe: "):
        tilelab.train(recipe, tmp_path / "out")
    with pytest.raises(InputError, match="no recipe 'nothing'"):
        tilelab.train("nothing", tmp_path / "out")
    with pytest.raises(InputError, match=r"run\.stepz?"):
        tilelab.train("superalloy", tmp_path / "out", data=tmp_path, changes={"run.stepz": 4})
    assert recipe["run"] == {"steps": 4}


def picture_of(page: str) -> np.ndarray:
    found = re.search(r"src='data:image/png;base64,([^']+)'", page)
    assert found, page
    return np.asarray(Picture.open(io.BytesIO(base64.b64decode(found[1]))))


def test_pages_show_what_is_there(drawn: Path) -> None:
    result = tilelab.read_result(drawn / "a.ome.zarr")
    seen = picture_of(result._repr_html_())
    assert seen.shape == (192, 256, 3)
    assert {tuple(color) for color in seen.reshape(-1, 3).tolist()} & {
        tuple(bytes.fromhex(known.color[1:])) for known in result.classes[1:]
    }
    with tilelab.open_image(drawn / "sample.tif") as image:
        grey, page = picture_of(image._repr_html_()), image._repr_html_()
        assert grey.shape == (192, 256)
        assert grey.std() > 20
        for fact in ("300 x 400", "uint8, 117.2 KiB", "20 x 20 nm"):
            assert fact in page
    assert "no picture: " in image._repr_html_(), "closed, and it says so"
    run = tilelab.infer(drawn / "sample.tif", "superalloy", drawn / "a.ome.zarr", **FAST)
    np.testing.assert_array_equal(picture_of(run._repr_html_()), seen)


def test_a_thumbnail_reads_a_coarse_level_or_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.kron(draw_superalloy((256, 256))[0], np.ones((8, 8), np.uint8))
    with tifffile.TiffWriter(tmp_path / "pyramid.ome.tif") as file:
        file.write(pixels, subifds=2, tile=(256, 256))
        for step in (2, 8):
            file.write(pixels[::step, ::step], subfiletype=1, tile=(128, 128))
    tifffile.imwrite(tmp_path / "flat.tif", pixels, tile=(256, 256))
    with tilelab.open_image(tmp_path / "pyramid.ome.tif") as image:
        monkeypatch.setattr(image, "read", lambda box: pytest.fail("the finest level was read"))
        assert picture_of(image._repr_html_()).shape == (256, 256)
    monkeypatch.setattr("tilelab.io.images.notebook._MOST_PIXELS", 2**20)
    with tilelab.open_image(tmp_path / "flat.tif") as image:
        read, count = image.read, []
        monkeypatch.setattr(image, "read", lambda box: (count.append(box.size), read(box))[1])
        page = image._repr_html_()
        assert "the middle 1024 pixels" in page
        assert sum(count) <= 1024 * 1024


def test_names_in_a_page_are_text() -> None:
    class Named(Chunked):
        uri = "<script>"

    bar = Bar("a")
    bar._lines, bar._total = ["<b>"], 1
    assert "<b>" not in bar.page()
    with tilelab.open_image(np.zeros((8, 8), np.uint8)) as image:
        image.uri = "<script>"
        assert "<script>" not in image._repr_html_()


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for IPython in a kernel; gives what is shown."""
    shown: list[str] = []
    display = types.SimpleNamespace(update=shown.append)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    part = types.ModuleType("IPython.display")
    part.HTML = str  # type: ignore[attr-defined]
    part.display = lambda page, display_id: (shown.append(page), display)[1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", part)
    return shown


def test_a_notebook_sees_a_bar_and_what_is_assumed(notebook: list[str], drawn: Path, tmp_path: Path) -> None:
    assert in_notebook()
    tilelab.infer(tifffile.imread(drawn / "sample.tif"), "superalloy", tmp_path / "a.ome.zarr", tile=128, overlap=32)
    assert any("segmenting" in page for page in notebook)
    assert re.search(r"segmenting 100%, (\d+) of \1 tiles", notebook[-1])
    assert "assumed: " in notebook[-1]


def test_a_bar_is_drawn_seldom_and_says_what_is_left(notebook: list[str]) -> None:
    bar = RunBar()
    bar.start(types.SimpleNamespace(tiles=1000), 0)  # type: ignore[arg-type]
    for _ in range(999):
        bar.advance(1)
    assert len(notebook) < 50
    bar._first = (bar._first[0] - 100, 0.0) if bar._first else None
    assert re.search(r"segmenting 100%, 999 of 1,000 tiles, \d+ s left", bar.page())


def test_a_script_imports_no_ipython_and_stays_silent(drawn: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert not in_notebook()
    tilelab.infer(drawn / "sample.tif", "superalloy", drawn / "silent.ome.zarr", **FAST)
    assert capfd.readouterr() == ("", "")
