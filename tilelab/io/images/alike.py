"""Whether images that are numbered one after the other show the same thing, as the slices of a stack do."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from tilelab.arrays import Float64
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.local_path import LocalPath

ALIKE = 0.3
"""Correlation from which on two images show the same thing.

Neighbouring slices of a serial-section TEM stack have a median of 0.39 (ISBI 2012), thinner ones more; separate
micrographs of one specimen 0.09 to 0.20 (the sets of NASA, axondeepseg and emps).
"""
_SIDE = 96  # pixels that the middle of an image is averaged to
_READ = 2048  # pixels of the middle, at most: its outer parts may bear an info bar
_SHARE = 0.75
_PAIRS = 5
_SHADING = 0.03  # cycles a pixel: slower changes are the illumination's


def likeness(folder: str, names: Sequence[str]) -> float | None:
    """The median correlation of a few pairs of neighbours; None where images are too small to tell, or unreadable.

    Slices may be shifted against each other by a quarter of what is looked at.
    """
    firsts = sorted({i * (len(names) - 1) // _PAIRS for i in range(_PAIRS)} if len(names) > 1 else set())
    found = []
    for i in firsts:
        pair = [os.path.join(folder, name) for name in names[i : i + 2]]  # noqa: PTH118
        alike = _compare(pair[0], pair[1], hash_stats(map(LocalPath, pair)))
        if alike is None:
            return None
        found.append(alike)
    return statistics.median(found) if found else None


@lru_cache(64)
def _compare(first: str, second: str, stats: str) -> float | None:  # noqa: ARG001 - files that changed are read again
    """The correlation of two images, which a command asks for more than once; None where it cannot be told."""
    try:
        one, other = _middle(first), _middle(second)
    except InputError:
        return None
    return None if one is None or other is None else _correlate(one, other)


def _middle(path: str) -> Float64 | None:
    """The middle of an image, averaged to `_SIDE` pixels a side."""
    with open_image(path, bar=0) as image:
        volume = Volume(image)
        depth, height, width = volume.shape
        factor = int(min(_READ, _SHARE * min(height, width))) // _SIDE
        if factor < 1:
            return None
        side = factor * _SIDE
        y, x = (height - side) // 2, (width - side) // 2
        pixels = volume.read(Box((depth // 2, y, x), (depth // 2 + 1, y + side, x + side)))[0, 0].astype(np.float64)
    means: Float64 = np.nan_to_num(pixels).reshape(_SIDE, factor, _SIDE, factor).mean(axis=(1, 3))
    return means


def _correlate(first: Float64, second: Float64) -> float:
    """The greatest correlation at any shift of at most a quarter, of what is no shading, towards the middle."""
    spectra = []
    window = np.outer(np.hanning(_SIDE), np.hanning(_SIDE))
    rows, columns = np.fft.fftfreq(_SIDE)[:, None], np.fft.fftfreq(_SIDE)[None]
    for values in (first, second):
        spectrum = np.fft.fft2((values - values.mean()) * window)
        spectrum[np.hypot(rows, columns) < _SHADING] = 0
        spectra.append(spectrum / (np.sqrt((np.abs(spectrum) ** 2).sum()) or 1.0))
    shifted = np.fft.ifft2(spectra[0] * spectra[1].conj()).real * _SIDE**2
    near = np.r_[0 : _SIDE // 4 + 1, -_SIDE // 4 : 0]
    return float(shifted[np.ix_(near, near)].max())
