"""The info bar of SEM micrographs: found by metadata or look, left out where pixels count, and said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from tests.image_files import pixels
from tests.sem_files import MAKERS, draw_bar, draw_micrograph, draw_specimen, write_micrograph
from tilelab import infer, read_result
from tilelab.cli.main import main
from tilelab.errors import StrictError
from tilelab.evaluation.labels import match_heights, open_labels
from tilelab.io import open_image
from tilelab.io.images.bar import bar_rows, known_bar
from tilelab.view.gather import Gathering
from tilelab.view.napari import read_layers

ROWS, BAR = 240, 30
RUN = {"tile": 128, "overlap": 32, "ignore_pixel_size": True}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("plain", [False, True])
def test_of_five_makers(tmp_path: Path, maker: str, plain: bool) -> None:
    path = tmp_path / "a.tif"
    values = write_micrograph(path, maker, rows=ROWS, columns=480, bar=BAR)
    if plain:  # without what the maker says
        tifffile.imwrite(path, values)
        path.with_suffix(".txt").unlink(missing_ok=True)
    with open_image(path) as whole, open_image(path, bar=None) as image, open_image(path, bar=7) as told:
        np.testing.assert_array_equal(whole[...], values)
        np.testing.assert_array_equal(image[...], values[:ROWS])
        assert told.shape == (ROWS + BAR - 7, 480)
        (said,) = [a for a in image.assumptions if a.flag == "--keep-bar"]
        assert said.taken == f"its lowest {BAR} of {ROWS + BAR} rows, left out"
        by_metadata = not plain and maker in ("fei", "tescan", "jeol")
        assert ("says so" in said.because) == by_metadata
        assert not told.assumptions or all(a.flag != "--keep-bar" for a in told.assumptions)
        assert plain or image.pixel_size_nm == pytest.approx((5, 5))


def test_what_was_cut_already_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = write_micrograph(path, "fei", rows=ROWS, columns=480, bar=BAR)
    text = f"[Scan]\nPixelWidth=5e-9\nPixelHeight=5e-9\n[Image]\nResolutionX=480\nResolutionY={ROWS}\n"
    text += f"[PrivateFei]\nDatabarHeight={BAR}\n"
    tifffile.imwrite(path, values[:ROWS], extratags=[(34682, 2, len(text), text, True)])
    with open_image(path, bar=None) as image:
        assert image.shape == (ROWS, 480)
        assert not [a for a in image.assumptions if a.flag == "--keep-bar"]


def _quarter(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return values[len(values) - len(values) // 4 :]


@pytest.mark.parametrize("maker", MAKERS)
def test_the_look_in_16_bits_and_jpeg(maker: str) -> None:
    values = draw_micrograph(maker, 480, 960, 48)
    wide = values.astype(np.uint16) * 200 + 300
    assert bar_rows(_quarter(wide), len(wide)) == 48
    packed = io.BytesIO()
    Picture.fromarray(values).save(packed, "JPEG", quality=95)
    found = bar_rows(_quarter(np.asarray(Picture.open(packed))), len(values))
    assert found == 0 or 44 <= found <= 48  # in doubt it stays


@pytest.mark.parametrize("seed", range(4))
def test_no_bar_is_seen_where_none_is(seed: int) -> None:
    specimen = draw_specimen(400, 640, seed)
    dark = specimen.copy()
    dark[340:] = 3  # a hole at the bottom
    edge = dark.copy()
    edge[360:380, 100:400:30] = 200  # particles of one level in it, five and more
    labels = (specimen > 120).astype(np.uint8) * 255
    noise = pixels((400, 640), np.uint8, seed)
    for values in (specimen, dark, labels, noise, np.zeros((400, 640), np.uint8), draw_bar("jeol", 400, 640)):
        assert bar_rows(_quarter(values), len(values)) == 0
    assert bar_rows(_quarter(edge), len(edge)) in (0, 60)


_HAS_BAR = {"2e4a3ab627"}
"""Real micrographs that do have a bar."""


def test_no_real_micrograph_is_cut(real_data: Path) -> None:
    paths = sorted(real_data.glob("*/*/images/*.png"))
    assert paths
    seen = set()
    for path in paths:
        with open_image(path) as image:
            if known_bar(image) is not None:
                seen.add(path.stem)
    assert seen == _HAS_BAR & {path.stem for path in paths}


def test_what_looks_at_a_result_with_its_micrograph_leaves_it_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, cut = tmp_path / "a.tif", tmp_path / "cut.tif"
    values = write_micrograph(path, "fei", rows=ROWS, columns=480, bar=BAR)
    tifffile.imwrite(path, values)  # no pixel size
    tifffile.imwrite(cut, values[:ROWS])
    run = infer(path, "identity:3", tmp_path / "a.ome.zarr", probabilities=("all",), **RUN)
    with Gathering(lambda _: None) as gathered:
        gathered.add(str(run.path))
        assert {layer.size for layer in gathered.scene().layers} == {(1.0, 1.0, 1.0)}
    shapes = {tuple(data.shape) for data, *_ in read_layers(str(run.path))}
    assert shapes == {(ROWS, 480)}
    picture = tmp_path / "p.png"
    assert main(["review", str(run.path), "--image", str(path), "--picture", str(picture), "--block", "64"]) == 0
    tables = [tmp_path / f"{name}.csv" for name in ("cut", "left_out", "kept")]
    for table, words in zip(tables, ([cut], [path], [path, "--keep-bar"]), strict=True):
        assert main(["sharpness", *map(str, words), "-o", str(table)]) == 0
    assert "--keep-bar" in capsys.readouterr().err
    told = [table.read_text().splitlines()[1].partition(",")[2] for table in tables]
    assert told[0] == told[1] != told[2]


def test_infer_eval_convert_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.tif"
    values = write_micrograph(path, "fei", rows=ROWS, columns=480, bar=BAR)
    run = infer(path, "identity:3", tmp_path / "cut.ome.zarr", **RUN)
    assert any(a["flag"] == "--keep-bar" for a in run.report["assumptions"])
    assert read_result(run.path).labels[0].shape == (ROWS, 480)
    kept = infer(path, "identity:3", tmp_path / "kept.ome.zarr", bar=0, **RUN)
    assert read_result(kept.path).labels[0].shape == values.shape
    np.testing.assert_array_equal(
        read_result(run.path).labels[0][: ROWS - 64], read_result(kept.path).labels[0][: ROWS - 64]
    )
    with pytest.raises(StrictError, match="--keep-bar"):
        infer(path, "identity:3", tmp_path / "strict.ome.zarr", strict=True, **RUN)
    truth = tmp_path / "truth.png"
    Picture.fromarray(np.zeros(values.shape, np.uint8)).save(truth)
    assert main(["eval", str(run.path), str(truth), "--image", str(path), "--pictures", str(tmp_path / "p")]) == 0
    assert f"the lowest {BAR} of {ROWS + BAR} rows of {truth}: left out" in capsys.readouterr().err
    assert main(["convert", str(path), str(tmp_path / "b.ome.zarr")]) == 0
    assert f"has an info bar in its lowest {BAR} rows" in capsys.readouterr().err
    assert main(["info", str(path), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)
    assert (facts["bar"], facts["shape"], facts["image"]["shape"]) == (BAR, [ROWS + BAR, 480], [ROWS, 480])


def test_truth_with_and_without_the_rows(tmp_path: Path) -> None:
    for name, rows in (("high", 120), ("low", 100), ("other", 118)):
        Picture.fromarray(pixels((rows, 90)) // 128).save(tmp_path / f"{name}.png")
    high, low, other = (open_labels(tmp_path / f"{name}.png") for name in ("high", "low", "other"))
    match_heights(high, other)  # two rows are no info bar
    assert high.shape == (1, 120, 90)
    match_heights(low, high)
    assert high.shape == low.shape == (1, 100, 90)
    assert "rows" in str(high.assumptions[-1])
    for labels in (high, low, other):
        labels.close()


def test_training_pairs(tmp_path: Path) -> None:
    from tilelab.training.pairs import open_pairs
    from tilelab.training.sections import Data

    for folder in ("images", "masks", "short"):
        (tmp_path / folder).mkdir()
    values = write_micrograph(tmp_path / "images" / "a.tif", "fei", rows=ROWS, columns=480, bar=BAR)
    Picture.fromarray((values > 128).astype(np.uint8)).save(tmp_path / "masks" / "a.png")
    Picture.fromarray((values[:ROWS] > 128).astype(np.uint8)).save(tmp_path / "short" / "a.png")
    for masks in ("masks", "short"):
        (pair,) = open_pairs(Data("images", masks), tmp_path, 2)
        assert pair.shape == pair.image.shape == (ROWS, 480)
