"""`map_tiles` gives the bytes of `infer`, however its blocks are cut."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import zarr
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tiny_models import make_spec, negate, save_conv, save_unet

from tilelab.engines.overrides import SpecOverrides
from tilelab.errors import InputError, ModelError, StrictError
from tilelab.io.results.result import read_result
from tilelab.run.infer import infer
from tilelab.run.map_tiles import map_tiles
from tilelab.run.options import Options
from tilelab.spec import Normalization

da = pytest.importorskip("dask.array")


def infer_both(array, model, options, folder):
    """Labels and probabilities that `infer` writes for a NumPy array."""
    run = infer(array, model, folder / "out.ome.zarr", options=options)
    result = read_result(run.path)
    return tuple(zarr.open_array(levels[0].uri, mode="r")[:] for levels in (result.labels, result.probabilities))


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """A network that sees 25 pixels, so that halos matter."""
    return save_unet(
        tmp_path_factory.mktemp("model") / "unet.onnx", (64, 64), spec=make_spec((64, 64), stride=4, overlap=(24, 24))
    )


@pytest.mark.parametrize("shape", [(300, 270), (3, 150, 130)])
def test_a_network_gives_the_bytes_of_infer(unet, tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    labels, probabilities = infer_both(array, unet, Options(), tmp_path)
    lazy = da.from_array(array, chunks=(2,) * (len(shape) - 2) + (64, 100))
    found = map_tiles(lazy, unet, chunks=(2,) * (len(shape) - 2) + (90, 111))
    assert found.dtype == np.uint8
    assert found.shape == shape
    np.testing.assert_array_equal(found.compute(), labels)
    found = map_tiles(lazy, unet, output="probabilities", chunks=(1,) * (len(shape) - 2) + (200, 77))
    assert found.shape == (1, *shape)
    np.testing.assert_array_equal(found.compute(scheduler="synchronous"), probabilities)


def test_only_what_a_part_needs_is_computed(unet):
    asked = []

    def load(block_info=None):
        asked.append(block_info[None]["array-location"])
        return np.zeros((64, 64), np.uint8)

    lazy = da.map_blocks(load, chunks=((64,) * 10, (64,) * 10), dtype=np.uint8, meta=np.zeros((0, 0), np.uint8))
    found = map_tiles(lazy, unet, chunks=(64, 64))
    assert not asked
    assert found[:64, :64].compute(scheduler="synchronous").shape == (64, 64)
    assert max(stop for location in asked for _, stop in location) <= 192


def test_statistics_are_those_of_the_whole_array(tmp_path):
    spec = make_spec((64, 64), stride=4, normalization=Normalization(kind="percentile", low=1.0, high=99.0))
    model = save_unet(tmp_path / "unet.onnx", (64, 64), spec=spec)
    array = np.random.default_rng(0).normal(1000, 300, (700, 800)).clip(0).astype(np.uint16)
    array[:300] //= 2
    labels, probabilities = infer_both(array, model, Options(), tmp_path)
    lazy = da.from_array(array, chunks=256)
    np.testing.assert_array_equal(map_tiles(lazy, model, chunks=(400, 300)).compute(), labels)
    found = map_tiles(lazy, model, output="probabilities")
    np.testing.assert_array_equal(found.compute(), probabilities)


@settings(max_examples=8)
@given(data=st.data(), seed=st.integers(0, 2**31))
def test_blocks_may_be_cut_anywhere(data, seed, tmp_path_factory):
    axes = data.draw(st.sampled_from([2, 3]), label="axes")
    shape = tuple(data.draw(st.integers(1, 60 if axes == 2 else 20), label="size") for _ in range(axes))
    assume(axes == 2 or min(shape[1:]) > 4)  # so few entries would be taken for channels
    model_axes = data.draw(st.sampled_from([2, axes]), label="model axes") if min(shape[0], 2) > 1 else 2
    tile = tuple(data.draw(st.integers(1, 16), label="tile") for _ in range(model_axes))
    overlap = tuple(data.draw(st.integers(0, t - 1), label="overlap") for t in tile)
    options = Options(
        model=SpecOverrides(tile=tile, overlap=overlap, axes="zyx"[-model_axes:]), batch=2, probabilities=("all",)
    )
    array = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    labels, probabilities = infer_both(array, "identity:3", options, tmp_path_factory.mktemp("run"))
    chunks = tuple(data.draw(st.integers(1, n), label="chunk") for n in shape)
    squeezed = shape[1:] if axes == 3 and shape[0] == 1 else shape
    lazy = da.from_array(array, chunks=tuple(data.draw(st.integers(1, n), label="source chunk") for n in shape))
    for output, expected in (("labels", labels), ("probabilities", probabilities)):
        found = map_tiles(lazy, "identity:3", output=output, options=options, chunks=chunks[-len(squeezed) :])
        np.testing.assert_array_equal(found.compute(scheduler="synchronous"), expected)


def test_channels_and_masks_are_those_of_infer(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    mask = np.zeros((90, 80), np.uint8)
    mask[20:70, 10:60] = 1
    np.save(tmp_path / "mask.npy", mask)
    for options in (Options(channel=1), Options(mask=tmp_path / "mask.npy")):
        (folder := tmp_path / str(options.channel)).mkdir()
        labels, _ = infer_both(array, "identity:4", options, folder)
        found = map_tiles(da.from_array(array, chunks=(40, 30, 3)), "identity:4", options=options, chunks=(33, 50))
        np.testing.assert_array_equal(found.compute(), labels)


def test_processes_load_the_engine_themselves(unet):
    array = da.from_array(np.random.default_rng(0).integers(0, 256, (150, 140), np.uint8), chunks=64)
    here = map_tiles(array, unet, chunks=(80, 140)).compute()
    there = map_tiles(array, unet, chunks=(80, 140)).compute(scheduler="processes", num_workers=1)
    np.testing.assert_array_equal(here, there)


def test_what_is_named_from_here_is_found_where_blocks_are_computed(unet, tmp_path, monkeypatch):
    """Later, and maybe by a process that began in another folder."""
    (home := tmp_path / "home").mkdir()
    monkeypatch.chdir(home)
    shutil.copy(unet, "unet.onnx")
    np.save("mask.npy", np.ones((90, 80), np.uint8))
    array = da.from_array(np.random.default_rng(0).integers(0, 256, (90, 80), np.uint8), chunks=50)
    lazy = map_tiles(array, "unet.onnx", mask="mask.npy")
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(lazy.compute(), map_tiles(array, unet).compute())


def test_a_model_that_is_a_link_keeps_its_suffix(unet, tmp_path):
    """As in the cache of Hugging Face, where links lead to files that are named by their digest."""
    shutil.copy(unet, tmp_path / "0a1b2c")
    (tmp_path / "unet.onnx").symlink_to("0a1b2c")
    array = da.from_array(np.random.default_rng(0).integers(0, 256, (90, 80), np.uint8), chunks=50)
    np.testing.assert_array_equal(map_tiles(array, tmp_path / "unet.onnx").compute(), map_tiles(array, unet).compute())


def test_what_must_not_be_assumed_is_not(unet, tmp_path):
    path = save_unet(tmp_path / "bare.onnx", (64, 64))
    array = da.zeros((100, 100), dtype=np.uint8)
    said = {"mean": 128, "std": 64, "stride": 4, "classes": 2, "tile": 64, "output_is": "logits"}
    sized = make_spec((64, 64), stride=4, pixel_size_nm=(4.0, 4.0))
    with pytest.raises(StrictError, match="pixel size"):
        map_tiles(array, save_unet(tmp_path / "sized.onnx", (64, 64), spec=sized), strict=True)
    map_tiles(array, path, strict=True, **said).compute()


def test_the_file_that_is_there_now_computes(tmp_path):
    path = save_conv(tmp_path / "net.onnx", (64, 64), spec=make_spec((64, 64)))
    array = np.random.default_rng(0).integers(0, 256, (100, 90), np.uint8)
    lazy = da.from_array(array, chunks=50)
    before = map_tiles(lazy, path).compute()
    negate(path)
    labels, _ = infer_both(array, path, Options(), tmp_path)
    np.testing.assert_array_equal(map_tiles(lazy, path).compute(), labels)
    assert (labels != before).any()


def test_what_does_not_fit_is_refused(unet):
    array = da.zeros((100, 100), dtype=np.uint8)
    with pytest.raises(InputError, match="takes a Dask array, not ndarray"):
        map_tiles(np.zeros((100, 100), np.uint8), unet)
    with pytest.raises(InputError, match="chunks \\(5,\\) do not fit axes yx"):
        map_tiles(array, unet, chunks=(5,))
    with pytest.raises(ModelError, match="not 'logits'"):
        map_tiles(array, unet, output="logits")
    with pytest.raises(ModelError, match="neither resamples nor inverts"):
        map_tiles(array, unet, options=Options(rescale=True))
    for idle in (Options(exact=True), Options(skip_empty=True)):
        with pytest.raises(ModelError, match="neither chooses tiles nor finds what is empty"):
            map_tiles(array, unet, options=idle)
    with pytest.raises(ModelError, match="no class"):
        map_tiles(array, unet, options=Options(probabilities=("nonsense",)), output="probabilities")
