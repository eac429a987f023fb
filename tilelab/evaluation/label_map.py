"""Which stored value or colour is which class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from tilelab.arrays import Array, Bool, UInt8
from tilelab.errors import InputError

IGNORE = 255
"""Class of pixels that take no part in the loss or the scores; ``ignore`` in a label map."""

Color = tuple[int, int, int]

_ENTRY = re.compile(r"\s*(?:(-?\d+)(?:\s*-\s*(-?\d+))?|#([0-9a-fA-F]{6})|(\*))\s*:\s*(\d+|ignore)\s*")


@dataclass(frozen=True)
class LabelMap:
    """Which stored values or colours are which class; what is not listed is class 0 and is reported.

    Attributes:
        ranges: first value, last value and class, in the order of the values; they do not overlap.
        colors: class of a colour, as 8-bit ``(red, green, blue)``; 16-bit images hold 257 times that.
        others: class of all that is not listed, where the map says so; then nothing is reported.
        text: as it was written.
    """

    ranges: tuple[tuple[int, int, int], ...] = ()
    colors: Mapping[Color, int] = field(default_factory=dict, hash=False)  # the text says them, too
    others: int | None = None
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> LabelMap:
        """Read ``255:1``, ``0:1`` (an inverted mask), ``0-127:1,128-255:0``, ``#0000ff:1,#ff0000:2``.

        A class of ``ignore`` leaves pixels out; ``*:CLASS`` says what all others are.

        Raises:
            InputError: the text is something else, mixes values and colours, or says two things of one value.
        """
        ranges: list[tuple[int, int, int]] = []
        colors: dict[Color, int] = {}
        others: int | None = None
        for entry in text.split(","):
            match = _ENTRY.fullmatch(entry)
            label = IGNORE if match is None or match[5] == "ignore" else int(match[5])
            if match is None or label > 255:
                raise InputError(
                    f"label map {text!r} has the entry {entry!r}: write VALUE:CLASS, FIRST-LAST:CLASS, #RRGGBB:CLASS "
                    "or *:CLASS (all others), separated by commas, classes 0 to 255 or ignore"
                )
            if match[1] is not None:
                ranges.append((int(match[1]), int(match[2] or match[1]), label))
            elif match[3] is not None:
                red, green, blue = bytes.fromhex(match[3])
                if (red, green, blue) in colors:
                    raise InputError(f"label map {text!r} has the colour #{match[3]} twice: leave one out")
                colors[red, green, blue] = label
            elif others is not None:
                raise InputError(f"label map {text!r} says twice what all others are: leave one * out")
            else:
                others = label
        if ranges and colors:
            raise InputError(f"label map {text!r} mixes grey values and colours: use one kind")
        _check_ranges(text, sorted(ranges))
        return cls(tuple(sorted(ranges)), colors, others, text)

    def classes(self) -> set[int]:
        """Every class that it names, `IGNORE` included."""
        named = {label for _, _, label in self.ranges} | set(self.colors.values())
        return named if self.others is None else named | {self.others}

    def lists(self, key: float | tuple[float, float, float]) -> bool:
        """Whether a value, or a colour in units of 8 bits, is listed; with `others` everything is."""
        if self.others is not None:
            return True
        return key in self.colors if isinstance(key, tuple) else any(a <= key <= b for a, b, _ in self.ranges)

    def map_values(self, stored: Array) -> UInt8:
        """Classes of grey values of any type, same shape."""
        if stored.dtype in (np.uint8, np.uint16):
            table = self._classify(np.arange(np.iinfo(stored.dtype).max + 1))
            return table[stored]
        return self._classify(stored)

    def _classify(self, stored: Array) -> UInt8:
        classes = np.full(stored.shape, self.others or 0, np.uint8)
        for first, last, label in self.ranges:
            classes[(stored >= first) & (stored <= last)] = label
        return classes

    def map_colors(self, red: Array, green: Array, blue: Array) -> UInt8:
        """Classes of colours, three planes of one shape, uint8 or uint16."""
        scale = 257 if red.dtype == np.uint16 else 1
        classes = np.full(red.shape, self.others or 0, np.uint8)
        for (r, g, b), label in self.colors.items():
            here: Bool = (red == r * scale) & (green == g * scale) & (blue == b * scale)
            classes[here] = label
        return classes


def _check_ranges(text: str, ranges: Iterable[tuple[int, int, int]]) -> None:
    """Refuse what ends before it begins, and what overlaps."""
    ranges = list(ranges)
    for first, last, _ in ranges:
        if last < first:
            raise InputError(f"label map {text!r} has the range {first}-{last}: write the smaller value first")
    for (_, last, _), (first, end, _) in pairwise(ranges):
        if first <= last:
            both = str(first) if first == min(last, end) else f"{first} to {min(last, end)}"
            raise InputError(f"label map {text!r} says twice what {both} is: leave one out")
