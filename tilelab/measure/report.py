"""Surveys of several images together: tables for people, JSON for programs, rows for the table of objects."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64
from tilelab.errors import InputError
from tilelab.measure.fractions import Fraction, pool_fractions
from tilelab.measure.survey import Survey
from tilelab.text import markdown_table, plain_numbers

_KEPT = ("equivalent_diameter", "circularity", "sphericity", "nearest")
_WHOLE = ("fibre_diameter", "sheath_thickness", "g_ratio")
"""Of fibres that are not cut by the frame."""


class Summary:
    """What the objects of several surveys come to, class by class; fed by the rows on their way to the table.

    Attributes:
        surveys: in the order in which they came.
        kept: of each class the values of some columns, for the distributions; 32 bytes an object.
    """

    def __init__(self) -> None:
        self.surveys: list[Survey] = []
        self.kept: dict[str, dict[str, list[Array]]] = {}
        self._lines: list[str] = []

    def check(self, survey: Survey) -> None:
        """Refuse a survey that is told in another unit than those before, or of other axes or classes.

        Raises:
            InputError: it names both.
        """
        if not self.surveys:
            return
        first = self.surveys[0]
        if (first.shape[0] == 1) != (survey.shape[0] == 1):
            kinds = ["a plane" if one.shape[0] == 1 else "a volume" for one in (survey, first)]
            raise InputError(f"{survey.path} is {kinds[0]}, {first.path} {kinds[1]}: measure them apart")
        if first.unit != survey.unit:
            known = ["known" if one.unit == "nm" else "not known" for one in (survey, first)]
            raise InputError(
                f"the pixel size of {survey.path} is {known[0]}, that of {first.path} {known[1]}: one table has one "
                "unit, so say it with --pixel-size, or measure them apart"
            )
        both = [[info.name for info in classes] for classes in (survey.classes, self._classes)]
        if any(one != other for one, other in zip(*both, strict=False)):
            told = [", ".join(names) for names in both]
            raise InputError(
                f"the classes of {survey.path} are {told[0]}, those before it are {told[1]}: measure them "
                "apart, or name the classes of all with --classes"
            )

    def rows(self, survey: Survey) -> Iterator[dict[str, Array]]:
        """The table of a survey, with the image's name before; what passes by is counted."""
        self.surveys.append(survey)
        for part in survey.columns():
            for name in np.unique(part["class"]):
                chosen = part["class"] == name
                columns = self.kept.setdefault(str(name), {"border": []})
                columns["border"].append(part["touches_border"][chosen])
                for key, values in part.items():
                    if key.startswith(_KEPT):
                        columns.setdefault(key, []).append(values[chosen])
                    elif key.startswith(_WHOLE):
                        whole = chosen & ~part["touches_border"] & ~part["sheath_cut"] & ~np.isnan(values)
                        columns.setdefault(key, []).append(values[whole])
                    elif key.startswith("sheath_area"):
                        inside = chosen & ~part["touches_border"] & ~part["sheath_cut"]
                        columns.setdefault("bare", []).append(values[inside] == 0)
            yield {"image": np.repeat(np.array([survey.name]), len(part["object"])), **part}

    def profiles(self) -> Iterator[dict[str, Array]]:
        """The thickness of every layer along its way."""
        for survey in self.surveys:
            if survey.layer is not None:
                layer = survey.layer
                names = np.repeat(np.array([survey.name]), len(layer.position))
                yield {"image": names, "position_px": layer.position, f"thickness_{layer.unit}": layer.thickness}

    def values(self, name: str, begins: str) -> tuple[str, Float64]:
        """The column of a class whose name begins so, and its values; an empty name where there is none."""
        for key, parts in self.kept.get(name, {}).items():
            if key.startswith(begins):
                return key, np.concatenate(parts).astype(np.float64)
        return "", np.empty(0)

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "images": [
                {
                    "name": survey.name,
                    "path": str(survey.path),
                    "shape": list(survey.shape),
                    "pixel_size_nm": survey.size_nm,
                    "objects": survey.objects.count,
                    "connectivity": survey.objects.connectivity,
                    "fractions": _fractions_record(survey.classes, survey.fractions),
                    "assumptions": [str(one) for one in survey.assumptions],
                }
                for survey in self.surveys
            ],
            "fractions": _fractions_record(self._classes, self._pooled),
            "objects": {row["class"]: row for row in self._objects()},
            "layers": {s.name: _layer_record(s) for s in self.surveys if s.layer is not None},
            "fibres": {row["class"]: row for row in self._fibres()},
        }

    def markdown(self) -> str:
        """The shares of the classes with their intervals, then the objects of each class."""
        parts = [markdown_table(["class", "pixels", "share", "95 % interval"], self._share_rows())]
        many = len(self.surveys) > 1
        block = max((f.block for f in self._pooled), default=0)
        between = f"blocks of up to {block} px" if block else f"the spread between {len(self.surveys)} images"
        known = any(not math.isnan(f.low) for f in self._pooled)
        parts.append(f"Intervals are from {between}." if known else "The image is too small for intervals.")
        found = self._objects()
        if found:
            parts.append(markdown_table(*_object_rows(found)))
        layers = [_layer_record(survey) for survey in self.surveys if survey.layer is not None]
        for title, rows in (
            ("Layers", layers),
            ("Fibres, without those that the frame cuts; axons without a sheath are none", self._fibres()),
        ):
            if rows:
                parts += [f"{title}:", markdown_table(*_object_rows(rows))]
        if many:
            parts.append(
                markdown_table(["image", "objects", *(f"share {c.name}" for c in self._classes)], self._image_rows())
            )
        return "\n\n".join(parts) + "\n"

    def to_json(self) -> str:
        """`document` as text; what is no number is null."""
        return json.dumps(plain_numbers(self.document()), indent=1) + "\n"

    @property
    def _classes(self) -> Sequence[Any]:
        return max((survey.classes for survey in self.surveys), key=len)

    @property
    def _pooled(self) -> list[Fraction]:
        if len(self.surveys) == 1:
            return self.surveys[0].fractions
        return pool_fractions([survey.counts for survey in self.surveys])

    def _share_rows(self) -> list[list[str]]:
        rows = []
        for info, one in zip(self._classes, self._pooled, strict=False):
            sure = "-" if math.isnan(one.low) else f"{100 * one.low:.2f} to {100 * one.high:.2f} %"
            rows.append([info.name, f"{one.pixels:,}", f"{100 * one.share:.2f} %", sure])
        return rows

    def _image_rows(self) -> list[list[str]]:
        none = [0.0] * len(self._classes)  # of what an image without names has not
        shares = [[*(f.share for f in s.fractions), *none[len(s.fractions) :]] for s in self.surveys]
        return [
            [s.name, f"{s.objects.count:,}", *(f"{100 * share:.2f} %" for share in each)]
            for s, each in zip(self.surveys, shares, strict=True)
        ]

    def _objects(self) -> list[dict[str, Any]]:
        """One record per class that has objects."""
        rows = []
        for info in self._classes:
            key, diameter = self.values(info.name, "equivalent_diameter")
            if not len(diameter):
                continue
            unit = key.rsplit("_", 1)[1]
            round_key, roundness = self.values(info.name, "circularity")
            if not round_key:
                round_key, roundness = self.values(info.name, "sphericity")
            nearest = self.values(info.name, "nearest")[1]
            border = np.concatenate(self.kept[info.name]["border"])
            flat = self.surveys[0].shape[0] == 1
            density = len(diameter) / sum(_space(survey) for survey in self.surveys)
            per = ("megapixel" if unit == "px" else "um2") if flat else ("megavoxel" if unit == "px" else "um3")
            some = np.isfinite(nearest).any()
            rows.append(
                {
                    "class": info.name,
                    "count": len(diameter),
                    "at_border": int(border.sum()),
                    f"density_per_{per}": density,
                    f"mean_diameter_{unit}": float(diameter.mean()),
                    f"sd_diameter_{unit}": _spread(diameter),
                    f"median_diameter_{unit}": float(np.median(diameter)),
                    f"mean_{round_key}": float(roundness.mean()),
                    f"median_nearest_{unit}": float(np.median(nearest[np.isfinite(nearest)])) if some else math.nan,
                }
            )
        return rows

    def _fibres(self) -> list[dict[str, Any]]:
        """One record for the class of the axons."""
        rows = []
        for info in self._classes:
            g = self.values(info.name, "g_ratio")[1]
            if not len(g):
                continue
            row: dict[str, Any] = {"class": info.name, "count": len(g)}
            row["without_sheath"] = int(self.values(info.name, "bare")[1].sum())
            for begins in _WHOLE:
                key, values = self.values(info.name, begins)
                row |= {f"mean_{key}": float(values.mean()), f"sd_{key}": _spread(values)}
            rows.append(row)
        return rows


def _layer_record(survey: Survey) -> dict[str, Any]:
    """The layer of an image."""
    layer = survey.layer
    assert layer is not None  # noqa: S101 - asked for only where there is one
    return {
        "image": survey.name, f"mean_thickness_{layer.unit}": layer.mean, f"sd_{layer.unit}": layer.spread,
        f"p5_{layer.unit}": layer.percentile(5), f"p95_{layer.unit}": layer.percentile(95),
        f"length_{layer.unit}": layer.length, "covered": layer.covered, "cut": layer.cut,
        "parts": layer.parts, "along": layer.axis,
    }  # fmt: skip


def _spread(values: Float64) -> float:
    """Standard deviation of what a sample is of; NaN for a single one."""
    return float(values.std(ddof=1)) if len(values) > 1 else math.nan


def _space(survey: Survey) -> float:
    """What densities are per: square or cubic micrometres, or megapixels."""
    return 1 / survey.density(1)


def _fractions_record(classes: Sequence[Any], fractions: Sequence[Fraction]) -> dict[str, Any]:
    return {
        info.name: {
            "pixels": one.pixels, "share": one.share, "low": one.low, "high": one.high, "block_px": one.block
        }
        for info, one in zip(classes, fractions, strict=False)
    }  # fmt: skip


def _object_rows(records: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = [key.replace("_", " ") for key in records[0]]
    rows = [
        [
            f"{v:,}" if isinstance(v, int) else v if isinstance(v, str) else "-" if math.isnan(v) else f"{v:.4g}"
            for v in r.values()
        ]
        for r in records
    ]
    return head, rows
