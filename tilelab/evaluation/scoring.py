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
from tilelab.errors import InputError
from tilelab.evaluation.labels import LabelMap, Labels, open_labels
from tilelab.evaluation.metrics.confusion import Counts, Scores, count_confusion, mean_of_present, score_confusion
from tilelab.evaluation.pairs import Pair
from tilelab.geometry import Box, boxes
from tilelab.spec import ClassInfo, default_colors
from tilelab.text import size_text

if TYPE_CHECKING:
    from tilelab.evaluation.metrics.isbi import IsbiScores
    from tilelab.evaluation.metrics.surface import SurfaceDistances


_BLOCK = 2**24
"""Pixels read at once."""
_THREADS = 2
_MOST_UNNAMED = 32
"""Labels are indices; without class names, one above this is taken for a forgotten label map."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be evaluated.

    Attributes:
        prediction_map, truth_map: what stored values mean, where they are not class indices.
        ignore: pixels of this true class are left out.
        classes: names, when the predictions do not know them.
        surfaces: measure the ASSD of every class but the background.
        lines: class whose lines enclose the regions that V_rand and V_info compare (index or name); None for neither
            score.
    """

    prediction_map: LabelMap | None = None
    truth_map: LabelMap | None = None
    ignore: int | None = None
    classes: tuple[str, ...] = ()
    surfaces: bool = False
    lines: str | int | None = None


@dataclass
class PairScores:
    """Scores of one pair.

    Attributes:
        pair: the files.
        shape: (z, y, x) in pixels.
        plane: index along z of the plane with the most wrong pixels.
        scores: of all its pixels.
        surfaces: distances between outlines, if asked for; entry k is class k + 1.
        isbi: V_rand and V_info at this pair's own best thresholds, if asked for.
    """

    pair: Pair
    shape: tuple[int, int, int]
    plane: int
    scores: Scores
    surfaces: SurfaceDistances | None = None
    isbi: IsbiScores | None = None


@dataclass
class Evaluation:
    """Scores of several pairs, and of all their pixels together.

    Attributes:
        classes: names and colours, background first.
        pairs: one entry per pair.
        pooled: of the pixels of all pairs counted together.
        surfaces: of all pairs together, if asked for.
        isbi: of all planes of all pairs at the best common threshold, if asked for.
        pixel_size_nm: of (y, x) when all pairs have the same, else None.
        notes: one line each about what the reader should know.
    """

    classes: tuple[ClassInfo, ...]
    pairs: list[PairScores]
    pooled: Scores
    surfaces: SurfaceDistances | None = None
    isbi: IsbiScores | None = None
    pixel_size_nm: tuple[float, float] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def image_mean_iou(self) -> float:
        """Mean over the pairs of each one's mean IoU."""
        return mean_of_present(np.array([pair.scores.mean_iou for pair in self.pairs]))


def evaluate(pairs: Sequence[Pair], question: Question | None = None) -> Evaluation:
    """Score pairs of segmentations and truths, in memory for a few blocks.

    Raises:
        InputError: a file cannot be read, sizes differ, or labels are no classes; the files are named.
        PlanError: a score that needs a whole plane in memory was asked for, and the plane is too large.
    """
    question = question or Question()
    stated: set[tuple[ClassInfo, ...]] = set()
    sizes: set[tuple[float, float] | None] = set()
    for pair in pairs:  # refuse what does not fit before counting anything
        with open_pair(pair, question) as (labels, truth):
            _check_sizes(labels, truth)
            sizes.add(labels.pixel_size_nm or truth.pixel_size_nm)
            stated |= {labels.classes} if labels.classes else set()
    known = _colored(question.classes) if question.classes else _agree(stated)
    counted = []
    for pair in pairs:
        with open_pair(pair, question) as (labels, truth):
            counts, plane = _count(labels, truth, question.ignore)
            _check_values(pair, counts, len(known) or _MOST_UNNAMED, named=bool(known))
            counted.append((labels.shape, counts, plane))
    classes = known or _unnamed(max(len(counts) for _, counts, _ in counted))
    resized = [_resize(counts, len(classes)) for _, counts, _ in counted]
    scored = [
        PairScores(pair, shape, plane, score_confusion(counts))
        for pair, (shape, _, plane), counts in zip(pairs, counted, resized, strict=True)
    ]
    evaluation = Evaluation(classes, scored, score_confusion(np.sum(resized, axis=0)))
    evaluation.pixel_size_nm = sizes.pop() if len(sizes) == 1 else None
    if question.surfaces:
        _add_surfaces(evaluation, question)
    if question.lines is not None:
        _add_isbi(evaluation, question, find_class(classes, question.lines))
    return evaluation


@contextmanager
def open_pair(pair: Pair, question: Question) -> Iterator[tuple[Labels, Labels]]:
    """The labels and the truth of a pair, closed afterwards."""
    with (
        closing(open_labels(pair.prediction, question.prediction_map)) as labels,
        closing(open_labels(pair.truth, question.truth_map)) as truth,
    ):
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


def read_blocks(labels: Labels, truth: Labels) -> Iterator[tuple[Box, UInt8, UInt8]]:
    """Both of a pair in blocks that decode few chunks twice: the box, the labels and the truth there."""
    extent = block_extent(labels.shape, tuple(max(a, b) for a, b in zip(labels.chunks, truth.chunks, strict=True)))
    todo = boxes(labels.shape, extent)

    def read(box: Box) -> tuple[Box, UInt8, UInt8]:
        return box, labels.read(box), truth.read(box)

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
    return size_text(shape if shape[0] > 1 else shape[1:])


def _count(labels: Labels, truth: Labels, ignore: int | None) -> tuple[Counts, int]:
    """Confusion of a pair, cut to the labels that occur, and the plane with the most wrong pixels."""
    total = np.zeros((256, 256), np.int64)
    wrong = np.zeros(labels.shape[0], np.int64)
    for box, mine, true in read_blocks(labels, truth):
        counts = count_confusion(mine, true, ignore=ignore)
        total += counts
        wrong[box.start[0]] += counts.sum() - np.trace(counts)
    present = np.flatnonzero(total.sum(axis=0) + total.sum(axis=1))
    size = int(present[-1]) + 1 if present.size else 1
    return total[:size, :size].copy(), int(np.argmax(wrong))


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


def _check_values(pair: Pair, counts: Counts, limit: int, *, named: bool) -> None:
    """Refuse labels that are no class.

    Raises:
        InputError: names the file and the value, and says how to map or ignore it.
    """
    present = {pair.truth: counts.sum(axis=1), pair.prediction: counts.sum(axis=0)}
    for path, pixels in present.items():
        values = np.flatnonzero(pixels)
        if not values.size or values[-1] < limit:
            continue
        value, truth = int(values[-1]), path == pair.truth
        share = 100 * pixels[value] / counts.sum()
        why = f"the classes are 0 to {limit - 1}" if named else "which is hardly a class"
        ways = f"map it (--truth-map {value}:1) or leave it out (--ignore {value})"
        raise InputError(
            f"{path} holds the value {value} in {share:.3g} % of its pixels, {why}: "
            + (ways if truth else f"map it (--pred-map {value}:1)")
        )


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
            scored.surfaces = measure_outlines(labels, truth, range(1, len(evaluation.classes)))
        total = evaluation.surfaces
        evaluation.surfaces = scored.surfaces if total is None else total + scored.surfaces


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
