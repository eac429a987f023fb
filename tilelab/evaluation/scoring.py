"""From pairs to scores: every pixel of every pair is read once, in blocks, and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from tilelab.arrays import Float64, UInt8
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.evaluation.census import Census, check_map, judge, report_unlisted
from tilelab.evaluation.label_map import IGNORE, LabelMap
from tilelab.evaluation.labels import Labels, match_heights, open_labels
from tilelab.evaluation.metrics.confusion import Counts, Scores, count_confusion, mean_of_present, score_confusion
from tilelab.evaluation.pairs import Pair
from tilelab.geometry import Box, boxes
from tilelab.spec import ClassInfo, default_colors
from tilelab.text import sides_text

if TYPE_CHECKING:
    from tilelab.evaluation.metrics.isbi import IsbiScores
    from tilelab.evaluation.metrics.objects import ObjectScores
    from tilelab.evaluation.metrics.surface import SurfaceDistances


_BLOCK = 2**24
"""Pixels read at once."""
_THREADS = 2
_MOST_TOLERANCE = 100
"""Pixels; farther neighbours are not looked for."""
_SAME_SIZE = 0.01
"""Pixel sizes that differ by no more are taken for the same."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be evaluated.

    Attributes:
        prediction_map, truth_map: what stored values mean, where they are not class indices.
        prediction_axes, truth_axes, image_axes: what the stored axes mean, where that is not stated.
        prediction_series, truth_series, image_series: which of several images in one file, by number or name.
        ignore: pixels of this true class are left out, beside those that the map of the truth leaves out.
        classes: names, when the predictions do not know them.
        surfaces: measure the ASSD of every class but the background.
        tolerance: also the scores that forgive outlines displaced by up to so many pixels, and the boundary F of these.
        lines: class whose lines enclose the regions that V_rand and V_info compare (index or name); None for neither
            score.
    """

    prediction_map: LabelMap | None = None
    truth_map: LabelMap | None = None
    prediction_axes: str | None = None
    truth_axes: str | None = None
    image_axes: str | None = None
    prediction_series: str | None = None
    truth_series: str | None = None
    image_series: str | None = None
    allow_outside: bool = False
    ignore: int | None = None
    classes: tuple[str, ...] = ()
    surfaces: bool = False
    tolerance: float | None = None
    lines: str | int | None = None


@dataclass
class PairScores:
    """Scores of one pair.

    Attributes:
        pair: the files.
        shape: (z, y, x) in pixels.
        plane: index along z of the plane with the most wrong pixels.
        scores: of all its pixels that count.
        ignored: pixels that were left out.
        unlisted: pixels that the label map of the truth, or else that of the prediction, does not list.
        tolerant: of all its pixels that count, small displacements forgiven, if asked for.
        surfaces: distances between outlines, if asked for; entry k is class k + 1.
        objects: how its objects agree, if asked for (`tilelab.measure.matching`); entry k is class k + 1.
        isbi: V_rand and V_info at this pair's own best thresholds, if asked for.
    """

    pair: Pair
    shape: tuple[int, int, int]
    plane: int
    scores: Scores
    ignored: int = 0
    unlisted: int = 0
    tolerant: Scores | None = None
    surfaces: SurfaceDistances | None = None
    objects: tuple[ObjectScores, ...] | None = None
    isbi: IsbiScores | None = None


@dataclass(repr=False)
class Evaluation:
    """Scores of several pairs, and of all their pixels together.

    Attributes:
        classes: names and colours, background first.
        pairs: one entry per pair.
        pooled: of the pixels of all pairs counted together.
        tolerant: the same, small displacements forgiven, if asked for.
        surfaces: of all pairs together, if asked for.
        objects: of all pairs together, if asked for.
        isbi: of all planes of all pairs at the best common threshold, if asked for.
        tolerance: of the boundary F and of `tolerant` in pixels, if asked for.
        pixel_size_nm: of (y, x) when all pairs have the same, else None.
        notes: one line each about what the reader should know.
        failed: of several pairs those that cannot be read or differ in size, and why; they are in no score.
    """

    classes: tuple[ClassInfo, ...]
    pairs: list[PairScores]
    pooled: Scores
    tolerant: Scores | None = None
    surfaces: SurfaceDistances | None = None
    objects: tuple[ObjectScores, ...] | None = None
    isbi: IsbiScores | None = None
    tolerance: float | None = None
    pixel_size_nm: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)
    failed: list[tuple[Pair, str]] = field(default_factory=list)

    @property
    def image_mean_iou(self) -> float:
        """Mean over the pairs of each one's mean IoU."""
        return mean_of_present(np.array([pair.scores.mean_iou for pair in self.pairs]))

    def __repr__(self) -> str:
        each = zip(self.classes, self.pooled.iou.tolist(), strict=True)
        iou = ", ".join(f"{known.name} {value:.4f}" for known, value in each)
        return f"<Evaluation of {len(self.pairs)}: mean IoU {self.pooled.mean_iou:.4f} ({iou})>"


def evaluate(pairs: Sequence[Pair], question: Question | None = None) -> Evaluation:
    """Score pairs of segmentations and truths, in memory for a few blocks.

    Of several pairs, one that cannot be read or whose sizes differ costs its own scores alone.

    Raises:
        InputError: no pair can be read or sizes differ, or labels are no classes; the files are named.
        PlanError: a score that needs a whole plane in memory was asked for, and the plane is too large.
    """
    question = question or Question()
    if question.tolerance is not None and not 0 <= question.tolerance <= _MOST_TOLERANCE:
        raise InputError(f"a tolerance of {question.tolerance:g} pixels was asked for: from 0 to {_MOST_TOLERANCE}")
    stated: set[tuple[ClassInfo, ...]] = set()
    guesses: dict[Assumption, None] = {}
    sizes: set[tuple[float, float] | None] = set()
    notes: list[str] = []
    tried = _Tried(list(pairs))
    for pair in pairs:  # refuse what does not fit before counting anything
        with tried.one(pair), open_pair(pair, question) as (labels, truth):
            _check_sizes(labels, truth)
            notes += _compare_pixel_sizes(labels, truth)
            guesses |= dict.fromkeys((*labels.assumptions, *truth.assumptions))
            sizes.add(labels.pixel_size_nm or truth.pixel_size_nm)
            stated |= {labels.classes} if labels.classes else set()
    known = _colored(question.classes) if question.classes else _agree(stated)
    names = [info.name for info in known]
    check_map(question.truth_map, names, "the label map of the truth")
    check_map(question.prediction_map, names, "the label map of the prediction")
    if question.prediction_map is not None and IGNORE in question.prediction_map.classes():
        raise InputError(
            f"the label map of the prediction {question.prediction_map.text!r} leaves pixels out: only the truth can "
            "(--truth-map, --ignore), say which class they are"
        )
    if question.lines is not None and known:
        find_class(known, question.lines)
    counted = []
    for pair in list(tried.pairs):
        with tried.one(pair), open_pair(pair, question) as (labels, truth):
            counted.append((labels.shape, _count(labels, truth, question)))
    for _, count in counted:
        judge(count.truth, question.truth_map, names, ignore=question.ignore)
        judge(count.prediction, question.prediction_map, names, flag="--pred-map")
    notes += _report_unlisted([count for _, count in counted], question, names)
    classes = known or _unnamed(max(len(count.confusion) for _, count in counted))
    resized = [_resize(count.confusion, len(classes)) for _, count in counted]
    scored = [
        PairScores(pair, shape, count.plane, score_confusion(counts), count.ignored, count.count_unlisted(question))
        for pair, (shape, count), counts in zip(tried.pairs, counted, resized, strict=True)
    ]
    evaluation = Evaluation(classes, scored, score_confusion(np.sum(resized, axis=0)), notes=notes, failed=tried.failed)
    evaluation.tolerance = question.tolerance
    evaluation.pixel_size_nm = sizes.pop() if len(sizes) == 1 else None
    evaluation.notes += map(str, guesses)
    if question.surfaces or question.tolerance is not None:
        _add_surfaces(evaluation, question)
    if question.tolerance is not None:
        _add_tolerant(evaluation, question, question.tolerance)
    if question.lines is not None:
        _add_isbi(evaluation, question, find_class(classes, question.lines))
    outlines = question.surfaces or question.tolerance is not None or question.lines is not None
    if outlines and any(pair.ignored for pair in scored):
        notes.append(
            "outlines and regions are those of whole planes: pixels that are left out count there as background"
        )
    return evaluation


@dataclass
class _Tried:
    """The pairs that could be read so far, and why others could not."""

    pairs: list[Pair]
    failed: list[tuple[Pair, str]] = field(default_factory=list)

    @contextmanager
    def one(self, pair: Pair) -> Iterator[None]:
        """Let a pair fail alone, unless it is the last that is left."""
        try:
            yield
        except InputError as error:
            if len(self.pairs) == 1:
                raise
            self.pairs.remove(pair)
            self.failed.append((pair, str(error)))


def left_out_of(question: Question) -> set[int]:
    """True classes whose pixels take no part; what is stored beyond 0 to 255 is read as `IGNORE`."""
    ignored = None if question.truth_map is None else IGNORE
    given = question.ignore
    given = given if given is None or 0 <= given <= IGNORE else IGNORE
    return {label for label in (given, ignored) if label is not None}


@contextmanager
def open_pair(pair: Pair, question: Question) -> Iterator[tuple[Labels, Labels]]:
    """The labels and the truth of a pair, closed afterwards."""
    with (
        closing(
            open_labels(
                pair.prediction,
                question.prediction_map,
                question.prediction_axes,
                question.allow_outside,
                question.prediction_series,
            )
        ) as labels,
        closing(
            open_labels(
                pair.truth, question.truth_map, question.truth_axes, question.allow_outside, question.truth_series
            )
        ) as truth,
    ):
        truth.void = question.ignore
        match_heights(labels, truth)
        yield labels, truth


def find_class(classes: Sequence[ClassInfo], wanted: str | int) -> int:
    """The index of a class given by name or index.

    Raises:
        InputError: there is no such class; the known ones are named.
    """
    names = [info.name for info in classes]
    if str(wanted) in names:
        return names.index(str(wanted))
    if str(wanted).isdecimal() and int(wanted) < len(names):
        return int(wanted)
    raise InputError(f"no class {wanted!r}: there are {', '.join(f'{i} {name}' for i, name in enumerate(names))}")


def read_blocks(labels: Labels, truth: Labels, seen: tuple[Census, Census]) -> Iterator[tuple[Box, UInt8, UInt8]]:
    """Both of a pair in blocks that decode few chunks twice: the box, the labels and the truth there.

    What is stored is counted in `seen`, that of the labels first.
    """
    extent = block_extent(labels.shape, tuple(max(a, b) for a, b in zip(labels.chunks, truth.chunks, strict=True)))
    todo = boxes(labels.shape, extent)

    def read(box: Box) -> tuple[Box, UInt8, UInt8]:
        return box, labels.read(box, seen[0]), truth.read(box, seen[1])

    with ThreadPoolExecutor(_THREADS, "tilelab-eval") as pool:
        running = [pool.submit(read, box) for box in islice(todo, _THREADS)]
        while running:
            yield running.pop(0).result()
            running += [pool.submit(read, box) for box in islice(todo, 1)]


def block_extent(shape: tuple[int, ...], chunks: tuple[int, ...], pixels: int | None = None) -> tuple[int, int, int]:
    """Extent (z, y, x) of blocks of at most `pixels` (16 million) or one chunk: whole rows of chunks where possible."""
    pixels = pixels or _BLOCK
    _, height, width = shape
    rows, columns = min(height, chunks[-2]), min(width, chunks[-1])
    if rows * width > pixels:
        return 1, rows, min(width, max(1, pixels // (rows * columns)) * columns)
    return 1, min(height, pixels // (rows * width) * rows), width


def _check_sizes(labels: Labels, truth: Labels) -> None:
    if labels.shape != truth.shape:
        raise InputError(
            f"{labels.path} is {_size(labels.shape)} pixels, its truth {truth.path} is {_size(truth.shape)}: "
            "they must be of the same size"
        )


def _size(shape: tuple[int, int, int]) -> str:
    return sides_text(shape if shape[0] > 1 else shape[1:])


def _compare_pixel_sizes(labels: Labels, truth: Labels) -> list[str]:
    """A line where a pair says two pixel sizes of the same pixels."""
    one, other = labels.pixel_size_nm, truth.pixel_size_nm
    if one is None or other is None or np.allclose(one, other, rtol=_SAME_SIZE, atol=0):
        return []
    texts = [f"{y:g} nm" if y == x else f"{y:g} x {x:g} nm" for y, x in (one, other)]
    return [f"{labels.path} has pixels of {texts[0]}, its truth {truth.path} of {texts[1]}: compared pixel by pixel"]


@dataclass
class _Count:
    """What one pass over a pair counted: its confusion, cut to the labels that occur, and what is stored."""

    confusion: Counts
    plane: int
    ignored: int
    prediction: Census
    truth: Census

    def count_unlisted(self, question: Question) -> int:
        """Pixels that were made class 0 because a label map does not list them."""
        maps = ((self.truth, question.truth_map), (self.prediction, question.prediction_map))
        return max((sum(census.unlisted(m).values()) + census.rest for census, m in maps if m is not None), default=0)


def _count(labels: Labels, truth: Labels, question: Question) -> _Count:
    """Count a pair in one pass; the plane is that with the most wrong pixels."""
    total = np.zeros((256, 256), np.int64)
    wrong = np.zeros(labels.shape[0], np.int64)
    seen = Census(str(labels.path)), Census(str(truth.path))
    left_out = left_out_of(question)
    ignored = 0
    for box, mine, true in read_blocks(labels, truth, seen):
        counts = count_confusion(mine, true)
        for label in left_out:
            ignored += int(counts[label].sum())
            counts[label] = 0
        total += counts
        wrong[box.start[0]] += counts.sum() - np.trace(counts)
    present = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    size = int(present[-1]) + 1 if present.size else 1
    return _Count(total[:size, :size].copy(), int(np.argmax(wrong)), ignored, *seen)


def _report_unlisted(counted: Sequence[_Count], question: Question, names: Sequence[str]) -> list[str]:
    """What the label maps leave to class 0, over all pairs; refuses a map of which nothing occurs."""
    lines = []
    for what, flag, mapping, found in (
        ("truth", "--truth-map", question.truth_map, [count.truth for count in counted]),
        ("predictions", "--pred-map", question.prediction_map, [count.prediction for count in counted]),
    ):
        whole = Census(found[0].name if len(found) == 1 else f"{what} ({len(found)} files)")
        for census in found:
            whole.merge(census)
        lines.append(report_unlisted(whole, mapping, names, flag=flag))
    return [line for line in lines if line is not None]


def _resize(counts: Counts, classes: int) -> Counts:
    """The matrix with zeros added up to `classes`."""
    more = classes - len(counts)
    return np.pad(counts, ((0, more), (0, more)))


def _agree(stated: set[tuple[ClassInfo, ...]]) -> tuple[ClassInfo, ...]:
    """The classes that the predictions state; empty when none does.

    Raises:
        InputError: they differ.
    """
    if len(stated) > 1:
        first, second = sorted(", ".join(info.name for info in classes) for classes in stated)[:2]
        raise InputError(f"the predictions have different classes ({first}; {second}): evaluate them apart")
    return next(iter(stated), ())


def _unnamed(count: int) -> tuple[ClassInfo, ...]:
    return _colored(tuple(f"class {k}" for k in range(max(2, count))))


def _colored(names: tuple[str, ...]) -> tuple[ClassInfo, ...]:
    """Classes in the colours that models without their own have."""
    return tuple(map(ClassInfo, names, default_colors(len(names))))


def _add_surfaces(evaluation: Evaluation, question: Question) -> None:
    """Measure the distances between outlines."""
    from tilelab.evaluation.shapes import measure_outlines

    for scored in evaluation.pairs:
        with open_pair(scored.pair, question) as (labels, truth):
            scored.surfaces = measure_outlines(
                labels, truth, range(1, len(evaluation.classes)), question.tolerance or 0.0
            )
        total = evaluation.surfaces
        evaluation.surfaces = scored.surfaces if total is None else total + scored.surfaces


def _add_tolerant(evaluation: Evaluation, question: Question, tolerance: float) -> None:
    """Count the pixels again, small displacements forgiven."""
    from tilelab.evaluation.shapes import count_moved

    size = len(evaluation.classes)
    total = np.zeros((size, size), np.int64)
    for scored in evaluation.pairs:
        with open_pair(scored.pair, question) as (labels, truth):
            counts = count_moved(labels, truth, tolerance, left_out_of(question))[:size, :size]
        scored.tolerant = score_confusion(counts)
        total += counts
    evaluation.tolerant = score_confusion(total)


def _add_isbi(evaluation: Evaluation, question: Question, lines: int) -> None:
    """Compare the regions between the lines of class `lines`."""
    from tilelab.evaluation.metrics.isbi import best_scores
    from tilelab.evaluation.shapes import compare_regions

    planes: list[Float64] = []
    for scored in evaluation.pairs:
        with open_pair(scored.pair, question) as (labels, truth):
            found = compare_regions(labels, truth, lines)
        scored.isbi = best_scores(found)
        planes += found
    evaluation.isbi = best_scores(planes)
