"""`tilelab.measure` and `tilelab.evaluate`: what the commands `measure` and `eval` do, for files, runs and arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from tilelab.evaluation import LabelMap, Pair, find_pairs, scoring
from tilelab.evaluation.scoring import Evaluation
from tilelab.measure import survey
from tilelab.measure.forecast import Forecast, foresee
from tilelab.measure.matching import add_object_scores
from tilelab.measure.reading import Question
from tilelab.measure.survey import Survey
from tilelab.run.notebook import Bar, in_notebook
from tilelab.text import nearest_word

Q = TypeVar("Q", Question, scoring.Question)

_SEVERAL = ("classes", "only", "layer", "votes", "fibres", "pixel_size_nm")  # one of them needs no list


def measure(
    source: Any,
    question: Question | None = None,
    *,
    image: Any = None,
    progress: Callable[[int, int], None] | None = None,
    client: Any = None,
    **wishes: Any,
) -> Survey:
    """Measure the classes and objects of a result or label image of any size; close what it returns.

    >>> with tilelab.measure("sample.ome.zarr", image="sample.tif", min_size="20px") as survey:
    ...     shares = {known.name: part.share for known, part in zip(survey.classes, survey.fractions)}
    ...     table = survey.table()  # one array a column: pandas.DataFrame(table)
    >>> round(sum(shares.values()), 6), bool(np.all(table["area_px"] >= 20))
    (1.0, True)

    Args:
        source: a result, the `Run` that made it, any label image; an array of class indices.
        question: what is wanted.
        image: the micrograph, for intensities under the objects: anything that `open_image` takes.
        progress: called with pixels done and in all; left out, a bar where this is a notebook.
        client: of a Dask cluster whose workers read and find the pieces of objects; they see the same files.
        wishes: fields of `Question`, instead of those of `question`: ``measure(path, min_size="50px", part=1.0)``.

    Raises:
        InputError: something cannot be read, or the micrograph has another size.
        TypeError: a wish has no such name; the nearest one is named.
    """
    asked = _with_wishes(question or Question(), wishes)
    bar = Bar("measuring") if progress is None and in_notebook() else None
    show = progress if bar is None else bar.show
    return survey.measure(source, asked, image=image, progress=show, client=client)


def plan(source: Any, question: Question | None = None, *, image: Any = None, **wishes: Any) -> Forecast:
    """Tell what `measure` would take of labels of any size, after measuring some pieces of them for a few seconds.

    >>> plan = tilelab.measure.plan("sample.ome.zarr", only="secondary precipitate")
    >>> plan.shape, plan.passes, plan.seconds < 60, plan.memory["total"] < 2**26
    ((1, 512, 512), 1, True, True)

    Args:
        source, question, image, wishes: of `measure`.

    Raises:
        InputError: something cannot be read, or is asked for that is not there.
        PlanError: an axis is longer than sums are exact for.
        TypeError: a wish has no such name; the nearest one is named.
    """
    return foresee(source, _with_wishes(question or Question(), wishes), image=image)


def evaluate(
    prediction: Any,
    truth: Any,
    question: scoring.Question | None = None,
    *,
    image: Any = None,
    objects: bool = False,
    connectivity: int = 1,
    min_pixels: int = 0,
    **wishes: Any,
) -> Evaluation:
    """Score segmentations against the truth: two files or arrays, or two folders whose files are paired by name.

    >>> scores = tilelab.evaluate("sample.ome.zarr", "truth.tif", objects=True)
    >>> scores.pooled.mean_iou > 0.8, scores.pooled.iou.shape, len(scores.objects)
    (True, (3,), 2)
    >>> labels = np.asarray(tilelab.read_result("sample.ome.zarr").labels[0])
    >>> tilelab.evaluate(labels, tifffile.imread("truth.tif")).pooled.mean_iou == scores.pooled.mean_iou
    True

    Args:
        prediction: a result, the `Run` that made it, a label image, a folder of them; an array of class indices.
        truth: a label image, a folder, an array.
        question: what is wanted.
        image: the micrograph or a folder of them, which pictures of errors are drawn on.
        objects: match the objects of each class, too: PQ, AP, F1, Rand error.
        connectivity: pixels of an object touch by faces (1), edges (2) or corners (3).
        min_pixels: objects of fewer pixels are none.
        wishes: fields of the question by name: ``truth_map="255:1"``, ``surfaces=True``, ``tolerance=2``, ``ignore=3``.

    Raises:
        InputError: no pair can be read or sizes differ, or labels are no classes; the files are named.
        PlanError: a score that needs a whole plane in memory was asked for, and the plane is too large.
        TypeError: a wish has no such name; the nearest one is named.
    """
    asked = _with_wishes(question or scoring.Question(), wishes)
    if all(isinstance(one, str | os.PathLike) for one in (prediction, truth)):
        pairs, notes = find_pairs(Path(prediction), Path(truth), None if image is None else Path(image))
    else:
        pairs, notes = [Pair("labels", prediction, truth, image)], []
    evaluation = scoring.evaluate(pairs, asked)
    if objects:
        add_object_scores(evaluation, asked, connectivity=connectivity, min_pixels=min_pixels)
    evaluation.notes += notes
    return evaluation


def _with_wishes(question: Q, wishes: Mapping[str, Any]) -> Q:
    """`question` with fields by their names; a label map may be its text, a list is as good as a tuple.

    Raises:
        TypeError: it has no such field.
    """
    known = [one.name for one in fields(question)]
    chosen: dict[str, Any] = {}
    for word, value in wishes.items():
        if word not in known:
            raise TypeError(f"there is no wish {word!r}: {nearest_word(word, known)}")
        if word.endswith("_map") and isinstance(value, str):
            value = LabelMap.parse(value)
        elif isinstance(value, list):
            value = tuple(value)
        elif word in _SEVERAL and isinstance(value, str | int | float):
            value = (value,)
        elif word == "min_size" and isinstance(value, Real):
            value = f"{value}px"
        chosen[word] = value
    return replace(question, **chosen)
