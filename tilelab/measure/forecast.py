"""What `measure` will take, before it does it: bytes and memory by the shape of the labels, time by pieces of them.

A few pieces, spread over the labels, are measured as the whole would be.  What they took for each pixel, how many
objects they hold and how many of these reach their edges is taken for the whole.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tilelab.assumptions import Assumption
from tilelab.errors import PlanError, TilelabError
from tilelab.evaluation.labels import Labels
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.region import crop
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.kernels.objects.runs import find_pieces
from tilelab.kernels.objects.sums import COLUMNS, MOST_PIXELS
from tilelab.machine.cpu import core_count
from tilelab.measure.components import block_grid
from tilelab.measure.reading import Question, prepare
from tilelab.measure.spool import RECORD, SPOOL_BYTES
from tilelab.measure.survey import assumed, opened, survey_of
from tilelab.run.plan.estimate import stored_bytes
from tilelab.text import size_text

_PLACES = (0.5, 0.25, 0.75, 0.0, 1.0)  # of the way through the labels: the middle, first, is the least often empty
_PIECE = 2**23  # pixels of a piece, about
_SECONDS = 8.0  # after which no further piece is measured
_START = 1.5  # of a process
_PAINT, _WRITE = 2.0e-9, 3.0e-9  # seconds of processor for a pixel that is painted, a byte that is written
_RUN_BYTES = 96  # of a run in a block: itself, and what its sums and corners are made of
_REST_BYTES = 32 * 2**20  # of codecs, of tables on their way into a file, and what the allocator does not give back
_KEPT_BYTES = 17  # of a run that waits for what comes
_FRONT_BYTES = COLUMNS * 8 + 16 + 48 * 24  # of an object that reaches the front: sums, and corners of its hull
_HANDLE_BYTES = 24  # of a piece that met the front
_OBJECT_BYTES = 48 + 120 + 560  # of an object: its number and order; its centre and its nearest; its row of the table
_CELL_BYTES = 12  # of a number in a table


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What measuring will take: amounts in bytes, times in seconds; None for what is not known.

    Attributes:
        path: of the labels.
        shape, chunks: (z, y, x).
        block: planes, rows and columns that are read at a time.
        blocks: how many of them a pass reads.
        passes: over the labels.
        bytes_read: decoded, of all passes, the micrograph's too.
        bytes_stored: that the labels take where they are.
        bytes_written: at most, by what is written: ``objects`` before compression, ``table`` as text.
        bytes_temporary: of the file in which many objects wait.
        objects: how many are expected, of those that are large enough.
        memory: ``total`` and by purpose, beside Python and its modules.
        samples: pieces that were measured, and how many of them hold no object.
        megapixels_per_second: of this machine, by these pieces.
        seconds: of the whole, from the start of the process.
        notes: for the user.
        assumptions: what had to be guessed.
    """

    path: str
    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    block: tuple[int, int, int]
    blocks: int
    passes: int
    bytes_read: int
    bytes_stored: int | None
    bytes_written: dict[str, int]
    bytes_temporary: int | None
    objects: int | None
    memory: dict[str, int]
    samples: tuple[int, int]
    megapixels_per_second: float | None
    seconds: float | None
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]


@dataclass
class _Seen:
    """Sums over the pieces that were measured."""

    pieces: int = 0
    empty: int = 0
    pixels: int = 0
    seconds: float = 0.0
    objects: int = 0
    runs: int = 0
    open: int = 0
    faces: int = 0  # pixels of the faces at which those are open
    columns: int = 0
    why: str = ""


def foresee(
    source: Any, question: Question, *, image: Any = None, numbers: bool = False, outlines: bool = False
) -> Forecast:
    """Tell what `measure` would take, by measuring some pieces for a few seconds.

    Args:
        source, question, image: of `measure`.
        numbers: the numbers of the objects are written as an image, too.
        outlines: and their outlines.

    Raises:
        InputError: something cannot be read, or is asked for that is not there.
        PlanError: an axis is longer than sums are exact for.
    """
    with opened(source, question, image) as (labels, grey):
        shape = labels.shape
        if max(shape) > MOST_PIXELS:
            raise PlanError(
                f"{size_text(shape)} pixels (z, y, x): objects are found along at most {MOST_PIXELS:,} an axis"
            )
        guesses = assumed(labels, grey, question)
        seen = _measure_pieces(labels, grey, question)
        return _forecast(labels, grey, question, seen, guesses, numbers=numbers, outlines=outlines)


def _measure_pieces(labels: Labels, grey: Image | None, question: Question) -> _Seen:
    seen = _Seen()
    if question.told_apart:
        seen.why = "objects that are told apart by more than their class are not tried out"
        return seen
    if math.prod(labels.chunks) > LARGE_BYTES:
        seen.why = f"a chunk has {size_text(labels.chunks)} pixels: none is read to try"
        return seen
    question = replace(question, grid=labels.chunks[:2])
    began = time.perf_counter()
    for i, box in enumerate(_pieces(labels, question.threads or core_count())):
        try:
            if not i:  # compiles, and finds the files
                _measure_piece(labels, grey, question, box, _Seen())
                began = time.perf_counter()
            _measure_piece(labels, grey, question, box, seen)
        except TilelabError as error:
            seen.why = f"a piece cannot be measured alone: {error}"
            return seen
        if time.perf_counter() - began > _SECONDS:
            break
    return seen


def _pieces(labels: Labels, threads: int) -> Iterator[Box]:
    """Pieces of whole chunks, on the way from the first corner to the last."""
    shape, (planes, rows, columns) = labels.shape, labels.chunks
    extent = [min(shape[0], planes), min(shape[1], 2 * threads * rows), columns]
    extent[2] = min(shape[2], max(1, _PIECE // (extent[0] * extent[1] * columns)) * columns)
    found = set()
    for part in _PLACES:
        start = tuple(int((n - e) * part) // c * c for n, e, c in zip(shape, extent, labels.chunks, strict=True))
        if start not in found:
            found.add(start)
            stop = tuple(min(a + e, n) for a, e, n in zip(start, extent, shape, strict=True))
            yield Box(start, stop)


def _measure_piece(labels: Labels, grey: Image | None, question: Question, box: Box, seen: _Seen) -> None:
    part, under = labels.part(box), None
    if grey is not None:
        axes = {"z": 0, "y": 1, "x": 2}
        ranges = [(box.start[axes[a]], box.stop[axes[a]]) for a in grey.axes if a != "c"]
        under = crop(grey, ranges)
    began = time.perf_counter()
    survey = survey_of(part, under, question)
    columns = 0
    for table in survey.columns():
        columns = len(table)
    seen.seconds += time.perf_counter() - began
    count = survey.objects.count
    seen.pieces, seen.empty, seen.columns = seen.pieces + 1, seen.empty + (not count), columns
    seen.pixels, seen.objects = seen.pixels + box.size, seen.objects + count
    planes = prepare(part, question).planes
    block = survey.objects.choose(planes.read(Box.whole(part.shape)))
    depth, height, width = part.shape
    runs, pieces = find_pieces(block, question.connectivity)
    touching = np.zeros(pieces, np.bool_)
    faces = [(0, depth, height), (height - 1, depth, height)]
    seen.faces += 2 * depth * width
    if labels.shape[0] > 1:
        faces += [(0, height, 1), ((depth - 1) * height, height, 1)]
        seen.faces += 2 * height * width
    for face in faces:
        touching[runs.take(*face).owners] = True
    seen.runs, seen.open = seen.runs + int(runs.rows[-1]), seen.open + int(touching.sum())
    survey.objects.close()


def _forecast(
    labels: Labels,
    grey: Image | None,
    question: Question,
    seen: _Seen,
    guesses: tuple[Assumption, ...],
    *,
    numbers: bool,
    outlines: bool,
) -> Forecast:
    shape, pixels = labels.shape, math.prod(labels.shape)
    threads = question.threads or core_count()
    planes, rows = question.grid or block_grid(labels)
    block = (planes, rows, shape[2])
    blocks = -(-shape[0] // planes) * -(-shape[1] // rows)
    again = (question.fill_holes, question.fill_holes or question.part is not None or question.told_apart)
    passes = 1 + sum(map(bool, (*again, question.layer, question.fibres, numbers, outlines)))
    under = 0 if grey is None else grey.dtype.itemsize
    known = bool(seen.pixels)
    share = pixels / seen.pixels if known else 0.0
    objects = round(seen.objects * share) if known else None
    size = 4 if (objects or 0) < 2**32 else 8
    flat = shape[0] == 1
    written = {}
    if numbers:
        written["objects"] = round(pixels * size * (4 / 3 if flat else 8 / 7))
    if objects is not None:
        written["table"] = objects * max(1, seen.columns) * _CELL_BYTES
    seconds = None
    if known:
        seconds = _START + seen.seconds * share
        if numbers:
            seconds += (seen.seconds * share / 2) + (pixels * _PAINT + written["objects"] * _WRITE) / threads
    notes = [seen.why] if seen.why else []
    if known and seen.empty == seen.pieces:
        notes.append("no piece that was measured holds an object: time, memory and objects are those of empty labels")
    if outlines:
        notes.append("outlines are not in the time: a pass over the labels, and one over every edge")
    return Forecast(
        path=str(labels.path), shape=shape, chunks=labels.chunks, block=block, blocks=blocks, passes=passes,
        bytes_read=pixels * (passes + under),
        bytes_stored=stored_bytes(labels.image), bytes_written=written,
        bytes_temporary=_waiting(objects), objects=objects,
        memory=_memory(shape, block, min(threads, blocks), objects or 0, seen, under, size * numbers),
        samples=(seen.pieces, seen.empty),
        megapixels_per_second=seen.pixels / seen.seconds / 1e6 if known else None,
        seconds=seconds, notes=tuple(notes), assumptions=guesses,
    )  # fmt: skip


def _waiting(objects: int | None) -> int | None:
    """Bytes of the records that do not stay in memory."""
    if objects is None:
        return None
    return objects * RECORD.itemsize if objects * RECORD.itemsize > SPOOL_BYTES else 0


def _memory(
    shape: tuple[int, int, int],
    block: tuple[int, int, int],
    at_once: int,
    objects: int,
    seen: _Seen,
    grey: int,
    numbers: int,
) -> dict[str, int]:
    """Bytes by purpose, at their highest; `grey` and `numbers` are bytes of a pixel, 0 where there are none.

    Numbers are written in shards of 2**22 pixels of a plane, 2**25 of a volume.
    """
    (depth, height, width), (planes, rows, _) = shape, block
    runs = seen.runs / max(1, seen.pixels)
    opened = seen.open / max(1, seen.faces)  # for each pixel of a face
    slab = height * width if depth > 1 else 0  # the last plane of the slab before
    faces = 2 * width * depth * -(-height // rows) + 2 * slab * -(-depth // planes)  # of all blocks
    front = planes * width + slab
    parts = {
        "blocks": at_once * math.prod(block) * (3 + grey),  # decoded, as read, of the classes that are wanted
        "runs": round(at_once * math.prod(block) * runs * _RUN_BYTES),
        "front": round(front * (opened * _FRONT_BYTES + 2 * runs * _KEPT_BYTES)),
        "objects": round(faces * opened * _HANDLE_BYTES + objects * _OBJECT_BYTES)
        + min(2 * SPOOL_BYTES, objects * RECORD.itemsize),
        "rest": _REST_BYTES,
    }
    if numbers:
        parts["numbers"] = at_once * (numbers * (2 * (2**22 if depth == 1 else 2**25) + math.prod(block)))
    return {"total": sum(parts.values()), **parts}
