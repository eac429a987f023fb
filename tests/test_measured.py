"""Hand-drawn masks, measured as results are, against plain code on whole arrays; the page that is made of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

pytest.importorskip("scipy", reason="extra `test` is not installed")

from benchmarks.trained import measured, plain_measures
from tilelab.evaluation.pairs import list_files

WITHIN = 0.02


@pytest.mark.parametrize("name", measured.SUBJECTS)
def test_masks_measure_as_plain_code_does(name: str, real_data: Path) -> None:
    """All that is told, each within 2 %."""
    subject, masks = measured.SUBJECTS[name], list_files(real_data / name / "val" / "masks")
    paths = list(masks.values())[:2]
    sizes = plain_measures.pixel_sizes(real_data / name, list(masks)[:2])
    told = measured.measure_all(paths, subject, sizes)
    plainly = subject.plainly([plain_measures.read_mask(path) for path in paths], [size or 1.0 for size in sizes])
    assert told.keys() == plainly.keys()
    assert {key: value for key, value in told.items() if abs(value / plainly[key] - 1) > WITHIN} == {}


def test_plain_measures_of_shapes_that_are_known() -> None:
    y, x = np.mgrid[:200, :300]
    ring = np.hypot(y - 100, x - 150)
    mask = np.where(ring < 30, 2, np.where(ring < 50, 1, 0)).astype(np.uint8)
    mask[:5, :60] = 1  # a sheath without an axon
    outer, sheath, ratio = plain_measures.fibres(mask, 2, 1, 2.0)
    assert outer == pytest.approx([200], rel=0.01)
    assert sheath == pytest.approx([40], rel=0.01)
    assert ratio == pytest.approx([0.6], rel=0.01)
    slanted = (abs(y - 100 - 0.5 * (x - 150)) < 20 * np.hypot(1, 0.5)).astype(np.uint8)
    assert plain_measures.layer(slanted[:, 60:240], (1,), 2)[2] == pytest.approx(40, rel=0.02)
    assert plain_measures.inscribed((abs(y - 100) <= 20).astype(np.uint8), (1,)) == pytest.approx(41, abs=1)


def test_the_page_has_a_row_for_every_measure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tilelab.sample import draw_superalloy

    image, truth = draw_superalloy((128, 160), seed=1)
    for what, pixels in (("images", image), ("masks", truth)):
        folder = tmp_path / "data" / "superalloy" / "val" / what
        folder.mkdir(parents=True)
        Picture.fromarray(pixels).save(folder / "a.png")
    monkeypatch.setattr(measured, "bundled_models", dict)
    out = tmp_path / "page.md"
    assert measured.main(["--data", str(tmp_path / "data"), "-o", str(out)]) == 0
    text = out.read_text()
    assert text.count("precipitates,") == 8
    assert text.count("+0.00 %") == 8
    assert "| superalloy |" in text
    assert str(tmp_path) not in text
    assert measured.main(["--data", str(tmp_path / "none"), "-o", str(out)]) == 2
