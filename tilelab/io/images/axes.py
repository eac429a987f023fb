"""What the axes of an array mean: by their names where they have some, else a guess by number and extent.

A guess is an `Assumption`, unless every way of reading the array gives the same image (a plane, whatever axes of one
entry lie around it in front).
"""

from __future__ import annotations

from collections.abc import Sequence

from tilelab.assumptions import Assumption
from tilelab.text import size_text

FLAG = "--axes"

_LEADING = ("", "z", "cz", "tcz")
_KNOWN = {
    "time": "t",
    "frame": "t",
    "channel": "c",
    "channels": "c",
    "band": "c",
    "depth": "z",
    "slice": "z",
    "plane": "z",
    "height": "y",
    "row": "y",
    "width": "x",
    "column": "x",
    "col": "x",
}


def guess_axes(uri: str, shape: tuple[int, ...], *, colours: bool = True) -> tuple[str, tuple[Assumption, ...]]:
    """The axes of an untagged array, one letter each, and that they were guessed.

    By their number ``yx``, ``zyx``, ``czyx``, ``tczyx``, where axes of one entry do not count; but no micrograph is 1
    to 4 pixels wide: a last axis of 1 or 2 entries holds channels, one of 3 or 4 colours.  Beyond that, ``?``.

    Args:
        uri: of the image, for messages.
        shape: of the array.
        colours: a last axis of 3 or 4 may be colours (False where x is known to be the last).
    """
    stop, last, because = len(shape), "", ""
    letters = ["?"] * len(shape)
    while stop > 2 and shape[stop - 1] == 1 and max(shape[:stop]) > 1:
        stop -= 1
    if stop > 2 and stop == len(shape):
        n, before = shape[-1], min(shape[-3:-1])
        if n == 2 and shape[-2] > 2:
            last, because = "c", f"an axis of {n} is no x"
        elif n in (3, 4) and before > 4 and colours:
            last, because = "s", f"a last axis of {n} is colour"
        stop -= bool(last)
    if stop < len(shape):
        because = because or "an axis of 1 is no x"
        letters[stop] = last or "?"
    letters[max(0, stop - 2) : stop] = "yx"[2 - min(2, stop) :]
    if stop == 3 == len(shape) and shape[1] == 1 < min(shape[0], shape[2]):
        return "ycx", (_assumed(uri, shape, "ycx", "an axis of 1 is no y"),)
    front = range(max(0, stop - 2))
    wide = [i for i in front if shape[i] > 1]
    taken = _LEADING[len(wide)] if len(wide) < len(_LEADING) else ""
    if last == "c":
        taken = {"": "", "z": "z", "cz": "tz"}.get(taken, "")
    for i, letter in zip(wide, taken, strict=False):
        letters[i] = letter
    free = [a for a in "tcz" if a not in letters]
    single = [i for i, n in enumerate(shape) if letters[i] == "?" and n == 1]
    for i in single[::-1]:
        letters[i] = free.pop() if free and i < stop else ("c" if "c" in free else "?")
        free = [a for a in free if a != letters[i]]
    axes = "".join(letters)
    if not because and not wide:
        return axes, ()
    return axes, (_assumed(uri, shape, axes, because or "nothing names them, and most arrays are stored so"),)


def letter_of(name: object) -> str:
    """An axis by its name: its letter where it is known, or the name in lower case."""
    return _KNOWN.get(str(name).lower(), str(name).lower())


def named_axes(uri: str, names: Sequence[object] | None, shape: tuple[int, ...]) -> tuple[str, tuple[Assumption, ...]]:
    """The axes by their `names`, as Zarr and xarray keep them (``y``, ``Z``, ``channel``); guessed where unclear."""
    letters = [letter_of(name) for name in names or ()]
    if len(letters) == len(shape) and all(len(a) == 1 for a in letters) and {"y", "x"} <= set(letters):
        return "".join(letters), ()
    return guess_axes(uri, shape)


def _assumed(uri: str, shape: Sequence[int], axes: str, because: str) -> Assumption:
    return Assumption(what=f"the axes of {uri} ({size_text(shape)})", taken=axes, because=because, flag=FLAG)
