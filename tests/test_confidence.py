"""Probabilities that can be believed: the temperature is found, kept in the model, and changes no label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_spec, save_conv, save_unet

import tilelab
from tilelab.engines.registry import read_spec
from tilelab.errors import ModelError
from tilelab.evaluation.metrics.confidence import Answers, calibrate, calibration_error, fit_temperature, lattice_step
from tilelab.geometry import Box
from tilelab.kernels.reference import SIGMOID, SOFTMAX, to_probabilities
from tilelab.sample import draw_superalloy
from tilelab.spec import Confidence, ModelSpec

WORDS: dict[str, Any] = {"device": "cpu", "engine": "onnxruntime", "probabilities": ("all",)}


def written(model: object, out: Path, **words: Any) -> tuple[Any, Any]:
    """Labels and probabilities of a drawn micrograph."""
    image = out.with_name("image.tif")
    tifffile.imwrite(image, draw_superalloy((150, 130), 5)[0])
    tilelab.infer(image, model, out, **(WORDS | words))
    result = tilelab.read_result(out)
    labels, shares = result.labels[0], result.probabilities[0]
    return labels.read(Box.whole(labels.shape)), shares.read(Box.whole(shares.shape))


def answers(seed: int, activation: int, temperature: float, count: int = 30_000) -> Answers:
    """Of a network whose logits are too large by `temperature`, and else right."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (3 if activation == SOFTMAX else 1, count)).astype(np.float32)
    chances = to_probabilities(logits, activation)
    truth = (rng.random(count) > np.cumsum(chances, axis=0)[:-1]).sum(axis=0).astype(np.uint8)
    return Answers(logits * np.float32(temperature), truth)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 99), st.sampled_from([SOFTMAX, SIGMOID]), st.floats(0.5, 3))
def test_the_temperature_is_found_and_mends_the_error(seed: int, activation: int, temperature: float) -> None:
    said = answers(seed, activation, temperature)
    found = fit_temperature(said, activation)
    assert found == pytest.approx(temperature, rel=0.06)
    assert calibration_error(said, activation, found) < 0.015
    if abs(np.log(temperature)) > 0.5:
        assert calibration_error(said, activation) > 0.03


def test_an_image_is_judged_by_what_the_others_teach() -> None:
    """One whose logits are right beside two whose are too large: its error is that of their temperature."""
    images = [answers(1, SOFTMAX, 1.0), answers(2, SOFTMAX, 2.5), answers(3, SOFTMAX, 2.5)]
    found = calibrate(images, SOFTMAX)
    assert found is not None
    assert found.images == 3
    assert 1 < found.temperature < 2.5
    own = calibrate(images[1:], SOFTMAX)
    assert own is not None
    assert own.ece[1] < 0.015 < 0.05 < own.ece[0]
    assert found.ece[1] > 2 * own.ece[1]
    assert calibrate([Answers(images[0].logits[:, :0], images[0].truth[:0])], SOFTMAX) is None


def test_ignored_pixels_and_the_lattice() -> None:
    logits, truth = np.zeros((2, 600, 500), np.float32), np.zeros((600, 500), np.uint8)
    truth[:, :250] = 255
    step = lattice_step(truth.shape)
    seen = Answers.of(logits, truth, ignore=255)
    assert step == 3
    assert seen.truth.size == 200 * sum(x >= 250 for x in range(0, 500, step))
    assert not seen.truth.any()


def test_a_description_says_it_only_where_it_is_known() -> None:
    spec = make_spec((32, 32), classes=3)
    assert "confidence" not in spec.to_json()
    sure = msgspec.structs.replace(spec, confidence=Confidence(temperature=1.5, images=4, ece=(0.05, 0.01)))
    assert ModelSpec.from_json(sure.to_json()) == sure
    assert sure.sharpness == pytest.approx(1 / 1.5)
    with pytest.raises(ModelError, match="temperature"):
        ModelSpec.from_json(sure.to_json().replace("1.5", "-1.5"))


@pytest.mark.parametrize("words", [{}, {"uncertainty": "entropy"}], ids=["plain", "entropy"])
def test_labels_stay_and_probabilities_are_those_of_cooler_logits(tmp_path: Path, words: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime")
    spec = make_spec((64, 64), classes=3, stride=4)
    sure = msgspec.structs.replace(spec, confidence=Confidence(temperature=2.5))
    found = {}
    for name, kind in (("raw", spec), ("sure", sure)):
        model = save_unet(tmp_path / f"{name}.onnx", (64, 64), classes=3, spec=kind)
        assert read_spec(model) == kind
        found[name] = written(model, tmp_path / f"{name}.ome.zarr", logits=True, **words)
    np.testing.assert_array_equal(found["raw"][0], found["sure"][0])
    shares = []
    for name, temperature in (("raw", 1.0), ("sure", 2.5)):
        logits = np.asarray(tilelab.read_result(tmp_path / f"{name}.ome.zarr").logits)
        exact = to_probabilities(logits, SOFTMAX, 1 / temperature)
        np.testing.assert_allclose(found[name][1], 255 * exact, atol=1.01)
        shares.append(exact)
    assert np.abs(shares[0] - shares[1]).max() > 0.1


def test_an_ensemble_believes_each_member_as_it_says(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    spec = make_spec((64, 64), classes=3, stride=4)
    sure = msgspec.structs.replace(spec, confidence=Confidence(temperature=4.0))
    paths = [
        str(save_unet(tmp_path / f"{name}.onnx", (64, 64), classes=3, spec=kind))
        for name, kind in (("a", spec), ("b", sure))
    ]
    both = ",".join(paths)
    words = {"overlap": 0}  # what is blended of an ensemble are its logits
    shares = [
        written(model, tmp_path / f"{k}.ome.zarr", **words)[1].astype(float) for k, model in enumerate((*paths, both))
    ]
    assert np.abs(shares[0] - shares[1]).max() > 10
    np.testing.assert_allclose(shares[2], (shares[0] + shares[1]) / 2, atol=1.1)


def test_an_ensemble_has_the_same_bytes_whatever_the_workers(tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    pytest.importorskip("onnxruntime")
    sure = msgspec.structs.replace(make_spec((64, 64), classes=3, stride=4), confidence=Confidence(temperature=3.0))
    first = save_unet(tmp_path / "a.onnx", (64, 64), classes=3, spec=sure)
    other = msgspec.structs.replace(sure, stride=1)
    paths = [str(first), str(save_conv(tmp_path / "b.onnx", (64, 64), classes=3, spec=other))]
    found = [
        written(",".join(paths), tmp_path / f"{n}.ome.zarr", uncertainty="models", workers=n) for n in (None, 1, 2)
    ]
    for again in found[1:]:
        for mine, its in zip(found[0], again, strict=True):
            np.testing.assert_array_equal(mine, its)
