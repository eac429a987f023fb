"""Doubt is the entropy of the probabilities, block by block, and `review` lists where it lies."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import tilelab
from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.measure.doubt import Doubt, entropy, find_doubt
from tilelab.run.options import Options
from tilelab.sample import draw_superalloy


@settings(max_examples=50)
@given(st.integers(1, 4), st.booleans(), st.integers(0, 2**31))
def test_entropy_is_shannons(classes, exclusive, seed):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes + 1), size=(5, 7)).transpose(2, 0, 1)[:classes]
    stored = np.floor(255 * p).astype(np.uint8)
    p = stored / 255
    whole = [*p, 1 - p.sum(axis=0)] if exclusive else [*p, *(1 - p)]
    expected = sum(-q * np.log2(q, where=q > 0, out=np.zeros_like(q)) for q in whole)
    np.testing.assert_allclose(entropy(stored, exclusive=exclusive), expected, atol=1e-5)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    folder = tmp_path_factory.mktemp("review")
    image = draw_superalloy((300, 420), 4)[0]
    Image.fromarray(image).save(folder / "a.png")
    options = Options(device="cpu", precision="fp32", threads=1)
    run = tilelab.infer(folder / "a.png", "superalloy", folder / "a.ome.zarr", options=options)
    return folder, tilelab.read_result(run.path)


@pytest.mark.parametrize("block", [7, 128, 500])
def test_blocks_hold_what_their_pixels_do(segmented, block):
    _, result = segmented
    stored = result.probabilities[0].read(Box((0, 0, 0), (2, 300, 420)))
    whole = entropy(stored, exclusive=True)
    doubt = find_doubt(result, block)
    assert doubt.pixels.sum() == whole.size
    for at in doubt.ranked()[:3]:
        box = doubt.box(at, (1, 300, 420))
        assert doubt.bits[at] == pytest.approx(whole[box.slices[1:]].mean(), rel=1e-6)
    assert (doubt.bits * doubt.pixels).sum() == pytest.approx(whole.sum(), rel=1e-6)


def test_ranks_by_what_a_place_holds():
    doubt = Doubt(10, np.array([[[1.0, 3.0, 2.0]]]), np.array([[[100.0, 10.0, 100.0]]]))
    assert doubt.ranked() == [(0, 0, 2), (0, 0, 0), (0, 0, 1)]
    assert doubt.share(1) == pytest.approx(200 / 330)
    assert doubt.box((0, 0, 1), (1, 10, 21)).shape == (1, 10, 10)
    assert doubt.box((0, 0, 2), (1, 10, 21)).shape == (1, 10, 1)


def test_the_command_lists_writes_and_draws(segmented, tmp_path, capsys):
    folder, _ = segmented
    table, regions, picture = tmp_path / "t.csv", tmp_path / "r.geojson", tmp_path / "p.png"
    words = ["review", str(folder / "a.ome.zarr"), "--count", "3", "-o", str(table), "--regions", str(regions)]
    assert main([*words, "--picture", str(picture), "--image", str(folder / "a.png")]) == 0
    assert "These 3 places of 128 px hold" in capsys.readouterr().out
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    held = [float(row["bits"]) * int(row["height"]) * int(row["width"]) for row in rows]
    assert held == sorted(held, reverse=True)
    ring = json.loads(regions.read_text())[0]["geometry"]["coordinates"][0]
    assert ring[0] == [int(rows[0]["x"]), int(rows[0]["y"])] == ring[-1]
    drawn = np.asarray(Image.open(picture))
    assert drawn.shape[2] == 3
    assert len(np.unique(drawn)) > 50


def test_without_probabilities_it_says_what_to_do(tmp_path):
    options = replace(Options(device="cpu"), probabilities=("none",))
    run = tilelab.infer(draw_superalloy((64, 64))[0], "identity", tmp_path / "a.ome.zarr", options=options)
    with pytest.raises(InputError, match="infer without --probabilities none"):
        find_doubt(tilelab.read_result(run.path))


def test_places_in_a_region_are_those_of_the_image(segmented, tmp_path, capsys):
    folder, _ = segmented
    options = Options(device="cpu", precision="fp32", threads=1, region="40:290,100:400")
    run = tilelab.infer(folder / "a.png", "superalloy", tmp_path / "r.ome.zarr", options=options)
    table, regions, picture = tmp_path / "t.csv", tmp_path / "r.geojson", tmp_path / "p.png"
    words = ["review", str(run.path), "--count", "3", "-o", str(table), "--regions", str(regions)]
    assert main([*words, "--picture", str(picture), "--image", str(folder / "a.png")]) == 0
    assert "counted from the first pixel of the image, whose region 40:290,100:400 the result is" in (
        capsys.readouterr().out
    )
    with table.open() as file:
        rows = list(csv.DictReader(file))
    corners = {(int(row["y"]), int(row["x"])) for row in rows}
    assert corners == {(40 + y, 100 + x) for y in (0, 128) for x in (0, 128, 256)}
    ring = json.loads(regions.read_text())[0]["geometry"]["coordinates"][0]
    assert ring[0] == [int(rows[0]["x"]), int(rows[0]["y"])]
    assert ring[2] == [ring[0][0] + int(rows[0]["width"]), ring[0][1] + int(rows[0]["height"])]
    assert main(["review", str(run.path), "--picture", str(tmp_path / "q.png"), "--image", str(folder / "a.png")]) == 0
    assert picture.read_bytes() != b""
    Image.fromarray(np.asarray(Image.open(folder / "a.png"))[40:290, 100:400]).save(tmp_path / "part.png")
    for name, image in (("w.csv", folder / "a.png"), ("p.csv", tmp_path / "part.png")):
        assert main(["measure", str(run.path), "--image", str(image), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / "w.csv").read_text() == (tmp_path / "p.csv").read_text()
    next((tmp_path / "r.ome.zarr" / "0").rglob("c/*/0/0")).unlink()
    assert main(["review", str(run.path)]) == 2
    assert "that were written: copy it anew" in capsys.readouterr().err
