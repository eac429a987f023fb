"""With a network of finite receptive field, tiled inference equals inference on the whole image."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_models

import tilelab
from tilelab.engines.bundled import bundled_models
from tilelab.engines.overrides import SpecOverrides
from tilelab.engines.registry import load_engine
from tilelab.io.results.result import read_result
from tilelab.run.options import Options
from tilelab.sample import draw_superalloy


def whole_image_logits(model, array, spec):
    """Logits of the image padded to the stride by reflection, in one tile."""
    pads = [(0, -n % spec.stride) for n in array.shape]
    padded = np.pad(array, pads, mode="reflect").astype(np.float32)
    engine = load_engine(model, engine="onnxruntime", tile=padded.shape)
    mean, std = spec.normalization.mean[0], spec.normalization.std[0]
    tiles = ((padded - mean) / std).astype(np.float32)[None, None]
    out = np.empty((1, spec.values, *padded.shape), np.float32)
    engine.run(np.ascontiguousarray(tiles), out)
    engine.close()
    return out[0][(..., *(slice(n) for n in array.shape))]


def tiled(model, array, out, *, engine="onnxruntime", **options):
    overrides = SpecOverrides(**{k: options.pop(k) for k in ("tile", "overlap", "window") if k in options})
    run = tilelab.infer(
        array,
        model,
        out,
        options=Options(engine=engine, precision="fp32", logits=True, model=overrides, **options),
    )
    return read_result(run.path)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("shape", [(200, 170), (96, 333)])
def test_a_tiled_unet_equals_the_whole_image_with_crop(tmp_path, shape, engine):
    spec = tiny_models.make_spec((64, 64), stride=4, tile_fixed=False, receptive_field=25)
    model = tiny_models.save_unet(tmp_path / "unet.onnx", ("y", "x"), spec=spec)
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = whole_image_logits(model, array, spec)
    result = tiled(model, array, tmp_path / "r.ome.zarr", engine=engine, tile=(64,), overlap=(28,), window="crop")
    logits = result.logits[:]
    assert np.abs(logits - expected).max() < 1e-4
    np.testing.assert_array_equal(result.labels[0][:], logits.argmax(axis=0))


def test_too_small_an_overlap_is_seen(tmp_path):
    """The test above can fail."""
    spec = tiny_models.make_spec((64, 64), stride=4, tile_fixed=False)
    model = tiny_models.save_unet(tmp_path / "unet.onnx", ("y", "x"), spec=spec)
    array = np.random.default_rng(0).integers(0, 256, (200, 170), np.uint8)
    result = tiled(model, array, tmp_path / "r.ome.zarr", tile=(64,), overlap=(0,), window="crop")
    assert np.abs(result.logits[:] - whole_image_logits(model, array, spec)).max() > 1e-2


def test_the_bundled_unet_equals_the_whole_image_with_crop(tmp_path):
    model = bundled_models()["superalloy"]
    array, _ = draw_superalloy((450, 650), seed=5)
    engine = load_engine(model, engine="onnxruntime")
    spec = engine.spec
    engine.close()
    if spec.tile_fixed or spec.receptive_field is None:
        pytest.skip("the bundled model is not free in size")
    overlap = -(-spec.receptive_field // (2 * spec.stride)) * 2 * spec.stride
    tile = (overlap + 128) // spec.stride * spec.stride
    expected = whole_image_logits(model, array, spec)
    result = tiled(model, array, tmp_path / "r.ome.zarr", tile=(tile,), overlap=(overlap,), window="crop")
    assert np.abs(result.logits[:] - expected).max() < 1e-4
    assert (result.labels[0][:] == expected.argmax(axis=0)).mean() > 0.99999


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_one_answer_for_any_number_of_threads(tmp_path, engine):
    array, _ = draw_superalloy((440, 640), seed=1)
    first = None
    for threads in (1, 2, 3):
        run = tilelab.infer(
            array,
            "superalloy",
            tmp_path / f"{threads}.ome.zarr",
            options=Options(engine=engine, threads=threads, logits=True, model=SpecOverrides(tile=(256,))),
        )
        logits = read_result(run.path).logits[:]
        first = logits if first is None else first
        np.testing.assert_array_equal(logits, first)


def test_3d_models_sweep_z(tmp_path):
    spec = tiny_models.make_spec((16, 32, 32), stride=4, tile_fixed=False, receptive_field=25)
    model = tiny_models.save_unet(tmp_path / "unet.onnx", ("z", "y", "x"), spec=spec)
    array = np.random.default_rng(0).integers(0, 256, (37, 50, 61), np.uint8)
    expected = whole_image_logits(model, array, spec)
    result = tiled(model, array, tmp_path / "r.ome.zarr", tile=(36, 40, 40), overlap=(28, 28, 28), window="crop")
    assert np.abs(result.logits[:] - expected).max() < 1e-4
    blended = tiled(model, array, tmp_path / "b.ome.zarr", tile=(16, 32, 32), overlap=(8, 16, 16), window="hann")
    assert blended.labels[0].shape == array.shape
    assert (blended.labels[0][:] == expected.argmax(axis=0)).mean() > 0.9
