"""The measures of `tilelab measure` once more, of whole arrays in memory, by SciPy and the plainest code there is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from scipy import ndimage

from tilelab.arrays import Array, Float64
from tilelab.evaluation.labels import open_labels
from tilelab.geometry import Box

LEAST_PX = 10
"""Smaller objects are none."""


def read_mask(path: Path) -> Array:
    """All of a plane of classes."""
    with closing(open_labels(path)) as labels:
        return labels.read(Box((0, 0, 0), labels.shape))[0]


def pixel_sizes(folder: Path, names: Sequence[str]) -> list[float | None]:
    """Of the images of a set in nm, None where its folder does not say."""
    path = folder / "pixel_size.json"
    known = json.loads(path.read_text())["pixel_size_um"] if path.exists() else {}
    return [1000 * known[name][0] if known.get(name) else None for name in names]


def objects(mask: Array, label: int) -> tuple[Array, Float64]:
    """Numbers of the objects of a class, connected by faces, 0 elsewhere; and their areas in pixels."""
    numbers, _ = ndimage.label(mask == label)
    areas = np.bincount(numbers.ravel())
    large = areas >= LEAST_PX
    large[0] = False
    new = np.cumsum(large) * large
    return new[numbers], areas[large].astype(np.float64)


def diameters(areas: Float64, size: float = 1.0) -> Float64:
    """Of discs of the same area."""
    found: Float64 = 2 * np.sqrt(areas / np.pi) * size
    return found


def fibres(mask: Array, axon: int, sheath: int, size: float) -> tuple[Float64, Float64, Float64]:
    """Fibre diameter, sheath thickness and g-ratio of the axons that the frame cuts neither itself nor in its sheath.

    An axon without a sheath has none of these.  Every pixel of the sheath belongs to the axon that is nearest, as the
    crow flies, of those that it is connected to.
    """
    numbers, areas = objects(mask, axon)
    together, _ = ndimage.label((mask == sheath) | (numbers > 0), np.ones((3, 3)))
    owners = np.zeros_like(numbers)
    for i, place in enumerate(ndimage.find_objects(together), 1):
        own = (together[place] == i) & (mask[place] == sheath)
        inner = np.where(together[place] == i, numbers[place], 0)
        if inner.any():
            nearest = ndimage.distance_transform_edt(inner == 0, return_distances=False, return_indices=True)
            owners[place][own] = inner[tuple(nearest)][own]
    around = np.bincount(owners.ravel(), minlength=len(areas) + 1)[1:]
    frame = np.ones(mask.shape, np.bool_)
    frame[1:-1, 1:-1] = False
    cut = np.zeros(len(areas) + 1, np.bool_)
    cut[numbers[frame]] = cut[owners[frame]] = True
    whole = ~cut[1:] & (around > 0)
    inner, outer = diameters(areas, size)[whole], diameters(areas + around, size)[whole]
    return outer, (outer - inner) / 2, inner / outer


def layer(mask: Array, labels: Sequence[int], opening: int) -> tuple[Float64, Float64, float]:
    """Thickness along the normal in each column, its share of the length, and the mean over the length.

    The opened layer without parts below 5 % of the largest; the slope of its middle by `numpy.polyfit` in a window as
    long as it is thick.  It runs along x.
    """
    side = 2 * opening + 1
    wide = np.pad(np.isin(mask, labels), side, mode="edge")
    opened = ndimage.binary_opening(wide, np.ones((side, side)))[side:-side, side:-side]
    numbers, _ = ndimage.label(opened)
    areas = np.bincount(numbers.ravel())
    areas[0] = 0
    kept = np.isin(numbers, np.flatnonzero(areas >= 0.05 * areas.max()))
    count = kept.sum(0)
    at = np.flatnonzero(count)
    middle = np.array([np.flatnonzero(kept[:, x]).mean() for x in at])
    half = max(1, round(count[at].mean() / 2))
    slopes = []
    for x in at:
        near = np.abs(at - x) <= half
        slopes.append(np.polyfit(at[near], middle[near], 1)[0])
    cosine = 1 / np.hypot(1, np.array(slopes))
    thickness, length = count[at] * cosine, 1 / cosine
    return thickness, length, float(count.sum() / length.sum())


def inscribed(mask: Array, labels: Sequence[int]) -> float:
    """Mean over the columns of the largest disc in the layer that has its middle there: another view of it."""
    distance = ndimage.distance_transform_edt(np.pad(np.isin(mask, labels), ((0, 0), (1, 1)), mode="edge"))[:, 1:-1]
    most = distance.max(0)
    return float(2 * most[most > 0].mean() - 1)
