"""The objects of a segmentation against the true ones: overlaps counted in three streamed passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tilelab.arrays import Array, Int64, UInt8
from tilelab.evaluation.metrics.objects import ObjectScores, score_objects
from tilelab.evaluation.scoring import Evaluation, Question, left_out_of, open_pair
from tilelab.geometry import Box, boxes
from tilelab.kernels.jit import jit
from tilelab.kernels.objects.sums import AREA
from tilelab.measure.components import Components, block_grid, find_objects
from tilelab.measure.piecework import ClassPlanes
from tilelab.measure.shapes import classes_of

_jit = jit()


def add_object_scores(
    evaluation: Evaluation, question: Question, *, connectivity: int = 1, min_pixels: int = 0
) -> None:
    """Match the objects of every class but the background in all pairs of an evaluation, and add the scores to it.

    Args:
        evaluation: gets `objects`, and so do its pairs: one entry a class, the background left out.
        question: as it was evaluated.
        connectivity: in how many axes neighbouring pixels of an object may differ.
        min_pixels: smaller objects count neither as true nor as found.

    Raises:
        InputError: a file cannot be read any more.
    """
    classes = range(1, len(evaluation.classes))
    left_out = left_out_of(question)
    for scored in evaluation.pairs:
        with open_pair(scored.pair, question) as (labels, truth):
            found, true = (_LeftOut(one, truth, left_out) if left_out else one for one in (labels, truth))
            scored.objects = match_objects(found, true, classes, connectivity=connectivity, min_pixels=min_pixels)
        before = evaluation.objects
        evaluation.objects = (
            scored.objects
            if before is None
            else tuple(one + more for one, more in zip(before, scored.objects, strict=True))
        )


def match_objects(
    labels: ClassPlanes,
    truth: ClassPlanes,
    classes: Sequence[int],
    *,
    connectivity: int = 1,
    min_pixels: int = 0,
    grid: tuple[int, int] | None = None,
) -> tuple[ObjectScores, ...]:
    """The scores of the objects of each of some classes; only objects of one class can match."""
    connectivity = min(connectivity, 3 if labels.shape[0] > 1 else 2)
    found, true = (
        find_objects(planes, connectivity=connectivity, min_pixels=min_pixels, only=classes, grid=grid)
        for planes in (labels, truth)
    )
    pairs, overlaps = _count_overlaps(found, true)
    found_sizes, found_classes = _sizes_of(found)
    true_sizes, true_classes = _sizes_of(true)
    scores = []
    for label in classes:
        mine, theirs = np.flatnonzero(true_classes == label), np.flatnonzero(found_classes == label)
        index = np.full(len(found_sizes) + 1, -1, np.int64)  # objects of other classes cover nothing
        index[theirs + 1] = np.arange(len(theirs))
        chosen = true_classes[pairs[:, 0] - 1] == label
        rows = np.stack([np.searchsorted(mine, pairs[chosen, 0] - 1), index[pairs[chosen, 1]]], axis=1)
        scores.append(score_objects(true_sizes[mine], found_sizes[theirs], *_add_up(rows, overlaps[chosen])))
    return tuple(scores)


def _sizes_of(objects: Components) -> tuple[Int64, UInt8]:
    parts = [(records["sums"][:, AREA].copy(), classes_of(records)) for records in objects.records()]
    none: tuple[Array, Array] = (np.empty(0, np.int64), np.empty(0, np.uint8))
    sizes, classes = zip(none, *parts, strict=True)
    return np.concatenate(sizes), np.concatenate(classes)


def _count_overlaps(found: Components, true: Components) -> tuple[Array, Int64]:
    """Pairs of a true and a found number (0: none) that share pixels, and how many."""
    pairs, counts = np.empty((0, 2), np.int64), np.empty(0, np.int64)
    shape = true.labels.shape
    for box in boxes(shape, (*block_grid(true.labels), shape[2])):
        numbers = true.read(box).reshape(-1), found.read(box).reshape(-1)
        runs = np.empty((1024, 3), np.int64)
        while (used := _meet(*numbers, runs)) > len(runs):
            runs = np.empty((used, 3), np.int64)
        more, added = _add_up(runs[:used, :2], runs[:used, 2])
        pairs, counts = _add_up(np.concatenate([pairs, more]), np.concatenate([counts, added]))
    return pairs, counts


def _add_up(pairs: Array, counts: Int64) -> tuple[Array, Int64]:
    """Each pair once, with the sum of its counts, in order."""
    if not len(pairs):
        return pairs, counts
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    pairs, counts = pairs[order], counts[order]
    first = np.concatenate([[True], (pairs[1:] != pairs[:-1]).any(axis=1)])
    return pairs[first], np.add.reduceat(counts, np.flatnonzero(first))


@_jit
def _meet(true: Any, found: Any, runs: Any) -> int:
    """Stretches of pixels with the same true number, above 0, and the same found number; how many there are."""
    count, begin = 0, 0
    for i in range(1, len(true) + 1):
        if i < len(true) and true[i] == true[begin] and found[i] == found[begin]:
            continue
        if true[begin] > 0:
            if count < len(runs):
                runs[count, 0], runs[count, 1], runs[count, 2] = true[begin], found[begin], i - begin
            count += 1
        begin = i
    return count


class _LeftOut:
    """Labels without the pixels that are left out of the truth."""

    def __init__(self, labels: ClassPlanes, truth: ClassPlanes, left_out: Any) -> None:
        self._labels, self._truth = labels, truth
        self._out = np.zeros(256, np.bool_)
        self._out[list(left_out)] = True
        self.shape, self.chunks = labels.shape, labels.chunks

    def read(self, box: Box) -> UInt8:
        classes = self._labels.read(box)
        kept: UInt8 = np.where(self._out[self._truth.read(box)], 0, classes).astype(np.uint8)
        return kept
