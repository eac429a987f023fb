"""Scores of objects and outlines against slow, obvious definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Picture
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from tilelab.cli import main
from tilelab.evaluation.metrics.confusion import count_confusion, score_confusion
from tilelab.evaluation.metrics.objects import THRESHOLDS, sum_squares
from tilelab.evaluation.metrics.surface import find_surface, measure_surfaces
from tilelab.measure.components import ArrayPlanes
from tilelab.measure.matching import match_objects


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    """A truth with blobs of two classes, and labels that are something like it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 28)), draw(st.integers(1, 28)))
    truth = ndimage.maximum_filter((rng.random(shape) < 0.06) * rng.integers(1, 3, shape), 4)
    labels = np.where(rng.random(shape) < draw(st.sampled_from([0, 0.02, 0.2])), rng.integers(0, 3, shape), truth)
    return labels.astype(np.uint8), truth.astype(np.uint8)


def reference(labels: Any, truth: Any, least: int) -> dict[str, Any]:
    """Every pair of objects of one class, by masks; matched so that most are (Kuhn and Munkres)."""
    found, true = (_objects(plane, least) for plane in (labels, truth))
    iou = np.array([[(a & b).sum() / (a | b).sum() for b in found] for a in true]).reshape(len(true), len(found))
    matched = []
    for threshold in THRESHOLDS:
        rows, columns = linear_sum_assignment(iou <= threshold)
        matched.append(int((iou[rows, columns] > threshold).sum()))
    rows, columns = linear_sum_assignment(-np.where(iou > 0.5, iou, 0))
    sure = iou[rows, columns]
    true_numbers, found_numbers = (sum((i + 1) * m for i, m in enumerate(some)) + 0 * labels for some in (true, found))
    inside = true_numbers > 0
    a, b = true_numbers[inside].astype(int), found_numbers[inside].astype(int)
    same_true, same_found = a[:, None] == a, b[:, None] == b
    np.fill_diagonal(same_true, False)
    np.fill_diagonal(same_found, False)
    both, pairs = (same_true & same_found).sum(), same_true.sum() + same_found.sum()
    error = 1 - 2 * both / pairs if pairs else (0.0 if inside.any() else math.nan)
    return {"true": len(true), "found": len(found), "matched": matched, "iou": sure[sure > 0.5].sum(), "rand": error}


def _objects(plane: Any, least: int) -> list[Any]:
    numbers, count = ndimage.label(plane)
    return [numbers == i for i in range(1, count + 1) if (numbers == i).sum() >= least]


@settings(max_examples=40)
@given(pairs(), st.integers(0, 4), st.integers(1, 9))
def test_objects_are_matched_as_masks_are(pair: tuple[Any, Any], least: int, rows: int) -> None:
    labels, truth = pair
    grid = (1, min(rows, len(truth)))
    scores = match_objects(ArrayPlanes(labels), ArrayPlanes(truth), (1, 2), min_pixels=least, grid=grid)
    for label, one in enumerate(scores, start=1):
        expected = reference(labels == label, truth == label, least)
        assert (one.true, one.found, one.matched.tolist()) == tuple(expected[k] for k in ("true", "found", "matched"))
        assert one.iou == pytest.approx(expected["iou"])
        np.testing.assert_allclose(one.rand_error, expected["rand"], rtol=1e-12, atol=1e-12)
        if one.true + one.found:
            tp, fp, fn = one.matched[0], one.found - one.matched[0], one.true - one.matched[0]
            assert one.panoptic_quality == pytest.approx(expected["iou"] / (tp + fp / 2 + fn / 2))
            at = [m / (one.true + one.found - m) for m in one.matched]
            assert one.average_precision == pytest.approx(np.mean(at))
        else:
            assert math.isnan(one.panoptic_quality)
    total = scores[0] + scores[1]
    assert total.true == scores[0].true + scores[1].true


def test_squares_have_no_largest_sum() -> None:
    values = np.array([2**40 + 7, 3, 2**35 + 1, 0])
    assert sum_squares(values) == sum(int(v) ** 2 for v in values)


@settings(max_examples=40)
@given(pairs(), st.sampled_from([0.0, 1.0, 2.0, 3.5]), st.integers(1, 9))
def test_boundary_f_is_that_of_all_distances(pair: tuple[Any, Any], tolerance: float, slab: int) -> None:
    labels, truth = pair

    def read(start: int, stop: int) -> tuple[Any, Any]:
        return labels[start:stop], truth[start:stop]

    found = measure_surfaces(read, truth.shape, (1, 2), tolerance=tolerance, slab=slab).boundary_f
    for label in (1, 2):
        outlines = [np.argwhere(find_surface(plane == label)) for plane in (labels, truth)]
        if not any(map(len, outlines)):
            assert math.isnan(found[label - 1])
            continue
        if not all(map(len, outlines)):
            assert found[label - 1] == 0
            continue
        apart = np.linalg.norm(outlines[0][:, None] - outlines[1][None], axis=-1)
        precision, recall = (apart.min(axis=1) <= tolerance).mean(), (apart.min(axis=0) <= tolerance).mean()
        expected = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert found[label - 1] == pytest.approx(expected)


@given(pairs())
def test_pooled_iou_is_that_of_all_channels_together(pair: tuple[Any, Any]) -> None:
    labels, truth = pair
    found, true = (np.stack([plane == k for k in range(3)]) for plane in (labels, truth))
    scores = score_confusion(count_confusion(labels, truth)[:3, :3])
    assert scores.pooled_iou == pytest.approx((found & true).sum() / (found | true).sum())


def test_the_command_scores_objects_and_leaves_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.zeros((60, 80), np.uint8)
    truth[5:15, 5:15] = truth[30:50, 30:50] = 1
    truth[5:15, 60:70] = 255  # nobody knows
    labels = truth % 255
    labels[6:12, 61:66] = 1
    labels[30:50, 30:32] = 0
    for name, plane in (("truth", truth), ("labels", labels)):
        Picture.fromarray(plane).save(tmp_path / f"{name}.png")
    command = ["eval", str(tmp_path / "labels.png"), str(tmp_path / "truth.png"), "--truth-map", "0:0,1:1,255:ignore"]
    command += ["--objects", "--boundary-f", "1", "--json", str(tmp_path / "s.json")]
    assert main(command) == 0
    score = json.loads((tmp_path / "s.json").read_text())["all"]["objects"]["class 1"]
    assert (score["true"], score["found"], score["matched"][0], score["matched"][-1]) == (2, 2, 2, 1)
    assert score["segmentation_quality"] == pytest.approx((1 + 0.9) / 2)
    out = capsys.readouterr().out
    assert "boundary F" in out
    assert "PQ" in out


def test_objects_of_volumes_are_matched_across_slices() -> None:
    truth = np.zeros((6, 20, 20), np.uint8)
    truth[1:5, 2:8, 2:8] = truth[0:3, 12:18, 12:18] = 1
    labels = truth.copy()
    labels[3] = 0  # one is cut in two, of which neither is more than half of it
    (score,) = match_objects(ArrayPlanes(labels), ArrayPlanes(truth), (1,), connectivity=3, grid=(1, 7))
    assert (score.true, score.found, score.matched.tolist()) == (2, 3, [1] * 10)
    assert score.panoptic_quality == pytest.approx(1 / 2.5)
