"""A model remembers what it was trained on: what is unlike it is said, and --fit finds what would make it alike."""

import contextlib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tifffile
from helpers import wait_for

import tilelab
from tilelab.engines.registry import read_spec
from tilelab.errors import ModelError, StrictError
from tilelab.exporting.home import learn_home
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.run.kind.fit import Constants, Fit, scaled
from tilelab.run.kind.home import (
    BLOCK,
    TEXTURE,
    describe_texture,
    distance,
    look,
    normalized,
    strangeness,
    towards,
)
from tilelab.run.kind.suit import look_at_kind
from tilelab.run.normalize import normalization_constants
from tilelab.run.options import Options
from tilelab.sample import draw_superalloy
from tilelab.spec import Home, ModelSpec
from tilelab.view.gather import Gathering
from tilelab.view.live import open_live

BUNDLED = Path(tilelab.__file__).parent / "models" / "bundled" / "superalloy.onnx"
ON_CPU = Options(device="cpu", precision="fp32", threads=1)


def drawn(seed, side=400):
    return draw_superalloy((side, side), seed)[0]


def enlarged(array, factor):
    side = round(array.shape[0] * factor)
    from PIL import Image

    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The bundled model with a memory of drawn micrographs."""
    pytest.importorskip("openvino")
    with contextlib.closing(
        tilelab.load_engine(BUNDLED, device="cpu", precision="fp32", threads=1, tile=(256, 256), trial=False)
    ) as engine:
        home = learn_home(engine, [open_image(drawn(s), axes="yx") for s in range(0, 12, 2)])
        spec = msgspec.structs.replace(engine.spec, home=home, tile=(256, 256), overlap=(64, 64))
    network = onnx.load(BUNDLED)
    next(p for p in network.metadata_props if p.key == "tilelab").value = spec.to_json()
    path = tmp_path_factory.mktemp("model") / "home.onnx"
    onnx.save(network, path)
    return path


def labels_of(run):
    finest = tilelab.read_result(run.path).labels[0]
    return finest.read(Box.whole(finest.shape))


def said(model, image, tmp_path, **options):
    run = tilelab.infer(image, model, tmp_path / "x.ome.zarr", options=replace(ON_CPU, restart=True, **options))
    return [line for line in run.report["assumptions"] if "kind of image" in line["what"]], run


@pytest.mark.parametrize(
    ("change", "foreign"),
    [
        (lambda a: a, False),
        (lambda a: a[::-1, ::-1], False),
        (lambda a: 255 - a, True),
        (lambda a: enlarged(a, 2), True),
        (lambda a: enlarged(a, 0.5), True),
        (lambda a: np.random.default_rng(0).integers(0, 256, a.shape, np.uint8), True),
        (lambda a: (a // 3 + 100).astype(np.uint8), True),
    ],
    ids=["same", "turned", "inverted", "x2", "half", "noise", "contrast"],
)
def test_what_is_unlike_the_training_images_is_said(model, tmp_path, change, foreign):
    image = np.ascontiguousarray(change(drawn(20)))
    assert bool(said(model, image, tmp_path)[0]) == foreign
    if foreign:
        with pytest.raises(StrictError, match="unlike the 6 images"):
            said(model, image, tmp_path, strict=True)


def test_a_result_of_a_foreign_image_has_the_same_bytes_however_it_was_made(model, tmp_path, monkeypatch):
    """What was assumed of it is kept: as it was looked for and named, and not at all where a view had begun it."""
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", 255 - drawn(20))
    options = replace(ON_CPU, lanes=1)
    alone = tilelab.infer("a.tif", model, "alone.ome.zarr", options=options)
    assert [line for line in alone.report["notes"] if "a.tif: most like the images of the training" in line]
    runs = [tilelab.infer(tmp_path / "a.tif", model, "absolute.ome.zarr", options=options)]
    runs += [outcome.run for outcome in tilelab.infer_many(["a.tif"], model, ".", options=options)]
    with (
        Gathering(print) as gathered,
        open_live("a.tif", str(model), "seen.ome.zarr", options, gathered, print) as live,
    ):
        assert live is not None
        live.read("labels", Box((0, 0, 0), (1, *drawn(20).shape)))
        wait_for(lambda: live.units_done, "what was seen on the disk")
    runs.append(tilelab.infer("a.tif", model, "seen.ome.zarr", options=options))
    expected = {path.relative_to(alone.path): path.read_bytes() for path in alone.path.rglob("*") if path.is_file()}
    assert "unlike the 6 images" in expected[Path("zarr.json")].decode()
    for run in runs:
        found = {path.relative_to(run.path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
        assert found.keys() == expected.keys()
        assert [name for name in found if found[name] != expected[name]] == []


def test_one_strange_place_makes_no_strange_image(model):
    """Of a small image one tile is looked at; before it is called foreign, more of them are."""
    image = drawn(20, 512)
    image[:256, :256] = enlarged(image[:256, :256], 1.4)[:256, :256]
    with contextlib.closing(tilelab.load_engine(model, device="cpu", threads=1, tile=(256, 256), trial=False)) as own:
        mean, gain, _ = normalization_constants(Volume(open_image(image, axes="yx")), own.spec.normalization, 1)
        part, whole = (
            look_at_kind(open_image(np.ascontiguousarray(pixels), axes="yx"), own, ON_CPU, mean, gain)
            for pixels in (image[:256, :256], image)
        )
    assert part
    assert not whole


def test_fit_finds_scale_and_polarity(model, tmp_path):
    plain, truth = draw_superalloy((400, 400), 20)
    image = enlarged(255 - plain, 2)
    lines, run = said(model, image, tmp_path, fit=True)
    assert "inverted" in lines[0]["taken"]
    labels = labels_of(run)
    assert 200 <= labels.shape[0] <= 570
    same = labels[(np.arange(400) * labels.shape[0]) // 400][:, (np.arange(400) * labels.shape[1]) // 400]
    unfit = labels_of(said(model, 255 - plain, tmp_path)[1])
    assert (same == truth).mean() > 0.9 > 0.6 > (unfit == truth).mean()


def test_workers_fit_as_one_process_does(model, tmp_path):
    pytest.importorskip("distributed")
    image = tmp_path / "big.tif"
    tifffile.imwrite(image, enlarged(255 - drawn(20, 384), 2))
    runs = [
        tilelab.infer(image, model, tmp_path / f"{n}.ome.zarr", options=replace(ON_CPU, fit=True, workers=n))
        for n in (1, 2)
    ]
    first, second = (labels_of(run) for run in runs)
    assert first.shape != (768, 768)
    np.testing.assert_array_equal(first, second)


def test_scale_and_invert_by_hand(tmp_path):
    image = drawn(20, 300)
    run = tilelab.infer(image, BUNDLED, tmp_path / "a.ome.zarr", options=replace(ON_CPU, scale=0.5, invert=True))
    half = scaled(open_image(image, axes="yx"), 0.5)
    changed = 255 - half.read(Box.whole(half.shape))
    same = tilelab.infer(changed, BUNDLED, tmp_path / "b.ome.zarr", options=ON_CPU)
    first, second = (labels_of(r) for r in (run, same))
    np.testing.assert_array_equal(first, second)


def test_fit_needs_a_memory(tmp_path):
    with pytest.raises(ModelError, match="--like"):
        tilelab.infer(drawn(0, 64), "identity", tmp_path / "a.ome.zarr", options=Options(fit=True))


def test_constants_invert_and_match_contrast():
    rng = np.random.default_rng(0)
    raw = rng.normal(90, 11, 5000).astype(np.float32)
    given = Constants(np.array([120.0], np.float32), np.array([0.05], np.float32), 0, 255)
    home = Home(mean=(0.3, -0.2), covariance=(1.0, 0.0, 1.0), limit=1, images=1)
    mean, gain = Fit(invert=True).constants(given, home, raw)
    np.testing.assert_allclose((raw - mean) * gain, (255 - raw - 120) * 0.05, atol=1e-4)
    mean, gain = Fit(invert=True, matched=True).constants(given, home, raw)
    values = (raw - mean) * gain
    assert gain[0] < 0
    np.testing.assert_allclose([values.mean(), values.std()], [0.3, np.exp(-0.2)], rtol=1e-3)


def test_texture_tells_scale_and_not_place():
    texture = describe_texture(drawn(0)[:BLOCK, :BLOCK].astype(np.float32))
    assert texture.shape == (TEXTURE,)
    assert np.isfinite(describe_texture(np.full((40, 300), 7, np.float32))).all()
    turned = describe_texture(drawn(0)[:BLOCK, :BLOCK][::-1].astype(np.float32))
    larger = describe_texture(enlarged(drawn(0), 2)[:BLOCK, :BLOCK].astype(np.float32))
    assert np.abs(texture - turned).max() < 0.5 < np.abs(texture - larger).max()


def test_distance_is_that_of_mahalanobis():
    rng = np.random.default_rng(0)
    part = rng.normal(size=(3, 3))
    covariance = part @ part.T + np.eye(3)
    home = Home(mean=(1.0, 2.0, 3.0), covariance=tuple(covariance[np.tril_indices(3)]), limit=1, images=1)
    one = rng.normal(size=3)
    off = one - [1, 2, 3]
    assert distance(home, one[None]) == pytest.approx(np.sqrt(off @ np.linalg.solve(covariance, off)))


def test_a_home_is_kept_in_the_description():
    home = Home(mean=(1.0,), covariance=(2.0,), limit=3.0, images=4)
    spec = ModelSpec(classes=(), tile=(8, 8), overlap=(0, 0), outputs=(tilelab.spec.Output(kind="map"),), home=home)
    assert ModelSpec.from_json(spec.to_json()).home == home
    assert "home" not in msgspec.structs.replace(spec, home=None).to_json()
    with pytest.raises(ValueError, match="covariances"):
        Home(mean=(1.0,), covariance=(1.0, 2.0), limit=1, images=1)


def test_fit_and_a_scale_contradict_each_other(model, tmp_path):
    with pytest.raises(ModelError, match="leave --scale and --rescale out"):
        said(model, drawn(20), tmp_path, fit=True, scale=0.5)


def test_what_lies_towards_another_kind_is_foreign_however_near():
    """On the line to the other kind two spreads are home's bound; across it only the distance counts."""
    home = Home(mean=(0.0, 0.0), covariance=(4.0, 0.0, 1.0), limit=10.0, images=6, others=((20.0, 0.0),), bounds=(2.0,))
    away = np.array([[3.0, 0.0], [7.0, 0.0]])  # on the mean 2.5 spreads
    assert towards(home, away) == pytest.approx([2.5])
    assert strangeness(home, away) == pytest.approx(1.25)
    assert strangeness(home, -away) < 0.4
    assert strangeness(home, np.array([[0.0, 9.0]])) == pytest.approx(0.9)
    assert strangeness(home, np.array([[0.0, 11.0]])) == pytest.approx(1.1)
    plain = Home(mean=(0.0,), covariance=(1.0,), limit=2.0, images=1)
    assert strangeness(plain, np.array([[3.0]])) == 1.5
    assert b"bounds" not in msgspec.json.encode(plain)
    with pytest.raises(ValueError, match="bound for each other kind"):
        Home(mean=(0.0,), covariance=(1.0,), limit=2.0, images=1, others=((1.0,),))


def test_home_knows_what_it_would_look_like_changed(model):
    """None of the images that it was learnt from lies towards any of the others as far as the bounds."""
    home = read_spec(model).home
    assert len(home.others) == 4  # at half the size they would be smaller than a block
    far = [(np.array(other) - home.mean) for other in home.others]
    assert all(np.linalg.norm(off) > 0 for off in far)
    assert min(home.bounds) >= 1


def test_what_is_cut_off_for_the_network_is_cut_off_where_the_image_is_looked_at():
    from tests.tiny_models import make_spec
    from tilelab.engines.base import BaseEngine

    seen = []

    class Spy(BaseEngine):
        def run(self, tiles, out):
            seen.append(tiles.copy())
            out[:] = 0

    spec = make_spec((64, 64))
    spec = msgspec.structs.replace(spec, normalization=msgspec.structs.replace(spec.normalization, clip=(-0.5, 0.5)))
    mean, gain = np.float32([128]), np.float32([1 / 64])
    image = open_image(drawn(0, 100), axes="yx")
    look(Volume(image), Spy(spec), mean, gain)
    assert max(np.abs(tile).max() for tile in seen) == 0.5
    pixels = image[...][None, :64, :64]
    plain = normalized(pixels, mean, gain, (64, 64))
    np.testing.assert_array_equal(normalized(pixels, mean, gain, (64, 64), (-0.5, 0.5)), np.clip(plain, -0.5, 0.5))
