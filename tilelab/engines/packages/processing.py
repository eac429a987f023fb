"""Preprocessing that a package lists, step by step, as the one normalisation that a description has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.assumptions import Assumption
from tilelab.errors import ModelError

_WHITE = {"uint8": 300.0, "uint16": 70000.0}  # what a spread of such intensities stays below


def normalization_words(
    path: Path, steps: Sequence[tuple[str, dict[str, Any]]], dtype: str, *, flat: bool
) -> tuple[dict[str, Any], tuple[Assumption, ...]]:
    """The flags that say what the steps do.

    Args:
        path: of the package, for messages.
        steps: names and arguments, as bioimage.io has them.
        dtype: of the input.
        flat: the network is 2-D: a sample is a slice, so statistics are a slice's.

    Raises:
        ModelError: a step, or two together, are not possible here.
    """
    gain, offset = np.ones(1), np.zeros(1)  # of (raw * gain + offset)
    words: dict[str, Any] = {}
    clip: tuple[float, float] | None = None
    assumptions: tuple[Assumption, ...] = ()

    def refuse(name: str, why: str) -> ModelError:
        return ModelError(
            f"{path} asks for {name} {why}, which tilelab cannot do: put it into the network and export anew"
        )

    for name, given in steps:
        fixed = name == "fixed_zero_mean_unit_variance" or given.get("mode") == "fixed"
        if name == "ensure_dtype":
            continue
        if name == "clip":
            low, high = (given.get(end) for end in ("min", "max"))
            clip = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
            continue
        if words and not (name == "scale_linear" and _is(given, 1.0, 0.0)):
            raise refuse(name, f"after {words['normalization']}")
        if name == "scale_linear" or (name == "zero_mean_unit_variance" and fixed) or fixed:
            a, b = _affine(name, given)
            gain, offset = gain * a, offset * a + b
            if clip is not None:
                clip = (float(clip[0] * a[0] + b[0]), float(clip[1] * a[0] + b[0]))
        elif clip is not None:
            raise refuse(name, "after clip")
        elif name == "zero_mean_unit_variance":
            words = {"normalization": "mean-std"}
        elif name == "scale_range":
            low, high = float(given.get("min_percentile", 0.0)), float(given.get("max_percentile", 100.0))
            whole = (low, high) == (0.0, 100.0)
            words = {"normalization": "min-max" if whole else "percentile"}
            if not whole:
                words["percentiles"] = (low, high)
        else:
            raise refuse(name, "of its input")
        if words and given.get("mode") == "per_dataset":
            assumptions = (_whose(path, name),)
        elif words and flat:
            words["statistics"] = "slice"
    if clip is not None:
        words["clip"] = clip if np.isfinite(clip).all() else None
        if words["clip"] is None:
            raise refuse("clip", "with one end")
    if "normalization" in words:
        return words, assumptions
    std = 1 / gain
    words |= {"mean": tuple(map(float, -offset * std)), "std": tuple(map(float, std))}
    if dtype in _WHITE:
        return words | {"intensity_dtype": dtype}, assumptions
    spread = float(np.abs(std).max() + np.abs(offset * std).max())
    kind = "float32" if spread <= 2 and steps else next((k for k, white in _WHITE.items() if spread < white), "float32")
    units = Assumption(
        what=f"the units of the constants of {path}",
        taken=f"those of {kind} images",
        because=f"they are of the size of {spread:.3g}",
        flag="--intensity-dtype",
    )
    return words | {"intensity_dtype": kind}, (*assumptions, units)


def _affine(name: str, given: dict[str, Any]) -> tuple[Any, Any]:
    """Gain and offset of a step, one number or one for each channel."""
    if name == "scale_linear":
        return np.atleast_1d(np.asarray(given.get("gain", 1.0), float)), np.atleast_1d(
            np.asarray(given.get("offset", 0.0), float)
        )
    std = np.atleast_1d(np.asarray(given["std"], float))
    return 1 / std, -np.atleast_1d(np.asarray(given["mean"], float)) / std


def _is(given: dict[str, Any], gain: float, offset: float) -> bool:
    return bool(given.get("gain", 1.0) == gain) and bool(given.get("offset", 0.0) == offset)


def _whose(path: Path, name: str) -> Assumption:
    return Assumption(
        what=f"the statistics of the data set that {path} wants for {name}",
        taken="those of the image",
        because="the package does not hold them",
        flag="--mean and --std",
    )
