"""Finished sums to what is written, by what each output holds.

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
from typing import Any

import numpy as np

from tilelab.arrays import Array, Bool, Float32, UInt8
from tilelab.engines.base import Engine
from tilelab.errors import EngineError
from tilelab.geometry import Box
from tilelab.kernels import cpu as kernels
from tilelab.kernels.reference import Window
from tilelab.run.plan.buffers import map_rows
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


def shape_rows(job: Job, spec: ModelSpec, arrays: dict[str, Array], area: tuple[int, int, int]) -> FinishedRows:
    """The first of flat `arrays` by kind, as a plan names them, for rows, lines and columns of this number."""
    pixels = math.prod(area)

    def rows(name: str, count: int, absent: tuple[int, ...], dtype: Any) -> Any:
        if name not in arrays:
            return np.empty(absent, dtype)
        return arrays[name][: count * pixels].reshape(count, *area)

    return FinishedRows(
        rows("labels", 1, (), np.uint8)[0],
        rows("probabilities", len(job.channels), (0, *area), np.uint8),
        rows("finished logits", spec.class_values, (0, 0, 0, 0), np.float32),
        {output.name: rows(map_rows(output.name), output.channels, (), np.float32) for output in spec.maps},
    )


def channel_ranges(spec: ModelSpec) -> list[slice]:
    """The channels of the logits that each output has."""
    ends = np.cumsum([0, *map(spec.values_of, spec.outputs)]).tolist()
    return [slice(a, b) for a, b in pairwise(ends)]


def finish_rows(
    job: Job, engine: Engine, sums: Float32, start: int, rows: FinishedRows, into: Window, box: Box
) -> None:
    """Some of `sums` ``(K, R, A, X)`` into a window of `rows`: rows from `start` on, the first lines and columns.

    Args:
        job, engine: say how.
        sums: may be overwritten.
        start: row.
        rows: written.
        into: which rows, lines and columns of it.
        box: where they lie in the image.

    Raises:
        EngineError: the network gives labels that are none of its classes.
    """
    spec = engine.spec
    ranges = channel_ranges(spec)
    if spec.classified:
        finish = _CLASSES["labels" if spec.outputs[0].kind == "labels" else "logits"]
        finish(job, engine, sums[ranges[0]], start, rows, into, box)
    for output, part in zip(spec.maps, ranges[spec.classified :], strict=True):
        place = tuple(slice(*ends) for ends in into)
        rows.maps[output.name][:, *place] = _part(sums[part], start, into)


def mask_rows(rows: FinishedRows, keep: Bool) -> None:
    """Nothing where no result is wanted."""
    rows.labels[...] *= keep
    rows.probabilities[...] *= keep
    for values in rows.maps.values():
        values[:, ~keep] = 0


def _part(sums: Float32, start: int, into: Window) -> Float32:
    """What of the sums goes into a window, a view."""
    rows, lines, columns = (b - a for a, b in into)
    return sums[:, start : start + rows, :lines, :columns]


def _finish_logits(
    job: Job, engine: Engine, sums: Float32, start: int, rows: FinishedRows, into: Window, _box: Box
) -> None:
    limits = engine.spec.outputs[0].thresholds
    over: UInt8 | None = None
    if limits:
        # a probability is that of the logit times the sharpness
        odds = np.array([math.log(t / (1 - t)) / job.sharpness for t in limits], np.float32)
        over = np.empty([b - a for a, b in into], np.uint8)
        kernels.find_over(sums, start, np.broadcast_to(odds, sums.shape[:1]).copy(), over)
    kernels.finish(
        sums, start, job.activation, rows.labels, rows.probabilities, job.channels, rows.logits, job.sharpness, into
    )
    if over is not None:
        rows.labels[tuple(slice(*ends) for ends in into)] = over


def _finish_labels(
    _job: Job, engine: Engine, sums: Float32, start: int, rows: FinishedRows, into: Window, box: Box
) -> None:
    found = _part(sums, start, into)[0]
    low, high, count = float(found.min()), float(found.max()), len(engine.spec.classes)
    if low < -0.5 or high >= count - 0.5:
        raise EngineError(
            f"the network gives labels from {low:g} to {high:g} in {box}, but has {count} classes: say how many with "
            "--classes"
        )
    rows.labels[tuple(slice(*ends) for ends in into)] = np.rint(found).astype(np.uint8)


_Finish = Callable[[Job, Engine, Float32, int, FinishedRows, Window, Box], None]
_CLASSES: dict[str, _Finish] = {"logits": _finish_logits, "labels": _finish_labels}
