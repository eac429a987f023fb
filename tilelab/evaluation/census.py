"""The one rule by which training and scoring judge masks: what is stored must be classes, or be said to be some.

A `Census` counts what a file stores.  `judge` refuses what is no class, and names the values, their shares and a label
map that would make classes of them; `report_unlisted` says what a given map leaves to class 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np

from tilelab.arrays import Array, Int64
from tilelab.errors import InputError
from tilelab.evaluation.label_map import IGNORE, LabelMap

MOST_UNNAMED = 32
"""Stored values are indices; where the classes are not known, one from here on is taken for a forgotten label map."""
WHOLE_NUMBERS = "class indices are whole numbers from 0 to 255 (a picture or a probability has to be thresholded first)"
_MOST_VALUES = 4096
_MOST_LISTED = 6

Key = float | tuple[float, float, float]


@dataclass
class Census:
    """How many pixels of a file, or of several, hold each value or colour; safe among threads.

    Attributes:
        name: of what, for messages.
        counts: pixels by value, or by colour in units of 8 bits (a 257th of what 16 bits hold).
        rest: pixels of values beyond the first 4096 different ones.
    """

    name: str
    counts: Counter[Key] = field(default_factory=Counter)
    rest: int = 0
    _lock: Any = field(default_factory=Lock, repr=False)

    @property
    def pixels(self) -> int:
        """All that were counted."""
        return self.counts.total() + self.rest

    def add(self, planes: Sequence[Array]) -> None:
        """Count pixels: one plane of values, or three of red, green and blue."""
        if len(planes) == 3:
            bits = np.uint64(16)
            red, green, blue = (_integers(plane).astype(np.uint64).ravel() for plane in planes)
            packed, numbers = _tally((red << bits | green) << bits | blue)
            keys: list[Key] = [_color(int(value), planes[0].dtype) for value in packed]
        elif planes[0].dtype == np.uint8:
            numbers = np.bincount(planes[0].ravel(), minlength=256)
            keys = [int(value) for value in np.flatnonzero(numbers)]
            numbers = numbers[numbers > 0]
        else:
            values, numbers = _tally(planes[0].ravel())
            keys = [_plain(value) for value in values.tolist()]
        with self._lock:
            for key, number in zip(keys, numbers.tolist(), strict=True):
                if key in self.counts or len(self.counts) < _MOST_VALUES:
                    self.counts[key] += number
                else:
                    self.rest += number

    def merge(self, other: Census) -> None:
        """Add what another counted."""
        self.counts.update(other.counts)
        self.rest += other.rest

    def tell(self, keys: Iterable[Key] | None = None) -> str:
        """``0 to 8 (5.1 %), 255 (94.9 %)``: values with their shares, neighbours together; all of them by default."""
        wanted = self.counts if keys is None else {key: self.counts[key] for key in keys}
        total = max(1, self.pixels)
        colors = sorted(((n, _key_text(k)) for k, n in wanted.items() if isinstance(k, tuple)), reverse=True)
        spans = [(number, name) for number, name in colors]
        spans += [
            (sum(wanted[v] for v in run), _key_text(run[0]) + (f" to {_key_text(run[-1])}" if len(run) > 1 else ""))
            for run in _runs([key for key in wanted if not isinstance(key, tuple)])
        ]
        told = sorted(spans, reverse=True)[:_MOST_LISTED]
        words = [f"{name} ({_share(number, total)})" for number, name in spans if (number, name) in told]
        more, left = len(spans) - len(told), sum(n for n, _ in spans) - sum(n for n, _ in told)
        left += self.rest if keys is None else 0
        if left:
            words.append(f"and {more or 'very many'} others ({_share(left, total)})")
        return ", ".join(words)

    def unlisted(self, mapping: LabelMap) -> dict[Key, int]:
        """Pixels of the values that `mapping` does not list."""
        return {key: number for key, number in self.counts.items() if not mapping.lists(key)}


def judge(
    census: Census,
    mapping: LabelMap | None,
    names: Sequence[str],
    *,
    ignore: int | None = None,
    flag: str = "--truth-map",
) -> None:
    """Refuse a file whose values are not classes.

    Args:
        census: all that it stores.
        mapping: the label map that is applied to it, None for none.
        names: of the classes; empty when they are not known.
        ignore: a stored value that is left out.
        flag: of `tilelab eval` that takes the map.

    Raises:
        InputError: the message names the file, the values, their shares and a map.
    """
    limit = len(names) or MOST_UNNAMED
    if any(isinstance(key, tuple) for key in census.counts):
        if mapping is None or not mapping.colors:
            but = f", while the label map {mapping.text!r} names grey values" if mapping is not None else ""
            raise InputError(f"{census.name} is in colours, {census.tell()}{but}: {_advise(census, names, flag)}")
        return
    broken = [key for key in census.counts if not isinstance(key, tuple) and not _is_whole(key)]
    if broken:
        raise InputError(f"{census.name} holds values that are no class, {census.tell(broken)}: {WHOLE_NUMBERS}")
    if mapping is not None:
        if mapping.colors:
            raise InputError(
                f"{census.name} holds {census.tell()}, while the label map {mapping.text!r} names colours: "
                + _advise(census, names, flag)
            )
        return
    wrong = [key for key in census.counts if not 0 <= _as_number(key) < limit and key != ignore]
    if wrong or census.rest:
        raise InputError(f"{census.name} holds {census.tell()}, {classes_text(names)}: {_advise(census, names, flag)}")


def check_map(mapping: LabelMap | None, names: Sequence[str], where: str) -> None:
    """Refuse a label map that names a class which there is not.

    Raises:
        InputError: it does; the classes are named.
    """
    limit = len(names) or MOST_UNNAMED
    wrong = sorted(label for label in (mapping.classes() if mapping else ()) if label >= limit and label != IGNORE)
    if wrong and mapping:
        raise InputError(f"{where} {mapping.text!r} names class {wrong[0]}, {classes_text(names)}")


def report_unlisted(
    census: Census, mapping: LabelMap | None, names: Sequence[str], *, flag: str = "--truth-map"
) -> str | None:
    """What a label map leaves to class 0, in a line; None when it lists everything.

    Args:
        census: of all files that the map is applied to.
        mapping, names, flag: as `judge`.

    Raises:
        InputError: nothing of what the map lists occurs, yet other values than 0 do: it is the map of other files.
    """
    if mapping is None or mapping.others is not None:
        return None
    unlisted = census.unlisted(mapping)
    if not unlisted and not census.rest:
        return None
    strange = [key for key in unlisted if key not in (0, (0, 0, 0))]
    if len(unlisted) == len(census.counts) and strange:
        raise InputError(
            f"{census.name}: nothing that the label map {mapping.text!r} lists occurs, there is {census.tell()}: "
            + _advise(census, names, flag)
            + " (or add *:0 to it where all of this is class 0)"
        )
    first = names[0] if names else "class 0"
    very_many = " and very many others" if census.rest else ""
    return f"{census.name}: not in the label map {mapping.text!r} and so {first}: {census.tell(unlisted)}{very_many}"


def classes_text(names: Sequence[str]) -> str:
    """``the classes are 0 to 1 (background, disc)``."""
    if not names:
        return f"classes are 0 to {MOST_UNNAMED - 1} where they have no names"
    return f"the classes are 0 to {len(names) - 1} ({', '.join(names)})"


def suggest_map(census: Census, classes: int) -> str:
    """A label map that makes `classes` classes (0: any number) of what is stored, as far as can be told.

    Values that are classes stay, values without a class are given the free ones in their order or left out; many values
    are cut where they lie farthest apart; of colours the most frequent is class 0.
    """
    limit = classes or MOST_UNNAMED
    colors = [key for key, _ in census.counts.most_common() if isinstance(key, tuple)]
    if colors:
        first, most = 0, min(limit, 8)
        if len(colors) > most:  # a picture shows through, whose greys are all others
            often = census.pixels / 500
            bright = [key for key in colors if len(set(key)) > 1 and census.counts[key] >= often]
            first, colors = 1, bright or [(0.0, 0.0, 255.0)]
        return ",".join(f"{_key_text(key)}:{first + i}" for i, key in enumerate(colors[: most - first]))
    values = sorted(int(key) for key in census.counts if not isinstance(key, tuple) and _is_whole(key))
    if len(values) > max(8, 2 * classes):
        return _cut(values, classes or 2)
    if len(values) <= limit and not any(0 < value < limit for value in values):
        start = 0 if 0 in values or len(values) > 1 else 1
        labels = {value: start + rank for rank, value in enumerate(values)}
        if len(labels) == 2:
            labels.pop(0, None)  # 255:1 says it all
    else:
        free = iter([k for k in range(limit) if k not in values] if classes and IGNORE not in values else [])
        labels = {value: value if 0 <= value < limit else next(free, IGNORE) for value in values}
    return ",".join(f"{value}:{_label(label, limit)}" for value, label in labels.items())


def _cut(values: list[int], parts: int) -> str:
    """Ranges of grey values with the widest gaps between them."""
    gaps = sorted(range(1, len(values)), key=lambda i: values[i - 1] - values[i])[: parts - 1]
    ends = [(values[i - 1] + values[i]) // 2 for i in sorted(gaps)]
    starts = [min(0, values[0]), *(end + 1 for end in ends)]
    stops = [*ends, max(255, values[-1])]
    return ",".join(f"{f'{a}-{b}' if a < b else a}:{k}" for k, (a, b) in enumerate(zip(starts, stops, strict=True)))


def _label(label: int, limit: int) -> str:
    return str(label) if label < limit else "ignore"


def _advise(census: Census, names: Sequence[str], flag: str) -> str:
    text = suggest_map(census, len(names))
    word = f" '{text}'" if "#" in text else f"={text}" if text.startswith("-") else f" {text}"
    return f'say which is which class, e.g. labels = "{text}" in the recipe or {flag}{word} in eval'


def _runs(values: list[float]) -> list[list[float]]:
    """Values in order, those that follow each other by 1 together where there are more than `_MOST_LISTED`."""
    together = len(values) > _MOST_LISTED
    runs: list[list[float]] = []
    for value in sorted(values, key=lambda v: (math.isnan(v), v)):
        if together and runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return runs


def _share(number: int, total: int) -> str:
    return f"{100 * number / total:.3g} %"


def _is_whole(key: float) -> bool:
    return math.isfinite(key) and key == math.trunc(key)


def _as_number(key: Key) -> float:
    return -1.0 if isinstance(key, tuple) else key


def _plain(value: float) -> float:
    """A key of a dictionary: every NaN is the same one."""
    return math.nan if math.isnan(value) else int(value) if _is_whole(value) else value


def _key_text(key: Key) -> str:
    if isinstance(key, tuple):
        wide = any(part != int(part) for part in key)
        return "#" + "".join(f"{round(257 * part):04x}" if wide else f"{int(part):02x}" for part in key)
    return f"{key:g}" if not _is_whole(key) else str(int(key))


def _integers(plane: Array) -> Array:
    return plane if plane.dtype.kind == "u" else np.nan_to_num(plane).clip(0, 65535)


def _tally(flat: Array) -> tuple[Array, Int64]:
    """The different values (all NaNs as one) and how many there are of each; fast where equal ones lie together."""
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    values, which = np.unique(flat[starts], return_inverse=True)
    numbers: Int64 = np.bincount(which, weights=lengths, minlength=len(values)).astype(np.int64)
    return values, numbers


def _color(packed: int, dtype: np.dtype[Any]) -> tuple[float, float, float]:
    scale = 257 if dtype == np.uint16 else 1
    return (packed >> 32) / scale, (packed >> 16 & 0xFFFF) / scale, (packed & 0xFFFF) / scale
