"""`measure`: everything that is asked about one label image, in one or two passes over it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.evaluation.census import MOST_UNNAMED, Census, judge
from tilelab.evaluation.label_map import IGNORE, LabelMap
from tilelab.evaluation.labels import Labels, open_labels
from tilelab.evaluation.pairs import name_of
from tilelab.geometry import Box, boxes
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.measure.components import Components, ObjectsImage, block_grid, find_objects
from tilelab.measure.fibres import Fibres, find_sheaths
from tilelab.measure.fractions import BlockCounts, Fraction
from tilelab.measure.holes import Filled
from tilelab.measure.layers import Layer, measure_layer
from tilelab.measure.neighbours import nearest_distances
from tilelab.measure.opening import Recoded
from tilelab.measure.parting import Parted
from tilelab.measure.piecework import ClassPlanes, Intensities
from tilelab.measure.shapes import centres, classes_of, measure_intensities, measure_shapes
from tilelab.measure.sizes import parse_size
from tilelab.spec import ClassInfo, default_colors
from tilelab.text import size_text

Size = tuple[float, float, float]
Classes = tuple[ClassInfo, ...] | None


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is to be measured, and how the labels are to be read.

    Attributes:
        cells: class of the walls between cells; then everything else is class ``cell``, and walls are the background.
        fill_holes: holes of objects belong to them (`Filled`); the shares of the classes are those before.
        part: touching objects part at necks of so many pixels (`Parted`); the shares are those before.
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


@dataclass
class Survey:
    """What was found in one label image.

    Attributes:
        path: of the labels.
        name: of the image.
        shape: (z, y, x).
        size_nm: of a pixel (z, y, x), None where it is not known.
        classes: names and colours, background first.
        counts: pixels by class in blocks.
        fractions: shares of the classes.
        objects: the objects, with a second pass that paints them.
        nearest: distance of each to the nearest of its class, in nm or pixels.
        layer: the layer, if asked for.
        fibres: what surrounds the objects, if asked for, and the class of those that are axons.
        labels: what was measured; open until `close`.
        assumptions: what had to be guessed.
    """

    path: Path
    name: str
    shape: tuple[int, int, int]
    size_nm: Size | None
    classes: tuple[ClassInfo, ...]
    counts: BlockCounts
    fractions: list[Fraction]
    objects: Components
    nearest: Float64
    layer: Layer | None
    fibres: tuple[Fibres, int] | None
    labels: Labels
    image: Image | None
    assumptions: tuple[Assumption, ...]

    @property
    def unit(self) -> str:
        """``nm``, or ``px`` where the pixel size is not known."""
        return "px" if self.size_nm is None else "nm"

    def columns(self) -> Iterator[dict[str, Array]]:
        """The table of objects in the order of their numbers, some tens of thousands at a time."""
        first = 0
        names = np.array([info.name for info in self.classes])
        for records in self.objects.records():
            labels = classes_of(records)
            last = first + len(records)
            table: dict[str, Array] = {"object": np.arange(first + 1, last + 1), "class": names[labels]}
            table |= measure_shapes(records, self.shape, self.size_nm)
            if self.image is not None:
                table |= measure_intensities(records)
            table[f"nearest_{self.unit}"] = self.nearest[first:last]
            if self.fibres is not None:
                found, inner = self.fibres
                size = (1.0, 1.0) if self.size_nm is None else self.size_nm[1:]
                table |= found.columns(slice(first, last), table["area_px"], labels == inner, size, self.unit)
            yield table
            first = last

    def table(self) -> dict[str, Array]:
        """The whole table in memory."""
        parts = list(self.columns())
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}

    def density(self, count: int) -> float:
        """Objects per square (cubic) micrometre, or per megapixel where the pixel size is not known."""
        if self.size_nm is None:
            return count * 1e6 / math.prod(self.shape)
        flat = self.shape[0] == 1
        space = math.prod(n * s / 1e3 for n, s in list(zip(self.shape, self.size_nm, strict=True))[int(flat) :])
        return count / space

    def objects_image(self) -> ObjectsImage:
        """The numbers of the objects as a lazy image."""
        size = None if self.size_nm is None else self.size_nm[int(self.shape[0] == 1) :]
        origin = () if self.labels.result is None else self.labels.result.info.origin_px
        return ObjectsImage(self.objects, str(self.path), size, origin)

    def close(self) -> None:
        """Release files."""
        self.labels.close()
        if self.image is not None:
            self.image.close()


def measure(
    source: str | Path,
    question: Question | None = None,
    *,
    image: Any = None,
    progress: Callable[[int, int], None] | None = None,
    client: Any = None,
) -> Survey:
    """Measure the classes and objects of a result or label image of any size; close what it returns.

    Args:
        source: anything that `open_labels` takes.
        question: what is wanted.
        image: the micrograph, for intensities under the objects: anything that `open_image` takes.
        progress: called with pixels done and in all.
        client: of a Dask cluster whose workers read and find the pieces of objects; they see the same files.

    Raises:
        InputError: something cannot be read, or the micrograph has another size.
    """
    question = question or Question()
    labels = open_labels(source, question.label_map, question.axes, question.allow_outside, question.series)
    grey: Image | None = None
    try:
        if image is not None:
            grey = open_image(
                image, axes=question.image_axes, series=question.image_series, allow_outside=question.allow_outside
            )
            _check_image(grey, labels)
        away = None if client is None else Away.of(source, image, question, labels)
        return _survey(labels, grey, question, progress, away, client)
    except BaseException:
        labels.close()
        if grey is not None:
            grey.close()
        raise


@dataclass(frozen=True)
class Away:
    """Labels, or the micrograph, that are opened where they are read, as they were opened here: `ClassPlanes`.

    Attributes:
        source, image, question: of `measure`.
        shape, chunks: of the labels.
        grey: whether it is the micrograph that is read.
    """

    source: str
    image: str | None
    question: Question
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    grey: bool = False

    @classmethod
    def of(cls, source: str | Path, image: Any, question: Question, labels: Labels) -> Away:
        """Labels that workers open themselves.

        Raises:
            InputError: they are made in a way that workers do not know.
        """
        if question.fill_holes:
            raise InputError("holes are filled in one process: leave --workers and --scheduler out, or --fill-holes")
        if image is not None and not isinstance(image, str | Path):
            raise InputError("workers open the micrograph themselves: give its path")
        place = None if image is None else str(Path(image).absolute())
        return cls(str(Path(source).absolute()), place, question, labels.shape, labels.chunks)

    def read(self, box: Box) -> Any:
        """A region (z, y, x)."""
        planes, image = _open_away(self.source, self.image, self.question)
        reader: Any = image if self.grey else planes
        return reader.read(box)


@lru_cache(4)
def _open_away(source: str, image: str | None, question: Question) -> tuple[ClassPlanes, Intensities | None]:
    """What a worker reads; kept open for the next block."""
    labels = open_labels(source, question.label_map, question.axes, question.allow_outside, question.series)
    planes = _mend(_recode(labels, _stated(labels, question), question), question)
    if image is None:
        return planes, None
    chosen: dict[str, Any] = {"axes": question.image_axes, "series": question.image_series}
    return planes, _Grey(Volume(open_image(image, allow_outside=question.allow_outside, **chosen)))


def _stated(labels: Labels, question: Question) -> Classes:
    """The classes that the question or the labels name, before walls are told from cells."""
    if question.classes:
        return tuple(map(ClassInfo, question.classes, default_colors(len(question.classes))))
    return labels.classes


def _recode(labels: Labels, stated: Classes, question: Question) -> ClassPlanes:
    """The labels, or what walls enclose."""
    if question.cells is None:
        return labels
    return Recoded(labels, _walls(stated, labels.path, question.cells))


def _survey(
    labels: Labels,
    image: Image | None,
    question: Question,
    progress: Callable[[int, int], None] | None,
    away: Away | None,
    client: Any,
) -> Survey:
    size = _pixel_size(labels, image, question)
    flat = labels.shape[0] == 1
    guesses = labels.assumptions
    if size is None:
        guesses += (
            Assumption(
                what="the pixel size",
                taken="unknown, lengths are in pixels",
                because="neither file nor flag says it",
                flag="--pixel-size",
            ),
        )
    if not 1 <= question.connectivity <= (2 if flat else 3):
        raise InputError(f"connectivity {question.connectivity}: it is 1 to {2 if flat else 3} for {labels.path}")
    stated = _stated(labels, question)
    counted = _recode(labels, stated, question)
    if question.cells is not None:
        stated = _cells(stated, labels.path, question.cells)
    layer_of = _find_classes(stated, labels.path, question.layer)
    fibres_of = _find_classes(stated, labels.path, question.fibres or ())
    only = _find_classes(stated, labels.path, question.only) if question.only else [*range(1, IGNORE)]
    if fibres_of and fibres_of[0] not in only:
        raise InputError(f"the objects of --class are not those of --fibres: add --class {fibres_of[0]}")
    planes = _mend(counted, question)
    counts = BlockCounts(labels.shape)
    total, done = math.prod(labels.shape), 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    cut: dict[str, Any] = {"grid": question.grid, "threads": question.threads}
    grey: Intensities | None = None if image is None else _Grey(Volume(image))
    pool, threads = None, question.threads
    if away is not None:
        pool, threads = client.get_executor(pure=False), 2 * len(client.scheduler_info()["workers"])
        grey = None if grey is None else replace(away, grey=True)
    objects = find_objects(
        planes if away is None else away,
        only=only,
        connectivity=question.connectivity,
        min_pixels=parse_size(question.min_size, size, 2 if flat else 3),
        image=grey,
        pixel_size=(1.0, 1.0) if size is None else size[1:],
        counts=counts if planes is counted else None,
        progress=advance,
        grid=question.grid,
        threads=threads,
        pool=pool,
    )
    objects.labels = planes
    if planes is not counted:
        for box in boxes(labels.shape, (*block_grid(counted), labels.shape[2])):
            counts.add(box, counted.read(box))
    _judge(labels.path, stated, counts, question)
    fractions = counts.fractions()
    known = stated or unnamed_classes(len(fractions))
    fractions += [Fraction(0, 0.0, math.nan, math.nan, 0)] * (len(known) - len(fractions))
    layer = None
    if layer_of:
        in_nm = None if size is None else size[1:]
        layer = measure_layer(counted, layer_of, opening=question.opening, size_nm=in_nm, **cut)
    return Survey(
        path=labels.path, name=name_of(labels.path), shape=labels.shape, size_nm=size, classes=known, counts=counts,
        fractions=fractions, objects=objects, nearest=_nearest(objects, size), layer=layer,
        fibres=(find_sheaths(objects, *fibres_of), fibres_of[0]) if fibres_of else None,
        labels=labels, image=image, assumptions=guesses,
    )  # fmt: skip


def _mend(planes: ClassPlanes, question: Question) -> ClassPlanes:
    """The labels with their holes filled and touching objects parted, as far as that was asked for."""
    if question.fill_holes:
        planes = Filled(planes, question.connectivity, grid=question.grid, threads=question.threads)
    if question.part is not None:
        planes = Parted(planes, question.part, question.connectivity)
    return planes


def _walls(classes: Classes, path: Path, walls: str) -> Array:
    """Class 0 for the walls between cells, 1 for all else."""
    table = np.arange(256, dtype=np.uint8)  # what is no class stays that
    table[: len(classes) if classes else MOST_UNNAMED] = 1
    table[_find_classes(classes, path, [walls])] = 0
    return table


def _cells(classes: Classes, path: Path, walls: str) -> tuple[ClassInfo, ...]:
    label = _find_classes(classes, path, [walls])[0]
    name = classes[label].name if classes else f"class {label}"
    return tuple(map(ClassInfo, (name, "cell"), default_colors(2)))


def _nearest(objects: Components, size: Size | None) -> Float64:
    """Distance of each object to the nearest of its class."""
    scale = size or (1.0, 1.0, 1.0)
    scale = (0.0 if objects.labels.shape[0] == 1 else scale[0], *scale[1:])
    parts = [(centres(records, scale), classes_of(records)) for records in objects.records()]
    if not parts:
        return np.empty(0)
    return nearest_distances(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _judge(path: Path, classes: Classes, counts: BlockCounts, question: Question) -> None:
    """Refuse values that are no classes, a mask of 0 and 255 for one; leave out what the label map ignores."""
    if question.label_map is not None:
        counts.forget(IGNORE)
        return
    census = Census(str(path), Counter({value: int(n) for value, n in enumerate(counts.totals) if n}))
    judge(census, None, [info.name for info in classes or ()], flag="--label-map")


def unnamed_classes(count: int) -> tuple[ClassInfo, ...]:
    """Classes that have no names."""
    names = [f"class {k}" for k in range(max(2, count))]
    return tuple(map(ClassInfo, names, default_colors(len(names))))


def _pixel_size(labels: Labels, image: Image | None, question: Question) -> Size | None:
    """What the user says, else the labels, else the micrograph; a plane is one pixel thick."""
    flat = labels.shape[0] == 1
    given = question.pixel_size_nm
    if given is not None and len(given) == 1:
        given = given * 3
    said = given or labels.voxel_size_nm or (None if image is None else image.pixel_size_nm)
    if said is None:
        return None
    if len(said) == 2 and not flat:
        raise InputError(f"{labels.path} is a volume, its pixel size has two numbers: say all three with --pixel-size")
    z, y, x = said if len(said) == 3 else (1.0, *said)
    return (1.0 if flat else z, y, x)


def _check_image(image: Image, labels: Labels) -> None:
    volume = Volume(image)
    if volume.channels != 1 or volume.shape != labels.shape:
        raise InputError(
            f"{image.uri} is {size_text(image.shape)} ({image.axes}), {labels.path} {size_text(labels.shape)} pixels: "
            "give its own micrograph"
        )


def _find_classes(classes: Sequence[ClassInfo] | None, path: Path, wanted: Sequence[str]) -> list[int]:
    """Indices of classes by name or index; of any from 1 to 254 where they have no names."""
    names = [info.name for info in classes or ()]
    found = []
    for one in wanted:
        if one in names[1:]:
            found.append(names.index(one))
        elif one.isdecimal() and 0 < int(one) < (len(names) or IGNORE):
            found.append(int(one))
        else:
            told = ", ".join(f"{i} {name}" for i, name in enumerate(names) if i) or "numbered 1 to 254"
            raise InputError(f"{path} has no class {one!r} that objects can be of: they are {told}")
    return found


class _Grey:
    """A micrograph without its channel axis."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume

    def read(self, box: Box) -> Array:
        plane: Array = self._volume.read(box)[0]
        return plane
