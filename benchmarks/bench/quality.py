"""How far a result is from another: agreement of labels, mean IoU, and what tiling does at its seams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Float32
from tilelab.evaluation.metrics.confusion import count_confusion
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.results.result import read_result

_ROWS = 512


def labels_of(path: Path) -> Image:
    """The labels of a result of tilelab, or of a ``.npy`` file, as a lazy image."""
    return open_image(path) if path.suffix == ".npy" else read_result(path).labels[0]


def read_logits(path: Path) -> Float32:
    """All logits, float32 ``(classes, y, x)``, of a result of tilelab or a ``.npy`` file."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path), np.float32)
    image = read_result(path).logits
    assert image is not None
    return np.asarray(image.read(Box.whole(image.shape)), np.float32)


def compare_labels(one: Image, other: Image, classes: int) -> dict[str, float]:
    """``agreement``: share of equal pixels; ``mean_iou`` of `one` with `other` taken for the truth."""
    counts = np.zeros((256, 256), np.int64)
    height, width = one.shape[-2:]
    for y in range(0, height, _ROWS):
        box = Box((y, 0), (min(height, y + _ROWS), width))
        counts += count_confusion(np.asarray(one.read(box)), np.asarray(other.read(box)))
    counts = counts[:classes, :classes]
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hit
    iou = hit[union > 0] / union[union > 0]
    return {"agreement": float(hit.sum() / (height * width)), "mean_iou": float(iou.mean())}


def softmax(logits: Float32) -> Float32:
    """Probabilities over the first axis."""
    exponentials: Float32 = np.exp(logits - logits.max(axis=0, keepdims=True))
    exponentials /= exponentials.sum(axis=0, keepdims=True)
    return exponentials


def compare_logits(tiled: Float32, whole: Float32) -> dict[str, Any]:
    """What tiling changes: `tiled` against `whole`, the logits of the whole image at once, both ``(classes, y, x)``.

    ``seam`` looks at the difference of probabilities between the two.  Where it jumps from one line of pixels to the
    next, averaged along the line, there is a seam: ``largest`` is the greatest such jump, ``usual`` the median over all
    lines.
    """
    difference = softmax(tiled) - softmax(whole)
    jumps = np.concatenate(
        [
            np.abs(np.diff(difference, axis=1)).mean(axis=(0, 2)),
            np.abs(np.diff(difference, axis=2)).mean(axis=(0, 1)),
        ]
    )
    return {
        "largest_probability_difference": float(np.abs(difference).max()),
        "mean_probability_difference": float(np.abs(difference).mean()),
        "seam": {"largest": float(jumps.max()), "usual": float(np.median(jumps))},
    }
