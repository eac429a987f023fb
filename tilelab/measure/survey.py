"""`measure`: everything that is asked about one label image, in one or two passes over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float64
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.evaluation.census import MOST_UNNAMED
from tilelab.evaluation.labels import Labels, open_labels
from tilelab.evaluation.pairs import name_of
from tilelab.geometry import boxes
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.io.results.result import match_result
from tilelab.measure.components import Components, ObjectsImage, block_grid, find_objects
from tilelab.measure.fibres import Fibres, find_sheaths
from tilelab.measure.fractions import BlockCounts, Fraction
from tilelab.measure.layers import Layer, measure_layer
from tilelab.measure.neighbours import nearest_distances
from tilelab.measure.piecework import Intensities
from tilelab.measure.reading import Away, Grey, Question, Size, judge_counts, prepare
from tilelab.measure.shapes import centres, classes_of, measure_intensities, measure_shapes
from tilelab.measure.sizes import parse_size
from tilelab.measure.spool import RECORD
from tilelab.spec import ClassInfo, default_colors
from tilelab.text import counted, size_text


@dataclass(repr=False)
class Survey:
    """What was found in one label image; closed by `close` or at the end of a ``with``.

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
        nothing = np.empty(0, RECORD)  # a table without rows has a head
        for records in self.objects.records() if self.objects.count else [nothing]:
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
        """Objects per square (cubic) micrometre, or per megapixel where the pixel size is not known.

        What the label map leaves out is no part of the image.
        """
        pixels = max(1, int(self.counts.totals.sum()))
        if self.size_nm is None:
            return count * 1e6 / pixels
        return count / (pixels * math.prod(s / 1e3 for s in self.size_nm[int(self.shape[0] == 1) :]))

    def objects_image(self) -> ObjectsImage:
        """The numbers of the objects as a lazy image."""
        size = None if self.size_nm is None else self.size_nm[int(self.shape[0] == 1) :]
        origin = () if self.labels.result is None else self.labels.result.info.origin_px
        return ObjectsImage(self.objects, str(self.path), size, origin)

    def __enter__(self) -> Survey:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        each = zip(self.classes, self.fractions, strict=False)
        shares = ", ".join(f"{known.name} {one.share:.2%}" for known, one in each)
        return f"<Survey of {self.path}: {counted(self.objects.count, 'object')}; {shares}>"

    def close(self) -> None:
        """Release files, and what the table is made of."""
        self.objects.close()
        _close(self.labels, self.image)


def measure(
    source: Any,
    question: Question,
    *,
    image: Any = None,
    progress: Callable[[int, int], None] | None = None,
    client: Any = None,
) -> Survey:
    """`tilelab.measure` without its keywords: the question is said, and nobody is shown how far it is unasked."""
    labels, grey = _open(source, question, image)
    try:
        away = None if client is None else Away.of(source, image, question, labels)
        return survey_of(labels, grey, question, progress, away, client)
    except BaseException:
        _close(labels, grey)
        raise


def _open(source: Any, question: Question, image: Any) -> tuple[Labels, Image | None]:
    labels = open_labels(source, question.label_map, question.axes, question.allow_outside, question.series)
    grey: Image | None = None
    try:
        if image is not None:
            grey = open_image(
                image, axes=question.image_axes, series=question.image_series, allow_outside=question.allow_outside
            )
            grey = match_result(grey, labels.shape, None if labels.result is None else labels.result.info)
            _check_image(grey, labels)
    except BaseException:
        _close(labels, grey)
        raise
    return labels, grey


def _close(labels: Labels, image: Image | None) -> None:
    labels.close()
    if image is not None:
        image.close()


@contextmanager
def opened(source: Any, question: Question, image: Any) -> Iterator[tuple[Labels, Image | None]]:
    """What `measure` reads: the labels and their micrograph, if there is one.

    Raises:
        InputError: something cannot be read, or the micrograph has another size.
    """
    labels, grey = _open(source, question, image)
    try:
        yield labels, grey
    finally:
        _close(labels, grey)


def assumed(labels: Labels, image: Image | None, question: Question) -> tuple[Assumption, ...]:
    """What has to be guessed of them.

    Raises:
        InputError: what is said of them does not fit.
    """
    known = _pixel_size(labels, image, question) is not None
    return labels.assumptions + (() if known else (_UNKNOWN_SIZE,))


def survey_of(
    labels: Labels,
    image: Image | None,
    question: Question,
    progress: Callable[[int, int], None] | None = None,
    away: Away | None = None,
    client: Any = None,
) -> Survey:
    """What is asked of open labels; see `measure`."""
    size = _pixel_size(labels, image, question)
    flat = labels.shape[0] == 1
    if not 1 <= question.connectivity <= (2 if flat else 3):
        raise InputError(f"connectivity {question.connectivity}: it is 1 to {2 if flat else 3} for {labels.path}")
    plan = prepare(labels, question)
    counted, planes = plan.counted, plan.planes
    counts = BlockCounts(labels.shape)
    cut: dict[str, Any] = {"grid": question.grid, "threads": question.threads}
    grey: Intensities | None = None if image is None else Grey(Volume(image))
    pool, threads = None, question.threads
    if away is not None:
        pool, threads = client.get_executor(pure=False), 2 * len(client.scheduler_info()["workers"])
        grey = None if grey is None else replace(away, grey=True)
    objects = find_objects(
        planes if away is None else away,
        only=None if plan.told_apart else plan.only,
        connectivity=question.connectivity,
        min_pixels=parse_size(question.min_size, size, 2 if flat else 3),
        image=grey,
        pixel_size=size or (1.0, 1.0, 1.0),
        counts=counts if planes is counted else None,
        progress=None if progress is None else _sum_up(progress, math.prod(labels.shape)),
        grid=question.grid,
        threads=threads,
        pool=pool,
    )
    objects.labels = planes
    if planes is not counted:
        for box in boxes(labels.shape, (*block_grid(counted), labels.shape[2])):
            counts.add(box, counted.read(box))
    stated = plan.classes or (unnamed_classes(0, plan.named) if max(plan.named, default=0) >= MOST_UNNAMED else None)
    judge_counts(labels.path, stated, counts, question)
    fractions = counts.fractions()
    known = plan.classes or unnamed_classes(len(fractions), plan.named)
    fractions += [Fraction(0, 0.0, math.nan, math.nan, 0)] * (len(known) - len(fractions))
    layer = None
    if plan.layer:
        in_nm = None if size is None else size[1:]
        layer = measure_layer(counted, plan.layer, opening=question.opening, size_nm=in_nm, **cut)
    around = counted if plan.told_apart else None  # such objects hold numbers, and no class but their own
    return Survey(
        path=labels.path, name=name_of(labels.path), shape=labels.shape, size_nm=size, classes=known, counts=counts,
        fractions=fractions, objects=objects, nearest=_nearest(objects, size), layer=layer,
        fibres=(find_sheaths(objects, *plan.fibres, labels=around), plan.fibres[0]) if plan.fibres else None,
        labels=labels, image=image, assumptions=assumed(labels, image, question),
    )  # fmt: skip


def _nearest(objects: Components, size: Size | None) -> Float64:
    """Distance of each object to the nearest of its class."""
    scale = size or (1.0, 1.0, 1.0)
    scale = (0.0 if objects.labels.shape[0] == 1 else scale[0], *scale[1:])
    parts = [(centres(records, scale), classes_of(records)) for records in objects.records()]
    if not parts:
        return np.empty(0)
    return nearest_distances(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _sum_up(progress: Callable[[int, int], None], total: int) -> Callable[[int], None]:
    """From pixels since the last call to pixels done and in all."""
    done = 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        progress(done, total)

    return advance


_UNKNOWN_SIZE = Assumption(
    what="the pixel size",
    taken="unknown, lengths are in pixels",
    because="neither file nor flag says it",
    flag="--pixel-size",
)


def unnamed_classes(count: int, named: Mapping[int, ClassInfo] | None = None) -> tuple[ClassInfo, ...]:
    """Classes that have no names, but for those that are named, by value."""
    named = named or {}
    count = max(2, count, *(value + 1 for value in named))
    taken = {info.name for info in named.values()}
    names = [f"class {k}" + " (unnamed)" * (f"class {k}" in taken) for k in range(count)]
    usual = map(ClassInfo, names, default_colors(count))
    return tuple(named.get(value, info) for value, info in enumerate(usual))


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
            f"{image.uri} is {size_text(image.shape)} ({image.axes}), {labels.path} {size_text(labels.shape)} "
            "(z, y, x): give its own micrograph"
        )
