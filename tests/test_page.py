"""The page of a run: whole in one file, true to the result, and never written over something else."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from tilelab import infer
from tilelab.cli.main import main
from tilelab.errors import OutputError
from tilelab.io.results.drawing import spell
from tilelab.io.results.result import read_result


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (300, 420), np.uint8)
    tifffile.imwrite(tmp_path / "image <b>.tif", pixels)
    return tmp_path / "image <b>.tif"


def test_the_page_tells_of_the_result_and_needs_nothing_else(image, tmp_path):
    run = infer(image, "identity:3", tmp_path / "r.ome.zarr", page=tmp_path / "p.html")
    page = (tmp_path / "p.html").read_text()
    labels = read_result(run.path).labels[0][:]
    for index, known in enumerate(read_result(run.path).info.classes):
        if share := (labels == index).mean():
            assert re.search(rf"{known.name}</td><td>{share:.2%}", page)
    assert "image &lt;b&gt;.tif" in page
    assert "<b>" not in page
    assert not re.search(r"(src|href)\s*=\s*['\"]?(?!data:)\w|https?:|url\(", page)
    assert page.count("data:image/jpeg;base64,") == 2


def test_a_page_replaces_pages_alone(image, tmp_path):
    model = "identity:3"
    notes = tmp_path / "notes.html"
    notes.write_text("my notes")
    with pytest.raises(OutputError, match="another kind"):
        infer(image, model, tmp_path / "r.ome.zarr", page=notes)
    assert notes.read_text() == "my notes"
    words = ["infer", str(image), "-m", model, "-o", str(tmp_path / "r.png"), "-q"]
    assert main([*words, "--page", str(tmp_path / "page.txt")]) == 2
    assert main([*words, "--page", str(tmp_path / "page.html")]) == 0
    assert main([*words, "--page", str(tmp_path / "page.html"), "--restart"]) == 0
    assert (tmp_path / "page.html").read_bytes().startswith(b"<!doctype html>")


def test_the_overview_has_the_size_and_kind_that_was_asked_for(image, tmp_path):
    words = ["infer", str(image), "-m", "identity:3", "-o", str(tmp_path / "r.ome.zarr"), "-q"]
    for name, kind, size in (("a.jpg", "JPEG", 300), ("b.png", "PNG", 900)):
        assert main([*words, "--overview", str(tmp_path / name), "--overview-size", str(size)]) == 0
        with Picture.open(tmp_path / name) as picture:
            assert picture.format == kind
            assert size <= picture.width <= size + 60
    assert main([*words, "--overview", str(tmp_path / "c.gif")]) == 2


def test_letters_that_the_font_lacks_are_spelt():
    assert spell("\N{GREEK SMALL LETTER GAMMA}\N{PRIME} phase") == "gamma' phase"
    assert spell(
        "\N{GREEK CAPITAL LETTER OMEGA}, pr\N{LATIN SMALL LETTER E WITH ACUTE}cipit\N{LATIN SMALL LETTER E WITH ACUTE}"
    ) == ("Omega, precipite")
    assert spell("4 nm/px") == "4 nm/px"
