"""V_rand and V_info: how well the regions that membranes enclose agree, as the ISBI 2012 challenge scores them.

The definitions follow the challenge's evaluation code, its conventions for degenerate cases included (Arganda-Carreras
et al., Frontiers in Neuroanatomy 9:142, 2015).  Truth and proposal are thresholded; the truth's regions are its
4-connected components, the proposal's are thinned apart by a watershed; only pixels inside the truth's regions count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log
from typing import Any, NamedTuple

import numpy as np

from tilelab.arrays import Array, Float64, Int32
from tilelab.evaluation.metrics.regions import flood_regions, label_regions

THRESHOLDS = (0.0, *accumulate([0.1] * 10))
"""0 to 1 in steps of 0.1, added up as the challenge's code does (the last is 1 - 1e-16)."""


class Agreement(NamedTuple):
    """Precision (low for merged regions), recall (low for split ones) and their harmonic mean."""

    precision: float
    recall: float
    f: float


@dataclass(frozen=True)
class IsbiScores:
    """Scores of a stack: the mean over its planes at the best threshold, chosen for each score on its own."""

    v_rand: float
    v_rand_threshold: float
    v_info: float
    v_info_threshold: float


def score_isbi(planes: Iterable[tuple[Array, Array]], thresholds: Sequence[float] = THRESHOLDS) -> IsbiScores:
    """Score a stack: `score_plane` of every truth and proposal, then `best_scores`."""
    return best_scores([score_plane(truth, proposal, thresholds) for truth, proposal in planes], thresholds)


def score_plane(truth: Array, proposal: Array, thresholds: Sequence[float] = THRESHOLDS) -> Float64:
    """Score one plane at every threshold.

    Args:
        truth: ``(y, x)``, 1 inside regions and 0 on the lines between them.
        proposal: same shape and meaning, or the probability of being inside.
        thresholds: what truth and proposal must exceed to be inside.

    Returns:
        V_rand and V_info, float64 ``(2, thresholds)``; V_info is NaN where the partitions share nothing.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != proposal.shape:
        raise ValueError(f"truth has shape {truth.shape}, proposal {proposal.shape}")
    scores = np.empty((2, len(thresholds)))
    previous: tuple[Any, Any] | None = None
    for i, threshold in enumerate(thresholds):
        masks = truth > threshold, proposal > threshold
        if previous is not None and all(np.array_equal(a, b) for a, b in zip(previous, masks, strict=True)):
            scores[:, i] = scores[:, i - 1]
            continue
        table = overlaps(label_regions(masks[0]), flood_regions(masks[1]))
        scores[:, i] = score_rand(table).f, score_information(table).f
        previous = masks
    return scores


def best_scores(planes: Sequence[Float64], thresholds: Sequence[float] = THRESHOLDS) -> IsbiScores:
    """The best mean over planes of `score_plane`; a threshold at which a plane has no score does not compete.

    Raises:
        ValueError: there are no planes.
    """
    if not planes:
        raise ValueError("no planes to score")
    means = np.nan_to_num(np.mean(np.array(planes), axis=0))
    rand, info = (int(i) for i in np.argmax(means, axis=1))
    return IsbiScores(float(means[0, rand]), float(thresholds[rand]), float(means[1, info]), float(thresholds[info]))


@dataclass(frozen=True)
class Overlaps:
    """How the truth's regions meet the proposal's, as shares of the pixels inside the truth's regions.

    Attributes:
        pixels: pixels inside the truth's regions.
        joint: share of each pair of regions that meet, none of them 0.
        truth: share of each of the truth's regions.
        proposal: share of each of the proposal's regions.
        line: share of pixels that are line in the proposal.
    """

    pixels: int
    joint: Float64
    truth: Float64
    proposal: Float64
    line: float


def overlaps(truth: Int32, proposal: Int32) -> Overlaps:
    """Tabulate two numberings of regions, int32 ``(y, x)``, where 0 is none."""
    inside = truth > 0
    a, b = truth[inside].astype(np.int64), proposal[inside].astype(np.int64)
    pixels = len(a)
    if not pixels:
        empty = np.empty(0)
        return Overlaps(0, empty, empty, empty, 0.0)
    width = int(b.max()) + 1
    pairs, counts = np.unique(a * width + b, return_counts=True)
    region = pairs % width
    return Overlaps(
        pixels,
        joint=counts[region > 0] / pixels,
        truth=np.bincount(pairs // width, weights=counts)[1:] / pixels,
        proposal=np.bincount(region, weights=counts)[1:] / pixels,
        line=float(counts[region == 0].sum() / pixels),
    )


def score_rand(table: Overlaps) -> Agreement:
    """V_rand: pairs of pixels that are together in both, among those together in the proposal and in the truth.

    Pixels on the proposal's lines count as regions of one pixel each.  The score is 0 when the truth has no region.
    """
    if not table.pixels:
        return Agreement(0.0, 0.0, 0.0)
    alone = table.line / table.pixels
    both = float(np.sum(table.joint**2)) + alone
    truth = float(np.sum(table.truth**2))
    proposal = float(np.sum(table.proposal**2)) + alone
    return _harmonic(both / proposal, both / truth)


def score_information(table: Overlaps) -> Agreement:
    """V_info: mutual information of the two partitions, relative to the entropy of the truth and of the proposal.

    As in the challenge's code the score is 0 when either partition has one region or none, whatever the other is.
    """
    if not table.pixels:
        return Agreement(0.0, 1.0, 0.0)
    alone = table.line * log(table.pixels)
    truth = -_sum_p_log_p(table.truth)
    proposal = -_sum_p_log_p(table.proposal) + alone
    joint = -_sum_p_log_p(table.joint) + alone
    if proposal == 0:
        return _harmonic(1.0, 0.0)
    if truth == 0:
        return _harmonic(0.0, 1.0)
    shared = truth + proposal - joint
    return _harmonic(shared / truth, shared / proposal)


def _sum_p_log_p(shares: Float64) -> float:
    """Sum of p ln p, where 0 ln 0 is 0."""
    present = shares[shares > 0]
    return float(np.sum(present * np.log(present)))


def _harmonic(precision: float, recall: float) -> Agreement:
    """With the harmonic mean; NaN when both are 0."""
    total = precision + recall
    return Agreement(precision, recall, 2 * precision * recall / total if total else float("nan"))
