"""Finished rows of the canvas to what is written, by what each output holds.

logits of the classes   most likely class, and the probabilities that are asked for; with thresholds, of the classes
                        that reach theirs the one that exceeds it most (in log-odds), else the background
labels                  as they are
map                     as it is
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tilelab.arrays import Array, Bool, Float32, UInt8
from tilelab.engines.base import Engine
from tilelab.errors import EngineError
from tilelab.geometry import Box
from tilelab.kernels import cpu as kernels
from tilelab.run.sweep.finite import ring_rows
from tilelab.run.sweep.job import Job
from tilelab.spec import ModelSpec


@dataclass(frozen=True)
class FinishedRows:
    """Where finished rows go: labels ``(rows, A, X)``, probabilities and logits ``(n, rows, A, X)``, maps likewise.

    What is not wanted is empty.
    """

    labels: UInt8
    probabilities: UInt8
    logits: Float32
    maps: dict[str, Float32]


def channel_ranges(spec: ModelSpec) -> list[slice]:
    """The channels of the canvas that each output has."""
    ends = np.cumsum([0, *map(spec.values_of, spec.outputs)]).tolist()
    return [slice(a, b) for a, b in pairwise(ends)]


def finish_rows(job: Job, engine: Engine, canvas: Float32, start: int, rows: FinishedRows, box: Box) -> None:
    """Rows from `start` on of `canvas` ``(K, R, A, X)`` into `rows`, and cleared there; `box` is where they lie.

    Raises:
        EngineError: the network gives labels that are none of its classes.
    """
    spec = engine.spec
    ranges = channel_ranges(spec)
    stop = start + rows.labels.shape[0]
    if spec.classified:
        _CLASSES["labels" if spec.outputs[0].kind == "labels" else "logits"](
            job, engine, canvas[ranges[0]], start, rows, box
        )
    for output, part in zip(spec.maps, ranges[spec.classified :], strict=True):
        _take(canvas[part], start, stop, rows.maps[output.name])


def mask_rows(rows: FinishedRows, keep: Bool) -> None:
    """Nothing where no result is wanted."""
    rows.labels[...] *= keep
    rows.probabilities[...] *= keep
    for values in rows.maps.values():
        values[:, ~keep] = 0


def _take(canvas: Float32, start: int, stop: int, out: Array) -> None:
    """Copy rows out of a ring, and clear them."""
    at = 0
    for piece in ring_rows(canvas, start, stop):
        out[:, at : at + piece.shape[1]] = piece
        at += piece.shape[1]
        piece[...] = 0


def _finish_logits(job: Job, engine: Engine, canvas: Float32, start: int, rows: FinishedRows, _box: Box) -> None:
    limits = engine.spec.outputs[0].thresholds
    if not limits:
        _to_bytes(job, canvas, start, rows, rows.labels)
        return
    odds = np.array([math.log(t / (1 - t)) for t in limits], np.float32)
    kernels.find_over(canvas, start, np.broadcast_to(odds, canvas.shape[:1]).copy(), rows.labels)
    _to_bytes(job, canvas, start, rows, np.empty_like(rows.labels))


def _to_bytes(job: Job, canvas: Float32, start: int, rows: FinishedRows, labels: UInt8) -> None:
    kernels.finish(canvas, start, job.activation, labels, rows.probabilities, job.channels, rows.logits, job.sharpness)


def _finish_labels(_job: Job, engine: Engine, canvas: Float32, start: int, rows: FinishedRows, box: Box) -> None:
    found = np.empty((1, *rows.labels.shape), np.float32)
    _take(canvas, start, start + rows.labels.shape[0], found)
    low, high, count = float(found.min()), float(found.max()), len(engine.spec.classes)
    if low < -0.5 or high >= count - 0.5:
        raise EngineError(
            f"the network gives labels from {low:g} to {high:g} in {box}, but has {count} classes: say how many with "
            "--classes"
        )
    np.rint(found[0], out=found[0])
    rows.labels[...] = found[0].astype(np.uint8)


_Finish = Callable[[Job, Engine, Float32, int, FinishedRows, Box], None]
_CLASSES: dict[str, _Finish] = {"logits": _finish_logits, "labels": _finish_labels}
