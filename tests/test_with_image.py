"""A result that carries its micrograph: pixel for pixel below the labels, the same bytes after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05.image import Image as NgffImage
from ome_zarr_models.v05.image_label import ImageLabel

import tilelab
from tilelab.errors import Interrupted, OutputError
from tilelab.io import open_image
from tilelab.io.results import with_image
from tilelab.io.results.result import read_result
from tilelab.view.gather import recorded_image

WORDS: dict[str, Any] = {"tile": 64, "overlap": 16, "with_image": True}


@pytest.fixture
def micrograph(tmp_path: Path) -> Path:
    pixels = (np.add.outer(np.arange(300), np.arange(260)) // 3).astype(np.uint8)
    tifffile.imwrite(tmp_path / "big.tif", pixels)
    return tmp_path / "big.tif"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("probabilities", [("all",), ("none",)])
def test_the_root_is_the_micrograph_with_labels_over_it(micrograph: Path, tmp_path: Path, probabilities: Any) -> None:
    out = tmp_path / "r.ome.zarr"
    tilelab.infer(micrograph, "identity:2", out, region="10:260,4:230", probabilities=probabilities, **WORDS)
    plain = tmp_path / "p.ome.zarr"
    tilelab.infer(
        micrograph, "identity:2", plain, region="10:260,4:230", probabilities=probabilities, tile=64, overlap=16
    )
    expected = tifffile.imread(micrograph)[10:260, 4:230]
    with open_image(out) as image:
        np.testing.assert_array_equal(image[...], expected)
        assert image.origin_px == pytest.approx((10, 4))
    mine, theirs = read_result(out), read_result(plain)
    np.testing.assert_array_equal(mine.labels[0][...], theirs.labels[0][...])
    root = json.loads((out / "zarr.json").read_text())["attributes"]["ome"]
    before = json.loads((plain / "zarr.json").read_text())["attributes"]["ome"]
    assert root["multiscales"][1] == before["multiscales"][0]
    labels = json.loads((out / "labels/classes/zarr.json").read_text())["attributes"]["ome"]["multiscales"][0]
    shown, under = root["multiscales"][0]["datasets"], labels["datasets"]
    for one, other in zip(shown, under, strict=True):  # every level lies where that of the labels does
        assert one["coordinateTransformations"] == other["coordinateTransformations"]
    stated = NgffImage.from_zarr(zarr.open_group(out, mode="r")).ome_attributes
    assert next(dataset.path for dataset in stated.multiscales[0].datasets) == "image/0"
    under_it = ImageLabel.from_zarr(zarr.open_group(out / "labels/classes", mode="r")).ome_attributes
    assert [color.label_value for color in under_it.image_label.colors] == [0, 1]
    micrograph.unlink()
    assert recorded_image(mine.info, mine.path.parent, mine) == (str(out / "image"), {})


def test_the_page_says_how_long_the_copy_took(micrograph: Path, tmp_path: Path) -> None:
    run = tilelab.infer(micrograph, "identity:2", tmp_path / "r.ome.zarr", page=tmp_path / "r.html", **WORDS)
    assert run.report["seconds"]["with image"] > 0
    assert "</i>with image</td>" in (tmp_path / "r.html").read_text()


def test_a_kill_before_the_end_costs_the_copy_alone(
    micrograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = tmp_path / "first" / "once.ome.zarr"
    tilelab.infer(micrograph, "identity:2", once, **WORDS)
    out = tmp_path / "again" / "once.ome.zarr"
    for name in ("write_pyramid", "replace_file"):

        def killed(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(with_image, name, killed)
            with pytest.raises(Interrupted):
                tilelab.infer(micrograph, "identity:2", out, **WORDS)
    run = tilelab.infer(micrograph, "identity:2", out, **WORDS)
    assert run.already_finished
    assert tree(out) == tree(once)
    assert tilelab.infer(micrograph, "identity:2", out, **WORDS).already_finished
    assert tree(out) == tree(once)


def test_what_cannot_hold_an_image_is_refused(micrograph: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="--with-image"):
        tilelab.infer(micrograph, "identity:2", tmp_path / "r.ome.tif", **WORDS)
    with pytest.raises(OutputError, match="--with-image"):
        tilelab.infer(micrograph, "identity:2", "s3://lab/r.ome.zarr", **WORDS)
