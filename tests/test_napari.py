"""A result in napari: on its micrograph, visible, named, painted on, and its corrections kept."""

from __future__ import annotations

import contextlib
import importlib.util
import time

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_view import CLASSES, write_result

from tilelab import infer
from tilelab.errors import InputError
from tilelab.view.corrections import find_corrected, keep_corrections
from tilelab.view.napari import get_reader, read_layers


@pytest.fixture
def result(tmp_path):
    """A result of 4 nm beside its micrograph, which states no pixel size."""
    image = np.random.default_rng(0).integers(0, 1000, (600, 500), np.uint16)
    tifffile.imwrite(tmp_path / "image.tif", image)
    labels = (np.indices(image.shape).sum(axis=0) // 90 % 3).astype(np.uint8)
    metadata = {"image": {"path": str(tmp_path / "image.tif")}}
    write_result(tmp_path / "r.ome.zarr", labels, pixel_size_nm=(4.0, 4.0), metadata=metadata)
    return tmp_path / "r.ome.zarr", image, labels


def test_layers_lie_on_each_other(result):
    path, image, labels = result
    assert get_reader(str(path.parent)) is None
    assert get_reader([str(path)]) is None
    reader = get_reader(str(path))
    assert reader is not None
    (raw, at, kind), (_, hidden, _), (classes, own, last) = reader(str(path))
    assert (kind, last) == ("image", "labels")
    assert np.array_equal(np.asarray(raw), image)
    assert np.array_equal(raw[10:20, 5], image[10:20, 5])
    assert np.array_equal(classes, labels)
    assert at["scale"] == own["scale"] == (4.0, 4.0)
    assert at["units"] == own["units"] == ("nm", "nm")
    assert own["features"]["class"] == [known.name for known in CLASSES]
    assert hidden["visible"] is False


@pytest.mark.parametrize(("scale", "pixel_size_nm"), [(0.5, None), (0.9, None), (2.0, None), (0.5, 4.0)])
def test_a_resampled_result_covers_its_image(tmp_path, scale, pixel_size_nm):
    tifffile.imwrite(tmp_path / "image.tif", np.random.default_rng(0).integers(0, 255, (300, 200), np.uint8))
    run = infer(tmp_path / "image.tif", "identity:3", tmp_path / "r.ome.zarr", scale=scale, pixel_size_nm=pixel_size_nm)
    ends = []
    for data, at, _ in read_layers(str(run.path)):
        data = data[0] if isinstance(data, list) else data
        for a in (0, 1):
            edge = at["translate"][a] - at["scale"][a] / 2
            ends.append((edge, edge + data.shape[a] * at["scale"][a]))
    assert np.allclose(ends, [ends[0], ends[1]] * (len(ends) // 2), atol=1.0)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_crops_hold_every_correction(data):
    shape = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 40)))
    before = np.zeros(shape, np.uint8)
    after = data.draw(arrays.arrays(np.uint8, shape, elements=st.integers(0, 1)))
    covered = np.zeros(shape, bool)
    for z, y, x in find_corrected(before, after, 16):
        crop = after[z, y : y + 16, x : x + 16]
        assert crop.shape == (min(16, shape[1]), min(16, shape[2]))
        covered[z, y : y + 16, x : x + 16] = True
    assert covered[before != after].all()
    assert bool(find_corrected(before, after, 16)) == bool((before != after).any())


def test_corrections_are_pairs(tmp_path):
    image = np.arange(300 * 300, dtype=np.uint16).reshape(300, 300)
    before = np.zeros((300, 300), np.uint8)
    after = before.copy()
    after[290:295, 5:9] = 2
    assert keep_corrections(tmp_path, "a", image, before, before) == []
    (written,) = keep_corrections(tmp_path, "a", image, before, after)
    assert np.array_equal(tifffile.imread(written), image[44:, :256])
    assert np.array_equal(tifffile.imread(tmp_path / "labels" / written.name), after[44:, :256])
    with pytest.raises(InputError, match="shape"):
        keep_corrections(tmp_path, "a", image, before[:9], after)


def test_corrections_of_another_image_of_that_name_stay(tmp_path):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (300, 300), dtype=np.uint8) for _ in range(3)]
    before = np.zeros((300, 300), np.uint8)
    after = before.copy()
    after[5, 5] = after[290, 290] = 1
    first = [keep_corrections(tmp_path, "001", image, before, after) for image in images]
    again = [keep_corrections(tmp_path, "001", image, before, after) for image in images]
    assert first == again
    assert [crops[0].name for crops in first] == ["001_0_0_0.tif", "001-2_0_0_0.tif", "001-3_0_0_0.tif"]
    for image, crops in zip(images, first, strict=True):
        assert np.array_equal(tifffile.imread(crops[0]), image[:256, :256])
        assert np.array_equal(tifffile.imread(crops[1]), image[44:, 44:])


def test_a_micrograph_with_holes_has_limits():
    from types import SimpleNamespace

    from tilelab.io import open_image
    from tilelab.view.napari import _image_layer

    pixels = np.arange(600, dtype=np.float32).reshape(20, 30)
    pixels[5] = np.nan
    told = SimpleNamespace(info=SimpleNamespace(pixel_size_nm=None, metadata={}))
    _, look, _ = _image_layer(open_image(pixels), told)
    assert look["contrast_limits"] == pytest.approx((0, 599), abs=3)


def test_the_manifest_names_what_there_is():
    import re
    from importlib import import_module, resources

    text = (resources.files("tilelab") / "napari.yaml").read_text()
    named = re.findall(r"python_name: (\S+):(\S+)", text)
    assert len(named) == 4
    for module, function in named:
        assert callable(getattr(import_module(module), function))
    assert set(re.findall(r"command: (\S+)", text)) == set(re.findall(r"id: (\S+)", text))


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="no napari")
def test_napari_shows_and_takes_paint(result, tmp_path, monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    from napari.layers import Image, Labels

    from tilelab.view.napari import keep_layers, segment_layer

    path, *_ = result
    (raw, at, _), *_, (classes, own, _) = read_layers(str(path))
    image, labels = Image(raw, **at), Labels(classes, **own)
    assert np.allclose(image.extent.world, labels.extent.world)
    assert labels.editable
    assert np.allclose(labels.get_color(1)[:3], np.array([0x39, 0x87, 0xE5]) / 255, atol=0.01)
    labels.brush_size = 9
    labels.paint((300, 250), 2)
    assert len(keep_layers(image, labels, tmp_path / "c")) == 1
    data, place, kind = segment_layer(image, "identity:3")
    assert kind == "labels"
    assert data.shape == image.data.shape
    assert tuple(place["scale"]) == tuple(image.scale)


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="no napari")
def test_what_was_painted_stays_when_the_image_is_segmented_again(monkeypatch):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("qtpy")
    import napari
    from napari.layers import Image

    from tilelab.view.napari import segment_widget

    class Viewer:
        """What the widget needs of one: it takes layers."""

        def __init__(self):
            self.layers = []

        def add_layer(self, layer):
            self.layers.append(layer)

    from qtpy.QtWidgets import QApplication

    app = QApplication.instance() or QApplication([])
    viewer = Viewer()
    monkeypatch.setattr(napari, "current_viewer", lambda: viewer)
    form = segment_widget()
    image = Image(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8), name="a")
    form["image"].choices = [image]
    for count in (1, 2):
        form(image=image, model="identity:3")
        end = time.monotonic() + 60
        while (len(viewer.layers) < count or not form.call_button.enabled) and time.monotonic() < end:
            app.processEvents()
            time.sleep(0.01)
    first, second = viewer.layers
    assert first is not second
    assert first.name == "classes by identity:3"
    assert first.data.shape == (64, 64)
    assert "superalloy" in form["model"].tooltip
    assert form.min_width > 400


def test_a_process_says_how_far_it_is(tmp_path, monkeypatch):
    import sys

    from tilelab.errors import ModelError
    from tilelab.view.further import train_further

    program = tmp_path / "python"
    program.write_text(
        '#!/bin/sh\necho "tilelab: step 3 of 12, loss 0.1"\necho "$*"\necho "tilelab: error: no such"\nexit 2\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    seen = []
    with pytest.raises(ModelError, match=r"^no such$"):
        seen.extend(train_further("superalloy", tmp_path, tmp_path / "new.onnx", 2))
    seen = []
    with contextlib.suppress(ModelError):
        for progress in train_further("superalloy", tmp_path, tmp_path / "new.onnx", 2):
            seen.append(progress)
    assert seen[0].share == 0.25
    assert "improve superalloy --corrections" in seen[1].line
    assert seen[2].share is None


@pytest.mark.skipif(importlib.util.find_spec("napari") is None, reason="no napari")
def test_the_new_model_is_offered(monkeypatch, tmp_path):
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("qtpy")
    from qtpy.QtWidgets import QApplication

    from tilelab.view import napari
    from tilelab.view.further import Progress

    app = QApplication.instance() or QApplication([])

    def pretend(*_):
        yield Progress("step 1 of 2", 0.5)

    monkeypatch.setattr(napari, "train_further", pretend)
    form = napari.further_widget()
    form["new_model"].value = "mine.onnx"
    form["train_further"].clicked.emit(True)
    end = time.monotonic() + 60
    while not form["train_further"].enabled and time.monotonic() < end:
        app.processEvents()
        time.sleep(0.01)
    assert form["model"].value == "mine.onnx"
