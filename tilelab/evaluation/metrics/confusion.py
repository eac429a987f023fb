"""Scores that follow from counting pixels: one matrix of counts, added up over blocks, planes and images.

A class that occurs neither in the truth nor in the prediction has no score: it is NaN and left out of every mean.  A
class that occurs in one of them only scores 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Float64, Int64, UInt8

Counts = Int64

_PIECE = 2**20
"""Pixels counted at once: `numpy.bincount` needs 8 bytes for each."""


def count_confusion(labels: UInt8, truth: UInt8, *, ignore: int | None = None) -> Counts:
    """Count pixels by true and predicted class.

    Args:
        labels: predicted classes, uint8, any shape.
        truth: true classes, uint8, same shape.
        ignore: pixels of this true value are not counted.

    Returns:
        int64 ``(256, 256)``: ``counts[t, p]`` pixels of true class t were given class p.  Matrices of parts add up.

    Raises:
        ValueError: the shapes differ.
    """
    if labels.shape != truth.shape:
        raise ValueError(f"labels have shape {labels.shape}, truth {truth.shape}")
    counts = np.zeros(2**16, np.int64)
    predicted, true = labels.reshape(-1), truth.reshape(-1)
    for start in range(0, true.size, _PIECE):
        piece = slice(start, start + _PIECE)
        counts += np.bincount(true[piece].astype(np.uint16) << 8 | predicted[piece], minlength=2**16)
    matrix = counts.reshape(256, 256)
    if ignore is not None:
        matrix[ignore] = 0
    return matrix


@dataclass(frozen=True)
class Scores:
    """What one confusion matrix says; arrays are float64 ``(classes,)`` and NaN for classes that do not occur.

    Attributes:
        confusion: int64 ``(classes, classes)``, rows true, columns predicted.
        pixel_accuracy: share of pixels with the right class; NaN when nothing was counted.
        iou: intersection over union.
        dice: 2 |A and B| / (|A| + |B|).  Pixel F1 without tolerance is the same number: see `f1`.
        precision: right among the predicted.
        recall: found among the true.
    """

    confusion: Counts
    pixel_accuracy: float
    iou: Float64
    dice: Float64
    precision: Float64
    recall: Float64

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.confusion)

    @property
    def f1(self) -> Float64:
        """Harmonic mean of precision and recall with no tolerance for displaced pixels; equal to `dice`."""
        return self.dice

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur."""
        return mean_of_present(self.iou)

    @property
    def pooled_iou(self) -> float:
        """IoU of all classes' pixels counted together, the background's too: right / (2 pixels - right).

        So smp's ``IoU`` over all channels counts, by which NASA's pretrained-microscopy-models are scored.
        """
        right, total = int(np.trace(self.confusion)), int(self.confusion.sum())
        return right / (2 * total - right) if total else float("nan")

    @property
    def mean_dice(self) -> float:
        """Mean of `dice` over the classes that occur."""
        return mean_of_present(self.dice)

    @property
    def foreground_f1(self) -> float:
        """Mean of `f1` over the classes that occur, the background (class 0) left out."""
        return mean_of_present(self.f1[1:])


def score_confusion(confusion: Counts) -> Scores:
    """Turn counts into scores.

    Args:
        confusion: int64 ``(classes, classes)``, rows true, columns predicted.
    """
    right = np.diag(confusion).astype(np.float64)
    predicted, true = confusion.sum(axis=0), confusion.sum(axis=1)
    total = int(confusion.sum())
    occurs = (predicted + true) > 0

    def ratio(part: Float64, whole: Int64 | Float64) -> Float64:
        score = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
        return np.where(occurs, score, np.nan)

    return Scores(
        confusion=confusion,
        pixel_accuracy=float(right.sum() / total) if total else float("nan"),
        iou=ratio(right, predicted + true - right),
        dice=ratio(2 * right, predicted + true),
        precision=ratio(right, predicted),
        recall=ratio(right, true),
    )


def mean_of_present(values: Float64) -> float:
    """Mean of the values that are not NaN; NaN when there are none."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
