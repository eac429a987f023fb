"""Scores of objects: which of the true ones were found, from a table of how found and true objects overlap.

Everything is a sum over objects, so scores of several images add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Array, Float64, Int64

THRESHOLDS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
"""An object is found if one overlaps it by an IoU above these; above 0.5 no more than one can."""


@dataclass(frozen=True)
class ObjectScores:
    """How the objects of one class in a segmentation agree with the true ones.

    Attributes:
        true, found: how many there are.
        matched: how many are matched at each of `THRESHOLDS`, int64.
        iou: sum of the IoU of those that are matched at 0.5.
        squares: sums of the squares of the overlaps, of the found objects' pixels and of the true objects' pixels, over
            the pixels of true objects, int64; what no found object covers counts as one region (adapted Rand, as
            scikit-image has it).
        pixels: of true objects.
    """

    true: int
    found: int
    matched: Int64
    iou: float
    squares: tuple[int, int, int]
    pixels: int

    def __add__(self, other: ObjectScores) -> ObjectScores:
        both, found, true = (a + b for a, b in zip(self.squares, other.squares, strict=True))
        return ObjectScores(
            self.true + other.true,
            self.found + other.found,
            self.matched + other.matched,
            self.iou + other.iou,
            (both, found, true),
            self.pixels + other.pixels,
        )

    @property
    def precision(self) -> Float64:
        """Matched among the found, at each threshold; NaN where none was found."""
        return self.matched / (self.found or np.nan)

    @property
    def recall(self) -> Float64:
        """Matched among the true, at each threshold; NaN where there is none."""
        return self.matched / (self.true or np.nan)

    @property
    def f1(self) -> Float64:
        """2 TP / (2 TP + FP + FN) at each threshold; NaN where there are no objects at all."""
        return 2 * self.matched / (self.true + self.found or np.nan)

    @property
    def segmentation_quality(self) -> float:
        """Mean IoU of the matched; 0 where none is, NaN where there are no objects."""
        if not self.true + self.found:
            return float("nan")
        return self.iou / max(1, int(self.matched[0]))

    @property
    def panoptic_quality(self) -> float:
        """Segmentation quality times F1 at 0.5 (Kirillov et al., CVPR 2019)."""
        return self.segmentation_quality * float(self.f1[0])

    @property
    def average_precision(self) -> float:
        """Mean over the thresholds 0.5, 0.55, ... 0.95 of TP / (TP + FP + FN), as StarDist and Cellpose count it."""
        if not self.true + self.found:
            return float("nan")
        return float(np.mean(self.matched / (self.true + self.found - self.matched)))

    @property
    def rand_error(self) -> float:
        """Adapted Rand error: 1 - F of pairs of pixels of true objects that are together in both; NaN without any."""
        both, found, true = (square - self.pixels for square in self.squares)
        return 1 - 2 * both / (found + true) if found + true else (float("nan") if not self.pixels else 0.0)


def score_objects(true_sizes: Int64, found_sizes: Int64, pairs: Array, overlaps: Int64) -> ObjectScores:
    """Score the objects of one class in one image.

    Args:
        true_sizes: pixels of each true object.
        found_sizes: pixels of each found object.
        pairs: int64 ``(pairs, 2)``, index of the true and of the found object, -1 where a true one is not covered.
        overlaps: pixels of each pair.
    """
    covered = pairs[:, 1] >= 0
    both = overlaps[covered]
    union = true_sizes[pairs[covered, 0]] + found_sizes[pairs[covered, 1]] - both
    iou = both / union
    matched = np.array([(iou > threshold).sum() for threshold in THRESHOLDS], np.int64)
    inside = np.bincount(pairs[:, 1] + 1, weights=overlaps, minlength=1).astype(np.int64)
    sums = (sum_squares(overlaps), sum_squares(inside), sum_squares(true_sizes))
    total = float(np.sort(iou[iou > THRESHOLDS[0]]).sum())
    return ObjectScores(len(true_sizes), len(found_sizes), matched, total, sums, int(true_sizes.sum()))


def sum_squares(values: Int64) -> int:
    """The sum of squares as a Python integer, which has no largest value."""
    high, low = np.divmod(values.astype(np.int64), 1 << 20)
    return (int((high * high).sum()) << 40) + (int((high * low).sum()) << 21) + int((low * low).sum())
