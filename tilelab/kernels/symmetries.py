"""The eight symmetries of the square, for test-time augmentation."""

from __future__ import annotations

from itertools import product

import numpy as np

from tilelab.arrays import Float32
from tilelab.errors import ModelError
from tilelab.text import size_text

SYMMETRIES = tuple(product(range(4), (False, True)))
"""Quarter turns, and whether x is mirrored before; the first leaves all as it is."""


def check_square(tile: tuple[int, ...]) -> None:
    """Refuse a tile that would not lie on itself when it is turned.

    Raises:
        ModelError: it is no square.
    """
    if tile[-1] != tile[-2]:
        raise ModelError(f"the 8 symmetries need a square tile, this one is {size_text(tile)}")


def turn(planes: Float32, turns: int, mirror: bool) -> Float32:
    """A view of square planes ``(..., y, x)``, mirrored along x if `mirror`, then turned."""
    return np.rot90(planes[..., ::-1] if mirror else planes, turns, axes=(-2, -1))


def turn_back(planes: Float32, turns: int, mirror: bool) -> Float32:
    """A view that undoes `turn`."""
    back = np.rot90(planes, -turns, axes=(-2, -1))
    return back[..., ::-1] if mirror else back
