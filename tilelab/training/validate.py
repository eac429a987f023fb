"""Scores of a network on labelled images, tile by tile with the lattice and shares that inference uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from tilelab.geometry import Lattice
from tilelab.spec import ModelSpec
from tilelab.training.data import Pair
from tilelab.training.recipe import IGNORE

Float32 = npt.NDArray[np.float32]
Runner = Callable[[Float32], Float32]


def torch_runner(network: nn.Module, channels: int, *, precision: str = "fp32") -> Runner:
    """`network`, in evaluation mode and on the CPU, as a function of one normalised tile; ``bf16`` is autocast."""

    def run(tile: Float32) -> Float32:
        batch = torch.from_numpy(tile)[None, None].expand(1, channels, -1, -1)
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits: Float32 = network(batch)[0].float().numpy()
        return logits

    return run


def predict(run: Runner, image: npt.NDArray[Any], spec: ModelSpec) -> Float32:
    """Blended logits of a whole plane.

    Args:
        run: from one normalised tile, float32 ``(y, x)``, to logits ``(K, y, x)``.
        image: ``(y, x)``, raw intensities.
        spec: tile, overlap, window, stride and normalisation.

    Returns:
        float32 ``(K, y, x)``.
    """
    height, width = image.shape
    lattice = Lattice.fit((height, width), spec.tile, spec.overlap, stride=spec.stride, window=spec.window)
    tall, wide = lattice.axes
    mean, std = np.float32(spec.normalization.mean[0]), np.float32(spec.normalization.std[0])
    logits = np.zeros((spec.outputs, tall.padded, wide.padded), dtype=np.float32)
    for j, i in product(range(len(tall)), range(len(wide))):
        tile = (image[np.ix_(tall.indices(j), wide.indices(i))].astype(np.float32) - mean) / std
        logits[(slice(None), *lattice[j, i].slices)] += run(tile) * (tall.shares(j)[:, None] * wide.shares(i)[None, :])
    return logits[:, :height, :width]


def count_confusion(labels: npt.NDArray[np.uint8], truth: npt.NDArray[np.uint8], classes: int) -> npt.NDArray[np.int64]:
    """Pixels by true class (rows) and predicted class (columns), int64 ``(classes, classes)``; IGNORE is left out."""
    kept = truth != IGNORE
    index = truth[kept].astype(np.int64) * classes + labels[kept]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def class_iou(confusion: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Intersection over union per class; NaN for one that is neither true nor predicted anywhere."""
    both = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - both
    iou: npt.NDArray[np.float64] = np.divide(both, union, out=np.full_like(both, np.nan), where=union > 0)
    return iou


def validate(run: Runner, pairs: Sequence[Pair], spec: ModelSpec) -> dict[str, Any]:
    """Score the network behind `run` on `pairs`.

    Returns:
        ``mean_iou`` and ``iou`` (by class name) of the confusion matrix pooled over the images, ``image_mean_iou`` (the
        mean over images of each one's mean IoU), ``pixel_accuracy``, and ``images``, their number.
    """
    classes = len(spec.classes)
    pooled = np.zeros((classes, classes), dtype=np.int64)
    per_image = []
    for pair in pairs:
        labels = predict(run, pair.image, spec).argmax(axis=0).astype(np.uint8)
        confusion = count_confusion(labels, pair.mask, classes)
        per_image.append(float(np.nanmean(class_iou(confusion))))
        pooled += confusion
    iou = class_iou(pooled)
    return {
        "mean_iou": round(float(np.nanmean(iou)), 6),
        "iou": {info.name: round(float(value), 6) for info, value in zip(spec.classes, iou, strict=True)},
        "image_mean_iou": round(float(np.mean(per_image)), 6),
        "pixel_accuracy": round(float(np.trace(pooled) / pooled.sum()), 6),
        "images": len(pairs),
    }
