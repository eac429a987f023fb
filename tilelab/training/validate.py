"""Scores of an engine on labelled images: the sweep that infers, with a writer that counts instead of storing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from tilelab.arrays import Float32, Int64, UInt8
from tilelab.engines.base import Engine
from tilelab.errors import InputError
from tilelab.evaluation.metrics.confidence import Answers, calibrate, lattice_step
from tilelab.evaluation.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.results.sink import Finished
from tilelab.kernels.reference import ACTIVATIONS
from tilelab.run.options import Options
from tilelab.run.prepare import Prepared, prepare
from tilelab.run.sweep.start import make_sweep
from tilelab.spec import ModelSpec
from tilelab.training.pairs import MaskedPlane
from tilelab.training.sections import IGNORE

CONFIDENCE = "confidence"
"""Of the scores: `tilelab.spec.Confidence`, which is part of a model's description and none of its history."""


class _Writer:
    """Hands finished rows to a function, with the box of the plane that they fill."""

    def __init__(self, take: Callable[[Box, Finished], None], box: Box, sweep_axis: int) -> None:
        self.take = take
        self.box = box
        self.axis = sweep_axis
        self.at = box.start[sweep_axis]

    def write(self, rows: Finished, threads: int = 1) -> int:  # noqa: ARG002
        """Take the next rows."""
        part = next(part for part in (rows.labels, rows.probabilities, rows.logits) if part is not None)
        stop: int = self.at + part.shape[part.ndim - 3 + self.axis]
        start, end = list(self.box.start), list(self.box.stop)
        start[self.axis], end[self.axis] = self.at, stop
        self.take(Box(tuple(start), tuple(end)), rows)
        self.at = stop
        return stop

    def close(self) -> None:
        """Nothing is held."""


def sweep(engine: Engine, image: Image, take: Callable[[Box, Finished], None], *, logits: bool = False) -> None:
    """Infer a whole image; `take` gets each box (z, y, x) of finished labels, or of logits.

    Raises:
        InputError, ModelError, EngineError: as `tilelab.infer`.
    """
    options = Options(labels=not logits, logits=logits, probabilities=("none",), ignore_pixel_size=True)
    sweep_prepared(prepare(image, engine, options), take)


def sweep_prepared(prepared: Prepared, take: Callable[[Box, Finished], None]) -> None:
    """The same of what is prepared already."""
    axis = prepared.plan.frame.sweep_axis
    job = replace(prepared.job, finite=False)  # a network in training, or one that is being compared, may give NaN
    for unit in prepared.plan.units:
        make_sweep(job, prepared.engine, unit.box).run(_Writer(take, unit.box, axis))


def infer_logits(engine: Engine, image: Image) -> Float32:
    """Blended logits of a plane in memory, float32 ``(K, y, x)``."""
    result = np.empty((engine.spec.values, *image.shape[-2:]), np.float32)

    def take(box: Box, rows: Finished) -> None:
        assert rows.logits is not None  # noqa: S101  # asked for
        result[(slice(None), *box.slices[1:])] = rows.logits[:, 0]

    sweep(engine, image, take, logits=True)
    return result


def labels_of(logits: Float32, spec: ModelSpec) -> UInt8:
    """The class of every pixel, of logits ``(K, ...)``."""
    highest: UInt8 = logits.argmax(axis=0).astype(np.uint8)
    if spec.activation == "softmax":
        return highest
    # with sigmoid, the background is where no output is above 0
    return np.where(logits.max(axis=0) > 0, highest + np.uint8(1), np.uint8(0))


def answer_pair(engine: Engine, pair: MaskedPlane) -> tuple[Int64, Answers]:
    """Pixels of a pair by true class (rows) and predicted class (columns), int64 ``(classes, classes)``; and answers.

    The latter are on a lattice, from which the temperature is found.
    """
    classes, step = len(engine.spec.classes), lattice_step(pair.shape)
    counts = np.zeros((256, 256), np.int64)
    parts: list[Answers] = []

    def take(box: Box, rows: Finished) -> None:
        assert rows.logits is not None  # noqa: S101  # asked for
        logits, truth = rows.logits[:, 0], pair.mask.read(Box(box.start[1:], box.stop[1:]))
        counts.__iadd__(count_confusion(labels_of(logits, engine.spec), truth, ignore=IGNORE))
        y, x = (-start % step for start in box.start[1:])
        parts.append(Answers.of(logits[:, y:, x:], truth[y:, x:], ignore=IGNORE, step=step))

    sweep(engine, pair.image, take, logits=True)
    return counts[:classes, :classes], Answers.all(parts)


def validate(engine: Engine, pairs: Sequence[MaskedPlane]) -> dict[str, Any]:
    """Score `engine` on `pairs`.

    Returns:
        ``mean_iou`` and ``iou`` (by class name) of the confusion matrix pooled over the images, ``image_mean_iou`` (the
        mean over images of each one's mean IoU), ``pixel_accuracy``, ``images``, their number, and ``confidence``, what
        calibrates the probabilities.

    Raises:
        InputError: there is nothing to score: every pixel is to be ignored.
    """
    matrices, answers = zip(*(answer_pair(engine, pair) for pair in pairs), strict=True)
    pooled = score_confusion(np.sum(matrices, axis=0))
    if np.isnan(pooled.pixel_accuracy):
        raise InputError("the validation masks hold no class at all: nothing can be scored")
    names = [info.name for info in engine.spec.classes]
    return {
        "mean_iou": round(mean_of_present(pooled.iou), 6),
        "iou": {n: None if np.isnan(v) else round(float(v), 6) for n, v in zip(names, pooled.iou, strict=True)},
        "image_mean_iou": round(
            float(np.nanmean([mean_of_present(score_confusion(matrix).iou) for matrix in matrices])), 6
        ),
        "pixel_accuracy": round(pooled.pixel_accuracy, 6),
        "images": len(pairs),
        CONFIDENCE: msgspec.to_builtins(calibrate(answers, ACTIVATIONS[engine.spec.activation])),
    }
