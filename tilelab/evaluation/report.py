"""An evaluation as a Markdown table for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from tilelab.evaluation.metrics.confusion import Scores
from tilelab.evaluation.metrics.objects import THRESHOLDS, ObjectScores
from tilelab.evaluation.scoring import Evaluation, PairScores
from tilelab.text import markdown_table, plain_numbers

_RULES = (
    "The pixels of all images are counted together ('all'). A class that occurs in neither truth nor prediction has no "
    "score (-) and is left out of the means; one that occurs in one of them only scores 0. F1 is that of pixels, "
    "without tolerance for displaced ones, and equals Dice; in the first table it is the mean over all classes but "
    "the background."
)


def to_markdown(evaluation: Evaluation) -> str:
    """Two tables, images and classes, and what is behind the numbers."""
    names = [info.name for info in evaluation.classes]
    isbi = evaluation.isbi is not None
    head = ["image", "pixels", "accuracy", "mean IoU", *(f"IoU {name}" for name in names), "mean Dice", "F1"]
    head += [] if evaluation.tolerant is None else [f"mean IoU within {evaluation.tolerance:g} px"]
    head += ["V_rand", "V_info"] if isbi else []
    beside = {
        "left out": [pair.ignored for pair in evaluation.pairs],
        "unlisted": [pair.unlisted for pair in evaluation.pairs],
    }
    beside = {name: numbers for name, numbers in beside.items() if any(numbers)}
    head += list(beside)
    rows = [
        [
            pair.pair.name,
            *_row(pair.scores, pair.tolerant),
            *([_number(pair.isbi.v_rand), _number(pair.isbi.v_info)] if pair.isbi else []),
            *(f"{numbers[i]:,}" for numbers in beside.values()),
        ]
        for i, pair in enumerate(evaluation.pairs)
    ]
    if len(rows) > 1:
        total = evaluation.isbi
        both = [_number(total.v_rand), _number(total.v_info)] if total else []
        sums = [f"{sum(numbers):,}" for numbers in beside.values()]
        rows.append(["**all**", *_row(evaluation.pooled, evaluation.tolerant), *both, *sums])
    parts = [markdown_table(head, rows), markdown_table(*_class_table(evaluation)), _tell_means(evaluation), _RULES]
    if beside:
        parts.append(
            "Left out: pixels without a class in the truth, in no score. Unlisted: pixels that a label map does not "
            f"list, counted as {names[0]}."
        )
    if len(rows) > 1:
        parts.append(f"Mean over the images of their mean IoU: {_number(evaluation.image_mean_iou)}.")
    if evaluation.surfaces is not None:
        parts.append(
            "ASSD: mean distance of outline pixels to the other outline, both ways, within each plane; the frame "
            "of the image is no outline."
        )
    if evaluation.tolerance is not None:
        parts.append(
            f"Boundary F: of outline pixels that lie within {evaluation.tolerance:g} px of the other outline. IoU "
            f"within {evaluation.tolerance:g} px: a wrong pixel is right where the truth has its found class, and the "
            "segmentation its true class, no farther than that; what was missed or invented stays wrong."
        )
    if evaluation.objects is not None:
        parts += [markdown_table(*_object_table(evaluation)), _OBJECT_RULES]
    pooled = _number(evaluation.pooled.pooled_iou)
    parts.append(f"Pooled IoU, all classes' pixels counted together as smp and NASA's MicroNet count it: {pooled}.")
    if evaluation.isbi is not None:
        at = f"{evaluation.isbi.v_rand_threshold:.1f} and {evaluation.isbi.v_info_threshold:.1f}"
        parts.append(f"V_rand and V_info: after thinning, at the best thresholds ({at} for all planes together).")
    told = [*evaluation.notes, *(f"in no score: {pair.name}: {why}" for pair, why in evaluation.failed)]
    parts += ["\n".join(f"- {line}" for line in told)] if told else []
    return "\n\n".join(parts) + "\n"


def _tell_means(evaluation: Evaluation) -> str:
    """Over which classes the means are."""
    names = [info.name for info in evaluation.classes]
    absent = _absent(evaluation.pooled, names)
    if not absent:
        return f"Means are over all {len(names)} classes{_less(evaluation, names)}."
    there = [name for name in names if name not in absent]
    return f"Means are over {', '.join(there) or 'no class'}; {', '.join(absent)} occurs nowhere."


def _less(evaluation: Evaluation, names: list[str]) -> str:
    """Where single images have fewer classes than all of them."""
    short = sum(bool(_absent(pair.scores, names)) for pair in evaluation.pairs)
    return f", in {short} of {len(evaluation.pairs)} images over those that occur there" if short else ""


def _absent(scores: Scores, names: list[str]) -> list[str]:
    return [name for name, iou in zip(names, scores.iou, strict=True) if np.isnan(iou)]


def to_json(evaluation: Evaluation) -> str:
    """Everything, as JSON; scores that do not exist, and infinite distances, are null."""
    names = [info.name for info in evaluation.classes]
    document = {
        "classes": names,
        "images": [_pair_record(pair, names, evaluation.tolerance) for pair in evaluation.pairs],
        "all": _score_record(evaluation.pooled, names) | _extras(evaluation, names, evaluation.tolerance),
        "image_mean_iou": evaluation.image_mean_iou,
        "pixel_size_nm": evaluation.pixel_size_nm,
        "notes": evaluation.notes,
        **({"failed": {pair.name: why for pair, why in evaluation.failed}} if evaluation.failed else {}),
    }
    return json.dumps(plain_numbers(document), indent=1) + "\n"


def _row(scores: Scores, tolerant: Scores | None) -> list[str]:
    values = [scores.pixel_accuracy, scores.mean_iou, *scores.iou, scores.mean_dice, scores.foreground_f1]
    values += [] if tolerant is None else [tolerant.mean_iou]
    return [f"{int(scores.confusion.sum()):,}", *map(_number, values)]


def _class_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of classes."""
    scores, size = evaluation.pooled, evaluation.pixel_size_nm
    head = ["class", "true", "predicted", "IoU", "Dice = F1", "precision", "recall"]
    square = size is not None and math.isclose(size[0], size[1])
    if evaluation.surfaces is not None:
        head += ["ASSD px", "ASSD nm"] if square else ["ASSD px"]
    if evaluation.surfaces is not None and evaluation.tolerance is not None:
        head += ["boundary F", f"IoU within {evaluation.tolerance:g} px"]
    total = max(1, int(scores.confusion.sum()))
    rows = []
    for k, info in enumerate(evaluation.classes):
        shares = [100 * int(scores.confusion.sum(axis=axis)[k]) / total for axis in (1, 0)]
        row = [info.name, *(f"{share:.2f} %" for share in shares)]
        row += [_number(values[k]) for values in (scores.iou, scores.dice, scores.precision, scores.recall)]
        if evaluation.surfaces is not None:
            distance = float(evaluation.surfaces.assd[k - 1]) if k else math.nan
            row.append(_number(distance, 2))
            if square and size is not None:
                row.append(_number(distance * size[0], 1))
            if evaluation.tolerance is not None:
                row.append(_number(float(evaluation.surfaces.boundary_f[k - 1]) if k else math.nan))
                row.append("-" if evaluation.tolerant is None else _number(float(evaluation.tolerant.iou[k])))
        rows.append(row)
    return head, rows


_OBJECT_RULES = (
    "Objects: connected pixels of one class; a true one is found if an object of its class overlaps it by an IoU above "
    "0.5 (0.75). PQ: panoptic quality, mean IoU of the matched times F1. AP: mean of TP / (TP + FP + FN) over the "
    "thresholds 0.5 to 0.95. ARE: adapted Rand error over the pixels of true objects."
)


def _object_table(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table of objects."""
    head = ["objects", "true", "found", "matched", "precision", "recall", "F1", "F1 at 0.75", "PQ", "AP", "ARE"]
    rows = []
    for info, one in zip(evaluation.classes[1:], evaluation.objects or (), strict=True):
        values = [one.precision[0], one.recall[0], one.f1[0], one.f1[5]]
        values += [one.panoptic_quality, one.average_precision, one.rand_error]
        rows.append([info.name, f"{one.true:,}", f"{one.found:,}", f"{int(one.matched[0]):,}", *map(_number, values)])
    return head, rows


def _object_record(one: ObjectScores) -> dict[str, Any]:
    return {
        "true": one.true,
        "found": one.found,
        "thresholds": list(THRESHOLDS),
        "matched": one.matched.tolist(),
        "precision": one.precision.tolist(),
        "recall": one.recall.tolist(),
        "f1": one.f1.tolist(),
        "segmentation_quality": one.segmentation_quality,
        "panoptic_quality": one.panoptic_quality,
        "average_precision": one.average_precision,
        "adapted_rand_error": one.rand_error,
    }


def _number(value: float, digits: int = 4) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _pair_record(pair: PairScores, names: list[str], tolerance: float | None) -> dict[str, Any]:
    return {
        "name": pair.pair.name,
        "prediction": str(pair.pair.prediction),
        "truth": str(pair.pair.truth),
        "shape": list(pair.shape),
        "ignored": pair.ignored,
        "unlisted": pair.unlisted,
        **_score_record(pair.scores, names),
        **_extras(pair, names, tolerance),
    }


def _score_record(scores: Scores, names: list[str]) -> dict[str, Any]:
    by_class = {"iou": scores.iou, "dice": scores.dice, "precision": scores.precision, "recall": scores.recall}
    return {
        "pixels": int(scores.confusion.sum()),
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_iou": scores.mean_iou,
        "mean_over": [name for name in names if name not in _absent(scores, names)],
        "mean_dice": scores.mean_dice,
        "foreground_f1": scores.foreground_f1,
        "pooled_iou": scores.pooled_iou,
        **{key: dict(zip(names, values.tolist(), strict=True)) for key, values in by_class.items()},
        "f1": dict(zip(names, scores.f1.tolist(), strict=True)),
        "confusion": scores.confusion.tolist(),
    }


def _extras(scored: Evaluation | PairScores, names: list[str], tolerance: float | None) -> dict[str, Any]:
    """Distances and ISBI scores, where there are some."""
    record: dict[str, Any] = {}
    if scored.surfaces is not None:
        record["assd_px"] = dict(zip(names[1:], scored.surfaces.assd.tolist(), strict=True))
        if tolerance is not None:
            record["boundary_f"] = dict(zip(names[1:], scored.surfaces.boundary_f.tolist(), strict=True))
    if scored.tolerant is not None:
        within = scored.tolerant
        record["tolerant"] = {
            "tolerance_px": tolerance,
            "pixel_accuracy": within.pixel_accuracy,
            "mean_iou": within.mean_iou,
            "iou": dict(zip(names, within.iou.tolist(), strict=True)),
        }
    if scored.objects is not None:
        record["objects"] = dict(zip(names[1:], map(_object_record, scored.objects), strict=True))
    if scored.isbi is not None:
        record["isbi"] = asdict(scored.isbi)
    return record
