"""Which files of a folder are the slices of one stack, and in which order: their names tell, or nothing does.

Slices are one numbered series: names that differ in a number alone.  Masks and previews among them are left out and
missing numbers said; two series, two files of one number and names without numbers are refused, for any choice among
them would be silently wrong.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from pathlib import PurePath

from tilelab.assumptions import Assumption
from tilelab.errors import InputError

SUFFIXES = (".tif", ".tiff", ".npy", ".png", ".bmp", ".jpg", ".jpeg")
"""Kinds of slices; where all are there in two, the earlier is taken."""

_SAME_KIND = {".tiff": ".tif", ".jpeg": ".jpg"}
_NUMBER = re.compile(r"((?<![^\W_])-?\d+(?:\.\d+)?|\d+(?:\.\d+)?)")  # a minus stands behind no letter or figure
_ASIDE = {"mask", "label", "seg", "segmentation", "annotation", "truth", "gt"}
_ASIDE |= {"thumb", "thumbnail", "preview", "overview", "overlay", "snapshot"}
_LISTED = 8


@dataclass(frozen=True)
class _Name:
    """A file name, cut into texts and numbers."""

    name: str
    texts: tuple[str, ...]
    numbers: tuple[str, ...]

    @classmethod
    def of(cls, name: str) -> _Name:
        parts = _NUMBER.split(PurePath(name).stem.lower())
        return cls(name, tuple(parts[::2]), tuple(parts[1::2]))

    @property
    def values(self) -> tuple[Decimal, ...]:
        return tuple(map(Decimal, self.numbers))

    @property
    def pattern(self) -> str:
        return "#".join(self.texts)


def kind_of(name: str) -> str:
    """The suffix that says of which kind a file is."""
    suffix = PurePath(name).suffix.lower()
    return _SAME_KIND.get(suffix, suffix)


def arrange_slices(
    folder: str, names: Iterable[str], same: Callable[[str, str], bool]
) -> tuple[list[str], tuple[Assumption, ...]]:
    """The slices among the files of a folder, in their order, and what was guessed.

    Args:
        folder: for messages.
        names: of all files in it; hidden ones and those of other kinds are ignored.
        same: whether two files hold the same pixels.

    Raises:
        InputError: there is no image, or the images are not one numbered series.
    """
    images = sorted(n for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES))
    if not images:
        raise InputError(f"{folder} is a folder without images: slices are {', '.join(SUFFIXES)} files")
    images, aside = leave_out(folder, images)
    images, kinds = _one_kind(folder, images, same)
    if len(images) == 1:
        return images, (*aside, *kinds)
    order, guesses = _order(folder, _one_series(folder, images))
    return [entry.name for entry in order], (*aside, *kinds, *guesses)


def leave_out(folder: str, images: list[str]) -> tuple[list[str], tuple[Assumption, ...]]:
    """The images without those whose names say that they are masks or previews of them."""
    left = [n for n in images if _ASIDE & {w.removesuffix("s") for w in re.split(r"[^a-z]+", PurePath(n).stem.lower())}]
    kept = [n for n in images if n not in left]
    if not left or not kept:
        return images, ()
    taken = f"{len(kept)}, without {_few(left)}"
    because = "those are masks or previews by their names"
    return kept, (Assumption(what=f"which images in {folder} are its slices", taken=taken, because=because),)


def are_counted(names: Sequence[str]) -> bool:
    """Whether names of images of one kind differ in one number alone, which counts without a gap."""
    entries = [_Name.of(name) for name in names]
    if len({(entry.pattern, kind_of(entry.name)) for entry in entries}) != 1:
        return False
    varying = [values for values in zip(*(e.values for e in _signed(entries)), strict=True) if len({*values}) > 1]
    if len(varying) != 1 or len({*varying[0]}) != len(entries):
        return False
    return all(b - a == 1 for a, b in pairwise(sorted(varying[0])))


def _one_kind(
    folder: str, images: list[str], same: Callable[[str, str], bool]
) -> tuple[list[str], tuple[Assumption, ...]]:
    """The images of one kind, where every one is there in several kinds with the same pixels."""
    by_kind: dict[str, dict[str, str]] = defaultdict(dict)
    for name in images:
        by_kind[kind_of(name)][PurePath(name).stem.lower()] = name
    kinds = sorted(by_kind, key=SUFFIXES.index)
    first, *others = kinds
    if not others or any({*by_kind[kind]} != {*by_kind[first]} for kind in others):
        return images, ()
    stems = sorted(by_kind[first])
    for kind in others:
        for stem in (stems[0], stems[-1]):
            if not same(by_kind[first][stem], by_kind[kind][stem]):
                raise InputError(
                    f"{folder} holds every slice twice, as {first} and {kind}, and their pixels differ: name one kind, "
                    f"as '{folder}/*{first}'"
                )
    taken, because = f"the {first} files", f"every slice is there twice, as {', '.join(kinds)}, with the same pixels"
    return [by_kind[first][stem] for stem in stems], (
        Assumption(what=f"which images in {folder} are its slices", taken=taken, because=because),
    )


def _one_series(folder: str, images: list[str]) -> list[_Name]:
    """The names, which differ in their numbers alone."""
    entries = [_Name.of(name) for name in images]
    groups: dict[str, list[_Name]] = defaultdict(list)
    for entry in entries:
        groups[entry.pattern].append(entry)
    if len(groups) == 1:
        return entries
    if all(len(group) == 1 for group in groups.values()):
        raise InputError(
            f"{folder} holds {len(images)} images whose names are no numbered series ({_few(images)}): separate "
            "images are no stack, give them one by one; slices are numbered, as s_001.tif, s_002.tif"
        )
    large = sorted(groups.values(), key=len, reverse=True)
    shown = ", ".join(f"{_shape(g[0])} ({len(g)})" for g in large[:3]) + (", ..." if len(large) > 3 else "")
    raise InputError(
        f"{folder} holds images of {len(groups)} series, {shown}: name the one that is the stack, as "
        f"'{folder}/{_wildcard(large[0][0])}'"
    )


def _order(folder: str, entries: list[_Name]) -> tuple[list[_Name], tuple[Assumption, ...]]:
    """A series in the order of its numbers, and what is odd about them."""
    entries = _signed(entries)
    columns = list(zip(*(entry.values for entry in entries), strict=True))
    twice: dict[tuple[Decimal, ...], _Name] = {}
    for entry in entries:
        other = twice.setdefault(entry.values, entry)
        if other is not entry:
            raise InputError(
                f"{folder} holds two slices of the same number, {other.name} and {entry.name}: remove one of them"
            )
    counting = [i for i, values in enumerate(columns) if len({*values}) == len(values)]
    if not counting:
        raise InputError(
            f"the names in {folder} differ in several numbers, {_few([e.name for e in entries])}: tiles or channels "
            f"are no slices; name those of one series, as '{folder}/{_wildcard(entries[0], columns)}'"
        )
    at = min(counting, key=lambda i: (max(columns[i]) - min(columns[i]), i))
    ordered = sorted(entries, key=lambda e: e.values)
    guesses: list[Assumption] = []
    if ordered != sorted(entries, key=lambda e: e.values[at]) or ordered != sorted(entries, key=_as_versions):
        because = "the numbers in their names can be read in several ways"
        taken = f"{ordered[0].name}, {ordered[1].name} ... {ordered[-1].name}"
        guesses.append(Assumption(what=f"the order of the slices in {folder}", taken=taken, because=because))
    return ordered, (*guesses, *_gaps(folder, sorted(columns[at])))


def _signed(entries: list[_Name]) -> list[_Name]:
    """The names with their minus signs, unless a whole column has them: then they are hyphens."""
    hyphens = [all(e.numbers[i].startswith("-") for e in entries) for i in range(len(entries[0].numbers))]
    return [
        _Name(e.name, e.texts, tuple(n.lstrip("-") if h else n for n, h in zip(e.numbers, hyphens, strict=True)))
        for e in entries
    ]


def _as_versions(entry: _Name) -> list[int]:
    """Numbers with a point read as two numbers: 1.9 before 1.10."""
    signs = [-1 if n.startswith("-") else 1 for n in entry.numbers]
    parts = [n.lstrip("-").split(".") for n in entry.numbers]
    return [sign * int(part) for sign, number in zip(signs, parts, strict=True) for part in number]


def _gaps(folder: str, numbers: Sequence[Decimal]) -> tuple[Assumption, ...]:
    """That numbers are missing, or unevenly spread."""
    steps = [b - a for a, b in pairwise(numbers)]
    step = Decimal(1) if len(numbers) == 2 and steps[0] == int(steps[0]) else min(steps)
    if all(s == step for s in steps):
        return ()
    ends = f"from {numbers[0]} to {numbers[-1]}"
    if any(s % step for s in steps):
        because = f"the numbers of its files go {ends} in uneven steps"
        what = f"how far the slices of {folder} are from each other"
        return (Assumption(what=what, taken="equally far", because=because),)
    missing = [a + step * k for a, s in zip(numbers, steps, strict=False) for k in range(1, min(int(s / step), 1000))]
    count = sum(int(s / step) - 1 for s in steps)
    named = ", ".join(map(str, missing[:_LISTED])) + (", ..." if count > _LISTED else "")
    what = f"{count} missing slice{'s' if count > 1 else ''} of {folder} ({named})"
    return (
        Assumption(
            what=what,
            taken="left out, the slices on either side as neighbours",
            because=f"the numbers of its files go {ends} with gaps",
        ),
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" ... ({len(names)})" if len(names) > 3 else "")


def _shape(entry: _Name) -> str:
    return entry.pattern + kind_of(entry.name)


def _wildcard(entry: _Name, columns: Sequence[Sequence[Decimal]] = ()) -> str:
    """A pattern for the shell that names a series; of several numbers, only the one that has most values varies."""
    stem = PurePath(entry.name).stem
    parts = _NUMBER.split(stem)
    most = max(range(len(columns)), key=lambda i: len({*columns[i]})) if columns else None
    parts[1::2] = ["*" if most in (None, i) else number for i, number in enumerate(parts[1::2])]
    return "".join(parts) + PurePath(entry.name).suffix
