"""The eight symmetries of the square, for test-time augmentation."""

from __future__ import annotations

from itertools import product

import numpy as np

from tilelab.arrays import Float32

SYMMETRIES = tuple(product(range(4), (False, True)))
"""Quarter turns, and whether x is mirrored before; the first leaves all as it is."""


def turn(planes: Float32, turns: int, mirror: bool) -> Float32:
    """A view of square planes ``(..., y, x)``, mirrored along x if `mirror`, then turned."""
    return np.rot90(planes[..., ::-1] if mirror else planes, turns, axes=(-2, -1))


def turn_back(planes: Float32, turns: int, mirror: bool) -> Float32:
    """A view that undoes `turn`."""
    back = np.rot90(planes, -turns, axes=(-2, -1))
    return back[..., ::-1] if mirror else back
