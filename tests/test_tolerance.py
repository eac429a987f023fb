"""Scores that forgive a displaced outline: equal to the plainest code, and what they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

import tilelab
from tests.test_survey import blobs
from tilelab.cli import main
from tilelab.errors import InputError
from tilelab.evaluation.metrics.tolerant import count_tolerant


def count_plainly(labels: Any, truth: Any, tolerance: float, left_out: Any) -> Any:
    """By dilations of every class."""
    reach = int(tolerance)
    y, x = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    disc = y**2 + x**2 <= tolerance**2
    counts = np.zeros((256, 256), np.int64)
    near = [{k: ndimage.binary_dilation(one == k, disc) for k in range(4)} for one in (labels, truth)]
    for at in np.ndindex(labels.shape):
        p, t = labels[at], truth[at]
        if t not in left_out:
            counts[t, t if near[1][p][at] and near[0][t][at] else p] += 1
    return counts


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.sampled_from([0, 0.5, 1, 1.5, 2, 3.2]), st.integers(1, 20), st.sets(st.integers(0, 3))
)
def test_pixels_are_counted_as_by_dilations(seed: int, tolerance: float, slab: int, left_out: set[int]) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 20, 2))
    truth = ndimage.maximum_filter(rng.integers(0, 4, shape), 2).astype(np.uint8)
    labels = np.where(rng.random(shape) < 0.3, rng.integers(0, 4, shape), truth).astype(np.uint8)
    found = count_tolerant(lambda a, b: (labels[a:b], truth[a:b]), truth.shape, tolerance, left_out, slab=slab)
    np.testing.assert_array_equal(found, count_plainly(labels, truth, tolerance, left_out))


def test_the_truth_moved_is_right_and_what_is_missed_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = blobs((200, 240))
    moved = np.roll(truth, 1, axis=1)
    missed = truth.copy()
    missed[ndimage.label(truth)[0] == 1] = 0
    for name, image in (("truth", truth), ("moved", moved), ("missed", missed)):
        tifffile.imwrite(tmp_path / f"{name}.tif", image)
    scores = [tilelab.evaluate(one, truth, tolerance=1) for one in (moved, missed)]
    assert scores[0].pooled.mean_iou < 0.9
    assert scores[0].tolerant is not None
    assert scores[0].tolerant.mean_iou > 0.99  # what came in at the edge is new
    assert scores[1].tolerant is not None
    assert scores[1].tolerant.mean_iou == pytest.approx(scores[1].pooled.mean_iou, abs=0.005)
    command = ["eval", str(tmp_path / "moved.tif"), str(tmp_path / "truth.tif"), "--tolerance", "1"]
    assert main([*command, "--json", str(tmp_path / "s.json")]) == 0
    assert "mean IoU within 1 px" in capsys.readouterr().out
    told = json.loads((tmp_path / "s.json").read_text())["all"]["tolerant"]
    assert (told["tolerance_px"], told["mean_iou"]) == (1, scores[0].tolerant.mean_iou)


@pytest.mark.parametrize("tolerance", [-1, float("nan"), 1000])
def test_a_tolerance_is_a_few_pixels(tolerance: float) -> None:
    with pytest.raises(InputError, match="from 0 to 100"):
        tilelab.evaluate(np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint8), tolerance=tolerance)
