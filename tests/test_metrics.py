"""Scores against slow obvious references and cases worked out by hand."""

from __future__ import annotations

from collections import deque
from itertools import product
from math import log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from tilelab.evaluation.metrics import count_confusion, score_confusion
from tilelab.evaluation.metrics.isbi import THRESHOLDS, overlaps, score_information, score_isbi, score_rand
from tilelab.evaluation.metrics.regions import flood_regions, label_regions
from tilelab.evaluation.metrics.surface import SurfaceDistances, find_surface, measure_surfaces

planes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
few = settings(max_examples=60)


def masks(shape):
    return hnp.arrays(np.bool_, shape, elements=st.booleans(), fill=st.nothing())


# --- counting ---------------------------------------------------------------------------------------------------


@few
@given(st.data())
def test_confusion_counts_every_pixel_once(data):
    shape = data.draw(planes)
    labels, truth = (
        data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 4) | st.just(255))) for _ in range(2)
    )
    ignore = data.draw(st.sampled_from([None, 0, 255]))
    counts = count_confusion(labels, truth, ignore=ignore)
    expected = np.zeros((256, 256), int)
    for p, t in zip(labels.flat, truth.flat, strict=True):
        if t != ignore:
            expected[t, p] += 1
    np.testing.assert_array_equal(counts, expected)


def test_confusion_of_blocks_adds_up_to_that_of_the_whole():
    rng = np.random.default_rng(0)
    labels, truth = rng.integers(0, 3, (2, 1200, 1100), dtype=np.uint8)  # more than are counted at once
    whole = count_confusion(labels, truth)
    parts = sum(count_confusion(labels[a : a + 500], truth[a : a + 500]) for a in (0, 500, 1000))
    np.testing.assert_array_equal(whole, parts)
    assert whole.sum() == labels.size


def test_confusion_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        count_confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))


@few
@given(st.data())
def test_scores_are_those_of_sets_of_pixels(data):
    shape = data.draw(planes)
    labels, truth = (data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3))) for _ in range(2))
    scores = score_confusion(count_confusion(labels, truth)[:5, :5])
    assert scores.pixel_accuracy == pytest.approx(np.mean(labels == truth))
    for k in range(5):
        mine = {i for i, v in enumerate(labels.flat) if v == k}
        true = {i for i, v in enumerate(truth.flat) if v == k}
        if not mine and not true:
            assert all(np.isnan(values[k]) for values in (scores.iou, scores.dice, scores.precision, scores.recall))
            continue
        both = len(mine & true)
        assert scores.iou[k] == pytest.approx(both / len(mine | true))
        assert scores.dice[k] == pytest.approx(2 * both / (len(mine) + len(true)))
        assert scores.precision[k] == pytest.approx(both / len(mine) if mine else 0)
        assert scores.recall[k] == pytest.approx(both / len(true) if true else 0)
        p, r = scores.precision[k], scores.recall[k]
        assert scores.f1[k] == pytest.approx(2 * p * r / (p + r) if both else 0)
    assert scores.mean_iou == pytest.approx(np.nanmean(scores.iou))


def test_scores_worked_by_hand():
    #              predicted 0  1  2        class 1 is never predicted, class 3 occurs nowhere
    counts = np.array([[6, 0, 2, 0], [1, 0, 1, 0], [0, 0, 10, 0], [0, 0, 0, 0]])
    scores = score_confusion(counts)
    assert scores.pixel_accuracy == 16 / 20
    np.testing.assert_allclose(scores.iou, [6 / 9, 0, 10 / 13, nan])
    np.testing.assert_allclose(scores.dice, [12 / 15, 0, 20 / 23, nan])
    np.testing.assert_allclose(scores.precision, [6 / 7, 0, 10 / 13, nan])
    np.testing.assert_allclose(scores.recall, [6 / 8, 0, 1, nan])
    assert scores.mean_iou == pytest.approx((6 / 9 + 0 + 10 / 13) / 3)
    assert scores.foreground_f1 == pytest.approx((0 + 20 / 23) / 2)


def test_nothing_counted_has_no_scores():
    scores = score_confusion(np.zeros((2, 2), np.int64))
    assert np.isnan([scores.pixel_accuracy, scores.mean_iou, scores.mean_dice, scores.foreground_f1]).all()


# --- regions ----------------------------------------------------------------------------------------------------


def watershed_by_flooding(grey):
    """Soille and Vincent's algorithm, level by level, for any image; 0 on the lines.

    Pixels are visited columns before rows, neighbours in the order left, up, right, down.
    """
    height, width = grey.shape
    everywhere = [(x, y) for x in range(width) for y in range(height)]
    label = dict.fromkeys(everywhere, "unseen")

    def neighbours(p):
        x, y = p
        return [q for q in ((x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1)) if q in label]

    basins = 0
    flag = False
    for level in sorted(set(grey.flat)):
        here = [p for p in everywhere if grey[p[1], p[0]] == level]
        queue = deque()
        for p in here:
            label[p] = "mask"
            if any(isinstance(label[q], int) for q in neighbours(p)):
                label[p] = "queued"
                queue.append(p)
        while queue:
            p = queue.popleft()
            for q in neighbours(p):
                if isinstance(label[q], int) and label[q] > 0:
                    if label[p] == "queued" or (label[p] == 0 and flag):
                        label[p] = label[q]
                    elif label[p] != 0 and label[p] != label[q]:
                        label[p] = 0
                        flag = False
                elif label[q] == 0:
                    if label[p] == "queued":
                        label[p] = 0
                        flag = True
                elif label[q] == "mask":
                    label[q] = "queued"
                    queue.append(q)
        for p in here:
            if label[p] == "mask":
                basins += 1
                label[p] = basins
                queue.append(p)
                while queue:
                    for q in neighbours(queue.popleft()):
                        if label[q] == "mask":
                            label[q] = basins
                            queue.append(q)
    return np.array([[label[x, y] for x in range(width)] for y in range(height)])


def same_partition(a, b):
    """Whether two numberings agree up to the numbers, 0 excepted."""
    pairs = set(zip(a.flat, b.flat, strict=True))
    return len(pairs) == len({p for p, _ in pairs}) == len({q for _, q in pairs}) and all(
        (p == 0) == (q == 0) for p, q in pairs
    )


@few
@given(planes.flatmap(masks))
def test_regions_are_the_connected_components(mask):
    labels = label_regions(mask)
    expected, count = ndimage.label(mask)
    assert labels.max() == count
    assert same_partition(labels, expected)


@settings(max_examples=150)
@given(planes.flatmap(masks))
def test_flooding_is_the_classic_watershed(mask):
    np.testing.assert_array_equal(flood_regions(mask), watershed_by_flooding(np.where(mask, 0, 255)))


@pytest.mark.parametrize("seed", range(20))
def test_flooding_wide_plains_is_the_classic_watershed(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((24, 31)) < rng.uniform(0.005, 0.08)
    np.testing.assert_array_equal(flood_regions(mask), watershed_by_flooding(np.where(mask, 0, 255)))


def test_a_thick_line_becomes_thin_and_a_gap_stays_open():
    mask = np.ones((7, 9), bool)
    mask[:, 3:6] = False
    assert np.unique(flood_regions(mask)[:, 4]).tolist() == [0]
    assert (flood_regions(mask) == 0).sum() == 7
    mask[3, 3:6] = True
    assert np.unique(flood_regions(mask)).tolist() == [1]


# --- ISBI -------------------------------------------------------------------------------------------------------


def slow_scores(truth, proposal):
    """V_rand and V_info of two numberings, from the dense table, term by term."""
    n = sum(1 for t in truth.flat if t > 0)
    p = np.zeros((truth.max() + 1, proposal.max() + 1))
    for t, b in zip(truth.flat, proposal.flat, strict=True):
        p[t, b] += 1 / n
    rows, columns = range(1, p.shape[0]), range(1, p.shape[1])
    a = [sum(p[i, j] for j in range(p.shape[1])) for i in rows]
    b = [sum(p[i, j] for i in rows) for j in columns]
    p0 = sum(p[i, 0] for i in rows)
    s_ab = sum(p[i, j] ** 2 for i, j in product(rows, columns)) + p0 / n
    s_a, s_b = sum(v**2 for v in a), sum(v**2 for v in b) + p0 / n
    precision, recall = s_ab / s_b, s_ab / s_a
    rand = 2 * precision * recall / (precision + recall)

    def entropy(values):
        return sum(v * log(v) for v in values if v > 0)

    sa, sb = entropy(a), entropy(b) - p0 * log(n)
    sab = entropy([p[i, j] for i, j in product(rows, columns)]) - p0 * log(n)
    ha, hb, h_ab, h_ba = -sa, -sb, sb - sab, sa - sab
    if abs(ha) < 1e-12 or abs(hb) < 1e-12:
        return rand, 0.0
    precision, recall = (ha - h_ab) / ha, (hb - h_ba) / hb
    return rand, 2 * precision * recall / (precision + recall) if precision + recall else nan


@settings(max_examples=200)
@given(st.data())
def test_isbi_scores_equal_the_slow_ones(data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=12))
    truth, proposal = data.draw(masks(shape)), data.draw(masks(shape))
    if not truth.any():
        return
    regions = label_regions(truth), flood_regions(proposal)
    rand, info = slow_scores(ndimage.label(truth)[0], watershed_by_flooding(np.where(proposal, 0, 255)))
    table = overlaps(*regions)
    assert score_rand(table).f == pytest.approx(rand, abs=1e-9)
    assert score_information(table).f == pytest.approx(info, abs=1e-9, nan_ok=True)


def test_isbi_scores_worked_by_hand():
    truth = np.array([[1, 1, 1, 1, 0, 1, 1, 1]])  # A A A A . B B B
    proposal = np.array([[1, 1, 0, 1, 1, 1, 1, 1]])  # 1 1 | 2 2 2 2 2
    # Of 7 pixels in A and B: 2 in A and 1, 1 in A and 2, 3 in B and 2, 1 of A on the line.
    table = overlaps(label_regions(truth > 0), flood_regions(proposal > 0))
    rand = score_rand(table)
    assert rand.precision == pytest.approx(15 / 21, abs=1e-12)  # (4 + 1 + 9 + 1) / (4 + 16 + 1)
    assert rand.recall == pytest.approx(15 / 25, abs=1e-12)  # ... / (16 + 9)
    assert rand.f == pytest.approx(15 / 23, abs=1e-12)
    info = score_information(table)
    truth_entropy = log(7) - (4 * log(4) + 3 * log(3)) / 7
    proposal_entropy = log(7) - (2 * log(2) + 4 * log(4)) / 7
    joint = log(7) - (2 * log(2) + 3 * log(3)) / 7
    shared = truth_entropy + proposal_entropy - joint
    assert info.precision == pytest.approx(shared / truth_entropy, abs=1e-12)
    assert info.recall == pytest.approx(shared / proposal_entropy, abs=1e-12)
    assert info.f == pytest.approx(0.4413181642842770, abs=1e-12)
    scores = score_isbi([(truth, proposal)])
    assert (scores.v_rand, scores.v_info) == (pytest.approx(rand.f), pytest.approx(info.f))


def test_isbi_takes_the_best_threshold_of_the_mean_over_planes():
    rng = np.random.default_rng(3)
    stack = [(rng.random((16, 16)) > 0.3, rng.random((16, 16)).astype(np.float32)) for _ in range(3)]
    scores = score_isbi(stack)
    rand, info = [], []
    for threshold in THRESHOLDS:
        pairs = [
            slow_scores(ndimage.label(t)[0], watershed_by_flooding(np.where(p > threshold, 0, 255))) for t, p in stack
        ]
        rand.append(np.mean([r for r, _ in pairs]))
        info.append(np.mean([i for _, i in pairs]))
    assert scores.v_rand == pytest.approx(max(rand), abs=1e-9)
    assert scores.v_rand_threshold == THRESHOLDS[int(np.argmax(rand))]
    assert scores.v_info == pytest.approx(np.nanmax(info), abs=1e-9)
    assert len(THRESHOLDS) == 11
    assert THRESHOLDS[10] < 1  # so that a truth of 1 is still inside


def test_isbi_conventions_for_degenerate_planes():
    one, none, two = np.ones((4, 5)), np.zeros((4, 5)), np.ones((4, 5))
    two[:, 2] = 0
    assert score_isbi([(two, two)]).v_rand == 1
    assert score_isbi([(two, two)]).v_info == pytest.approx(1)
    assert score_isbi([(one, one)]).v_rand == 1
    assert score_isbi([(one, one)]).v_info == 0  # a single region carries no information
    assert score_isbi([(none, one)]).v_rand == 0
    assert score_isbi([(two, none)]).v_rand == score_isbi([(two, one)]).v_rand  # one basin fills a plane of lines
    with pytest.raises(ValueError, match="no planes"):
        score_isbi([])


# --- surfaces ---------------------------------------------------------------------------------------------------


def slow_surface(plane, label):
    height, width = plane.shape
    return [
        (y, x)
        for y, x in product(range(height), range(width))
        if plane[y, x] == label
        and any(
            0 <= v < height and 0 <= u < width and plane[v, u] != label
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        )
    ]


def slow_assd(labels, truth, label):
    mine, true = slow_surface(labels, label), slow_surface(truth, label)
    if not mine and not true:
        return nan
    if not mine or not true:
        return np.inf
    total = sum(
        min(sqrt((a - c) ** 2 + (b - d) ** 2) for c, d in other)
        for one, other in ((mine, true), (true, mine))
        for a, b in one
    )
    return total / (len(mine) + len(true))


@few
@given(st.data())
def test_assd_equals_the_slow_one_whatever_the_slabs(data):
    shape = data.draw(planes)
    labels, truth = (
        data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 2), fill=st.just(0))) for _ in range(2)
    )
    slab = data.draw(st.sampled_from([1, 2, 5, None]))
    found = measure_surfaces(lambda a, b: (labels[a:b], truth[a:b]), shape, [1, 2], slab=slab)
    np.testing.assert_allclose(found.assd, [slow_assd(labels, truth, k) for k in (1, 2)], rtol=1e-12)


def test_assd_of_large_shapes_agrees_with_scipy():
    rng = np.random.default_rng(1)
    fields = [ndimage.gaussian_filter(rng.standard_normal((300, 257)), 6) for _ in range(2)]
    labels, truth = ((f > 0.02).astype(np.uint8) for f in fields)
    found = measure_surfaces(lambda a, b: (labels[a:b], truth[a:b]), labels.shape, [1], slab=37)
    mine, true = find_surface(labels == 1), find_surface(truth == 1)
    distances = [ndimage.distance_transform_edt(~true)[mine], ndimage.distance_transform_edt(~mine)[true]]
    assert found.count[0] == mine.sum() + true.sum()
    assert found.assd[0] == pytest.approx(np.concatenate(distances).mean(), rel=1e-12)


def test_assd_worked_by_hand():
    labels, truth = np.zeros((2, 20, 30), np.uint8)
    labels[5:10, 5] = 1
    truth[5:10, 9] = 1
    found = measure_surfaces(lambda a, b: (labels[a:b], truth[a:b]), labels.shape, [1])
    assert found.assd.tolist() == [4.0]
    nothing = SurfaceDistances(np.array([20.0]), np.array([10]))
    assert (found + nothing).assd.tolist() == [(40 + 20) / 20]


def test_the_frame_is_no_surface():
    filled = np.ones((4, 4), bool)
    assert not find_surface(filled).any()
    filled[0, 0] = False
    assert np.argwhere(find_surface(filled)).tolist() == [[0, 1], [1, 0]]
