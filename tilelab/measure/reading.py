"""What is asked of labels, and labels as that makes them: walls as cells, holes filled, objects parted, told apart."""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.evaluation.census import MOST_UNNAMED, Census, check_map, judge
from tilelab.evaluation.label_map import IGNORE, LabelMap
from tilelab.evaluation.labels import Labels, open_labels
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.measure.affinities import Cut
from tilelab.measure.fractions import BlockCounts
from tilelab.measure.holes import Filled
from tilelab.measure.instances import Numbered, Voted
from tilelab.measure.opening import Recoded
from tilelab.measure.parting import Parted
from tilelab.measure.piecework import ClassPlanes, Intensities
from tilelab.spec import ClassInfo, default_colors

Size = tuple[float, float, float]
Classes = tuple[ClassInfo, ...] | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be measured, and how the labels are to be read.

    Attributes:
        cells: class of the walls between cells; then everything else is class ``cell``, and walls are the background.
        fill_holes: holes of objects belong to them (`Filled`); the shares of the classes are those before.
        part: touching objects part at necks of so many pixels (`Parted`); the shares are those before.
        votes: the heat map and the offsets of a result that a network like MitoNet made: `Voted`.
        affinities: the map of a result that says of pairs of pixels whether they are of one object, and the pairs'
            offsets (y, x): `Cut`.
        numbered: the labels are numbers of objects already: `Numbered`.
        connectivity: in how many axes neighbouring pixels of an object may differ: 1 for faces alone.
        min_size: what is smaller is no object: ``50px``, ``200nm2``.
        only: classes whose objects are wanted, by name or index; all but the first where empty.
        classes: their names, background first, where the labels do not know them.
        layer: classes that form a layer together, whose thickness is wanted.
        opening: by which the layer is opened first, in pixels.
        fibres: class of the axons and class of the sheaths around them, where those are wanted.
        pixel_size_nm: (y, x) or (z, y, x), instead of what is stated.
        label_map, axes, series, allow_outside: as for `open_labels`.
        image_axes, image_series: of the micrograph.
        grid: planes and rows of a block; no result depends on it.
        threads: no result depends on them either.
    """

    cells: str | None = None
    fill_holes: bool = False
    part: float | None = None
    votes: tuple[str, str] | None = None
    affinities: tuple[str, tuple[tuple[int, int], ...]] | None = None
    numbered: bool = False
    connectivity: int = 1
    min_size: str = "0"
    only: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    layer: tuple[str, ...] = ()
    opening: int = 0
    fibres: tuple[str, str] | None = None
    pixel_size_nm: tuple[float, ...] | None = None
    label_map: LabelMap | None = None
    axes: str | None = None
    series: str | None = None
    image_axes: str | None = None
    image_series: str | None = None
    allow_outside: bool = False
    grid: tuple[int, int] | None = None
    threads: int | None = None

    @property
    def told_apart(self) -> bool:
        """Whether objects are told apart by more than their class."""
        return self.votes is not None or self.affinities is not None or self.numbered


@dataclass(frozen=True)
class Away:
    """Labels, or the micrograph, that are opened where they are read, as they were opened here: `ClassPlanes`.

    Attributes:
        source, image, question: of `measure`.
        shape, chunks: of the labels.
        grey: whether it is the micrograph that is read.
        survey: of which they are read: a worker that outlives it opens them anew, for the files may be others then.
    """

    source: str
    image: str | None
    question: Question
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    grey: bool = False
    survey: str = field(default_factory=secrets.token_hex)

    @classmethod
    def of(cls, source: str | Path, image: Any, question: Question, labels: Labels) -> Away:
        """Labels that workers open themselves.

        Raises:
            InputError: they are made in a way that workers do not know.
        """
        if question.told_apart:
            raise InputError(
                "objects that are told apart are found in one process: leave --workers and --scheduler out"
            )
        if question.fill_holes:
            raise InputError("holes are filled in one process: leave --workers and --scheduler out, or --fill-holes")
        if not isinstance(source, str | os.PathLike):
            raise InputError("workers open the labels themselves: give their path")
        if image is not None and not isinstance(image, str | Path):
            raise InputError("workers open the micrograph themselves: give its path")
        place = None if image is None else str(Path(image).absolute())
        return cls(str(Path(source).absolute()), place, question, labels.shape, labels.chunks)

    def read(self, box: Box) -> Any:
        """A region (z, y, x)."""
        planes, image = _open_away(self.source, self.image, self.question, self.survey)
        reader: Any = image if self.grey else planes
        return reader.read(box)


@lru_cache(4)
def _open_away(
    source: str,
    image: str | None,
    question: Question,
    survey: str,  # noqa: ARG001
) -> tuple[ClassPlanes, Intensities | None]:
    """What a worker reads; kept open for the next block of a survey."""
    labels = open_labels(source, question.label_map, question.axes, question.allow_outside, question.series)
    planes = _mend(_recode(labels, _stated(labels, question), question), question)
    if image is None:
        return planes, None
    chosen: dict[str, Any] = {"axes": question.image_axes, "series": question.image_series}
    return planes, Grey(Volume(open_image(image, allow_outside=question.allow_outside, **chosen)))


def _stated(labels: Labels, question: Question) -> Classes:
    """The classes that the question or the labels name, before walls are told from cells."""
    if question.classes:
        return tuple(map(ClassInfo, question.classes, default_colors(len(question.classes))))
    return labels.classes


def _recode(labels: Labels, stated: Classes, question: Question) -> ClassPlanes:
    """The labels, or what walls enclose."""
    if question.cells is None:
        return labels
    return Recoded(labels, _walls(stated, labels, question.cells))


@dataclass(frozen=True)
class Prepared:
    """Labels as the question makes them.

    Attributes:
        classes: their names, None where nobody says them.
        named: those that are named where `classes` are not known, by value.
        counted: whose shares are counted.
        planes: whose objects are looked for.
        only: classes of the objects that are wanted.
        layer, fibres: classes of the layer, and of axons and sheaths; empty where they are not wanted.
        told_apart: whether `planes` hold more than classes.
    """

    classes: Classes
    named: dict[int, ClassInfo]
    counted: ClassPlanes
    planes: ClassPlanes
    only: list[int]
    layer: list[int]
    fibres: list[int]
    told_apart: bool


def prepare(labels: Labels, question: Question) -> Prepared:
    """Find the classes that are asked for, and put what is asked for before the labels.

    Raises:
        InputError: a class or a map is not there, or two wishes exclude each other.
    """
    classes = _stated(labels, question)
    check_map(question.label_map if classes else None, [info.name for info in classes or ()], "the label map")
    apart = question.told_apart
    ways = {"--votes": question.votes, "--affinities": question.affinities, "--numbered": question.numbered or None}
    if len(asked := [flag for flag, given in ways.items() if given is not None]) > 1:
        raise InputError(f"{' and '.join(asked)} tell objects apart in different ways: give one of them")
    pairs = (("--fibres", question.fibres, "the class of the axons and that of the sheaths"),
             ("--votes", question.votes, "two maps"))  # fmt: skip
    for flag, names, two in pairs:
        given: Sequence[str] = names or ("", "")
        if len(given) != 2:
            raise InputError(f"{flag} {','.join(map(str, given))}: name two, {two}")
    if apart and (question.fill_holes or question.part is not None or question.cells is not None):
        raise InputError("objects that are told apart already are not filled, parted or enclosed: leave one out")
    if question.numbered and question.label_map is not None:
        raise InputError("numbers of objects are no classes that a label map could name: leave one of the two out")
    counted = _recode(labels, classes, question)
    if question.cells is not None:
        classes = _cells(classes, labels, question.cells)
    numbers: ClassPlanes | None = None
    if question.numbered:
        chosen: dict[str, Any] = {"axes": question.axes, "series": question.series}
        path = labels.path
        numbers = Numbered(open_image(path, as_labels="integers", allow_outside=question.allow_outside, **chosen))
        counted, classes = _Last(numbers), tuple(map(ClassInfo, ("background", "object"), default_colors(2)))
    only = find_classes(classes, labels, question.only) if question.only else [*range(1, IGNORE)]
    layer, fibres = (find_classes(classes, labels, names or ()) for names in (question.layer, question.fibres))
    if fibres and fibres[0] not in only:
        raise InputError(f"the objects of --class are not those of --fibres: add --class {fibres[0]}")
    if (layer or fibres) and labels.shape[0] != 1:  # found out at the end, it would cost a pass
        what = "a layer is" if layer else "fibres are"
        where = labels.path if labels.result is None else labels.path / "labels/classes"
        raise InputError(
            f"{what} measured in a plane, {labels.path} is a volume: take a slice of it, "
            f"`tilelab convert {where} slice.tif --region {labels.shape[0] // 2}:{labels.shape[0] // 2 + 1},:,:`"
        )
    planes = numbers or _mend(counted, question)
    if question.votes is not None:
        planes = Voted(_of(labels, only), *_find_maps(labels, question.votes))
    if question.affinities is not None:
        name, offsets = question.affinities
        planes = Cut(_of(labels, only), _find_maps(labels, (name,))[0], offsets)
    return Prepared(classes, {} if classes else labels.named, counted, planes, only, layer, fibres, apart)


def _find_maps(labels: Labels, names: Sequence[str]) -> list[Image]:
    """Maps of the result that labels are of."""
    maps = {} if labels.result is None else labels.result.maps
    for name in names:
        if name not in maps:
            told = f"it has {', '.join(maps)}" if maps else "it has none (infer with --output-is map)"
            raise InputError(f"{labels.path} has no map {name!r}: {told}")
    return [maps[name] for name in names]


def _of(labels: Labels, only: Sequence[int]) -> ClassPlanes:
    """Some classes of labels."""
    table = np.zeros(256, np.uint8)
    table[list(only)] = list(only)
    return Recoded(labels, table)


class _Last:
    """The classes of planes that hold more: their last eight bits."""

    def __init__(self, planes: ClassPlanes) -> None:
        self._planes = planes
        self.shape, self.chunks = planes.shape, planes.chunks

    def read(self, box: Box) -> Array:
        """Region (z, y, x), uint8."""
        classes: Array = (self._planes.read(box) & 255).astype(np.uint8)
        return classes


def _mend(planes: ClassPlanes, question: Question) -> ClassPlanes:
    """The labels with their holes filled and touching objects parted, as far as that was asked for."""
    if question.fill_holes:
        planes = Filled(planes, question.connectivity, grid=question.grid, threads=question.threads)
    if question.part is not None:
        planes = Parted(planes, question.part, question.connectivity)
    return planes


def judge_counts(path: Path, classes: Classes, counts: BlockCounts, question: Question) -> None:
    """Refuse values that are no classes, a mask of 0 and 255 for one; leave out what the label map ignores."""
    if question.label_map is not None:
        counts.forget(IGNORE)
        return
    census = Census(str(path), Counter({value: int(n) for value, n in enumerate(counts.totals) if n}))
    judge(census, None, [info.name for info in classes or ()], flag="--label-map")


def _walls(classes: Classes, labels: Labels, walls: str) -> Array:
    """Class 0 for the walls between cells, 1 for all else."""
    table = np.arange(256, dtype=np.uint8)  # what is no class stays that
    table[: len(classes) if classes else MOST_UNNAMED] = 1
    table[find_classes(classes, labels, [walls])] = 0
    return table


def _cells(classes: Classes, labels: Labels, walls: str) -> tuple[ClassInfo, ...]:
    label = find_classes(classes, labels, [walls])[0]
    name = classes[label].name if classes else labels.named[label].name if label in labels.named else f"class {label}"
    return tuple(map(ClassInfo, (name, "cell"), default_colors(2)))


def find_classes(classes: Sequence[ClassInfo] | None, labels: Labels, wanted: Sequence[str]) -> list[int]:
    """Indices of classes by name or index; of any from 1 to 254 where they are not all known."""
    known = dict(enumerate(classes)) if classes else labels.named
    places = {info.name: value for value, info in known.items() if value}
    found = []
    for one in map(str, wanted):
        if one in places:
            found.append(places[one])
        elif one.isdecimal() and 0 < int(one) < (len(classes or ()) or IGNORE):
            found.append(int(one))
        else:
            told = [f"{value} {name}" for name, value in places.items()] + ["numbered 1 to 254"] * (not classes)
            raise InputError(f"{labels.path} has no class {one!r} that objects can be of: they are {', '.join(told)}")
    return found


class Grey:
    """A micrograph without its channel axis."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def read(self, box: Box) -> Array:
        plane: Array = self._volume.read(box)[0]
        return plane
