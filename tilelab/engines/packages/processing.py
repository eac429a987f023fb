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
    path: Path, steps: Sequence[tuple[str, dict[str, Any]]], dtype: str, *, flat: bool, channels: int
) -> tuple[dict[str, Any], tuple[Assumption, ...]]:
    """The flags that say what the steps do.

    Args:
        path: of the package, for messages.
        steps: names and arguments, as bioimage.io has them.
        dtype: of the input.
        flat: the network is 2-D: a sample is a slice, so statistics are a slice's.
        channels: of the input.

    Raises:
        ModelError: a step, or two together, are not possible here.
    """
    gain, offset = np.ones(1), np.zeros(1)  # of (raw * gain + offset)
    words: dict[str, Any] = {}
    clip: tuple[Any, Any] | None = None  # numbers, or one for each channel
    assumptions: tuple[Assumption, ...] = ()

    def refuse(name: str, why: str) -> ModelError:
        return ModelError(
            f"{path} asks for {name} {why}, which tilelab cannot do: put it into the network and export anew"
        )

    for name, given in steps:
        # of format 0.4 it is the mode where none is said, and the only one with a mean
        fixed = name == "fixed_zero_mean_unit_variance" or given.get("mode") == "fixed" or given.get("mean") is not None
        if name == "ensure_dtype":
            continue
        if name == "clip":
            low, high = (given.get(end) for end in ("min", "max"))
            ends = (-np.inf if low is None else float(low), np.inf if high is None else float(high))
            clip = ends if clip is None else (np.maximum(clip[0], ends[0]), np.minimum(clip[1], ends[1]))
            continue
        if words and not (name == "scale_linear" and _is(given, 1.0, 0.0)):
            raise refuse(name, f"after {words['normalization']}")
        if name == "scale_linear" or fixed:
            a, b = _affine(name, given)
            gain, offset = gain * a, offset * a + b
            if clip is not None:
                clip = (clip[0] * a + b, clip[1] * a + b)
            continue
        if clip is not None:
            raise refuse(name, "after clip")
        if gain.min() < 0:
            raise refuse(name, "after a gain below 0")
        if name == "zero_mean_unit_variance":
            words = {"normalization": "mean-std"}
        elif name == "scale_range":
            low, high = float(given.get("min_percentile", 0.0)), float(given.get("max_percentile", 100.0))
            whole = (low, high) == (0.0, 100.0)
            words = {"normalization": "min-max" if whole else "percentile"}
            if not whole:
                words["percentiles"] = (low, high)
        else:
            raise refuse(name, "of its input")
        if given.get("mode") == "per_dataset":
            assumptions += (_taken(path, name, "the data set", "the image", "the package does not hold them"),)
        elif flat or not _joins(given, "z"):
            words["statistics"] = "slice"
        if channels > 1 and _joins(given, "c"):
            why = "a description has one mean and spread for each"
            assumptions += (_taken(path, name, "all channels together", "each channel", why),)
    if clip is not None:
        lows, highs = ({*np.ravel(end).tolist()} for end in clip)
        if len(lows) > 1 or len(highs) > 1:
            raise refuse("clip", "at other numbers in each channel")
        words["clip"] = (lows.pop(), highs.pop())
        if not np.isfinite(words["clip"]).all():
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
        what=f"the units of the constants of {path.name}",
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


def _joins(given: dict[str, Any], letter: str) -> bool:
    """Whether statistics are of an axis as a whole; where no axes are said, they are of all."""
    axes = given.get("axes")
    return axes is None or letter in (axis[:1] for axis in axes)


def _is(given: dict[str, Any], gain: float, offset: float) -> bool:
    return bool(given.get("gain", 1.0) == gain) and bool(given.get("offset", 0.0) == offset)


def _taken(path: Path, name: str, wanted: str, taken: str, because: str) -> Assumption:
    """Statistics of something else than a step wants them of."""
    return Assumption(
        what=f"the statistics of {wanted} that {path.name} wants for {name}",
        taken=f"those of {taken}",
        because=because,
        flag="--mean and --std",
    )
