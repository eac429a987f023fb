"""What the axes of an array mean when nothing says so."""

from __future__ import annotations

from collections.abc import Sequence

_BY_COUNT = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}


def guess_axes(shape: tuple[int, ...]) -> str:
    """The axes of an untagged array, one letter each.

    ``yx``, ``zyx``, ``czyx`` or ``tczyx`` by their number; but a last axis of 3 or 4 entries after two longer ones is
    colour, for no micrograph is 4 pixels wide: ``yxs`` or ``zyxs``.  Beyond that, ``?``.
    """
    n = len(shape)
    if n in (3, 4) and shape[-1] in (3, 4) and min(shape[-3:-1]) > 4:
        return "zyxs"[4 - n :]
    return _BY_COUNT.get(n, "?" * max(0, n - 2) + "yx"[2 - min(n, 2) :])


def named_axes(names: Sequence[object] | None, shape: tuple[int, ...]) -> str:
    """The axes by their `names`, as Zarr and xarray keep them (``y``, ``Z``, ``channel``); guessed where unclear."""
    known = {
        "time": "t",
        "channel": "c",
        "channels": "c",
        "band": "c",
        "depth": "z",
        "height": "y",
        "width": "x",
        "row": "y",
    }
    letters = [known.get(str(name).lower(), str(name).lower()) for name in names or ()]
    if len(letters) == len(shape) and all(len(a) == 1 for a in letters) and {"y", "x"} <= set(letters):
        return "".join(letters)
    return guess_axes(shape)
