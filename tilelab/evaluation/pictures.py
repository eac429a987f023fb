"""Where a segmentation is wrong, as pictures of bounded size.

NAME.CLASS.accuracy.png
    The accuracy map of NASA's MicroNet: white found, black rightly left out, cyan too much, magenta missed.
NAME.errors.png
    The micrograph (or the true classes in greys) with the wrong pixels over it: cyan too much, magenta missed, yellow
    one foreground class for another.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from tilelab.arrays import Bool, UInt8
from tilelab.errors import InputError, OutputError
from tilelab.evaluation.labels import Labels
from tilelab.evaluation.pairs import Pair
from tilelab.evaluation.scoring import PairScores, Question, block_extent, left_out_of, open_pair
from tilelab.geometry import Box, boxes
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.io.results.result import match_result
from tilelab.io.storage.claims import Write, claim
from tilelab.machine.disk import replacing, why_unwritten
from tilelab.spec import ClassInfo
from tilelab.text import distinct

DEFAULT_SIZE = 2048
_EXTRA, _MISSED, _MIXED = (np.array(c, np.float32) for c in ((0, 255, 255), (255, 0, 255), (255, 255, 0)))
_BLOCK = 2**21
"""Pixels drawn at once."""
_STRENGTH = np.float32(0.75)  # of an error's colour over the micrograph


def draw_pair(
    scored: PairScores, classes: Sequence[ClassInfo], question: Question, folder: Path, size: int = DEFAULT_SIZE
) -> list[Path]:
    """`draw_errors` of the plane of a pair that has the most wrong pixels, over its micrograph where that is known."""
    pair = scored.pair
    name = f"{pair.name}.z{scored.plane:05d}" if scored.shape[0] > 1 else pair.name
    with open_pair(pair, question) as (labels, truth), ExitStack() as stack:
        image = None if pair.image is None else stack.enter_context(_open(pair.image, question, labels))
        return draw_errors(
            labels,
            truth,
            classes,
            folder,
            name,
            image=image,
            plane=scored.plane,
            size=size,
            left_out=left_out_of(question),
        )


def check_image(pair: Pair, question: Question) -> None:
    """Refuse a micrograph that is not as large as its pair.

    Raises:
        InputError: it is not, or has channels.
    """
    if pair.image is not None:
        with open_pair(pair, question) as (labels, _), _open(pair.image, question, labels) as image:
            _check_size(image, labels)


def _open(path: Path, question: Question, labels: Labels) -> Image:
    image = open_image(
        path,
        axes=question.image_axes,
        series=question.image_series,
        allow_outside=question.allow_outside,
        infinite=True,
    )
    return match_result(image, labels.shape, None if labels.result is None else labels.result.info)


def _check_size(image: Image, labels: Labels) -> None:
    if image.shape[-2:] != labels.shape[1:] or "c" in image.axes or Volume(image).shape[0] not in (1, labels.shape[0]):
        size = " x ".join(map(str, image.shape))
        theirs = " x ".join(map(str, labels.shape))
        raise InputError(f"{image.uri} is {size} ({image.axes}), {labels.path} {theirs} pixels (z, y, x): give its own")


def draw_errors(
    labels: Labels,
    truth: Labels,
    classes: Sequence[ClassInfo],
    folder: Path,
    name: str,
    *,
    image: Image | None = None,
    plane: int = 0,
    size: int = DEFAULT_SIZE,
    left_out: Collection[int] = (),
) -> list[Path]:
    """Draw one plane of a pair; large ones are averaged down, so that small errors become faint but do not vanish.

    Args:
        labels, truth: what to compare, of the same shape.
        classes: all classes; a map is drawn for each but the first.
        folder: where the pictures go, made if missing.
        name: what their names begin with.
        image: the micrograph, (y, x) or (z, y, x) of the same size.
        plane: index along z.
        size: most pixels of a picture along its longer side.
        left_out: pixels of these true classes are shown as correct.

    Returns:
        The files written.

    Raises:
        InputError: the micrograph has another size.
        OutputError: a picture cannot be written.
    """
    _, height, width = labels.shape
    if image is not None:
        _check_size(image, labels)
    factor = -(-max(height, width) // size)
    small = (-(-height // factor), -(-width // factor))
    maps = np.zeros((len(classes) - 1, *small, 3), np.uint8)
    errors = np.zeros((*small, 3), np.uint8)
    low, high = (0.0, 1.0) if image is None else _grey_range(image, plane)
    _, rows, columns = block_extent(labels.shape, labels.chunks, _BLOCK)
    extent = tuple(max(factor, n // factor * factor) for n in (rows, columns))
    for part in boxes((height, width), extent):
        box = Box((plane, *part.start), (plane + 1, *part.stop))
        mine, true = labels.read(box)[0], truth.read(box)[0]
        if left_out:
            skipped = np.isin(true, list(left_out))
            mine, true = (np.where(skipped, 0, classes_).astype(np.uint8) for classes_ in (mine, true))
        grey = _true_greys(true, len(classes)) if image is None else _read_grey(image, box, low, high)
        there = tuple(slice(a // factor, -(-b // factor)) for a, b in zip(part.start, part.stop, strict=True))
        for k in range(1, len(classes)):
            maps[k - 1][there] = _shrink(accuracy_map(mine == k, true == k), factor)
        errors[there] = _shrink(error_overlay(mine, true, grey), factor)
    plain = distinct(_safe(info.name) for info in classes[1:])
    written = {f"{name}.{of_class}.accuracy.png": picture for of_class, picture in zip(plain, maps, strict=True)}
    written[f"{name}.errors.png"] = errors
    paths = [folder / file for file in written]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"pictures cannot be written to {folder}: {why_unwritten(error)}") from error
    reads = {"PRED": labels.path, "TRUTH": truth.path, "--image": image}
    claim(reads, [Write(path, "--pictures", "png") for path in paths])
    for path, picture in zip(paths, written.values(), strict=True):
        with replacing(path) as temporary:
            Pillow.fromarray(picture).save(temporary, "PNG")
    return paths


def accuracy_map(found: Bool, true: Bool) -> UInt8:
    """White where both are, black where neither is, cyan where only `found`, magenta where only `true`: RGB uint8."""
    return np.stack([true, found, found | true], axis=-1).astype(np.uint8) * np.uint8(255)


def error_overlay(labels: UInt8, truth: UInt8, grey: UInt8) -> UInt8:
    """The micrograph with the wrong pixels coloured, RGB uint8."""
    picture: UInt8 = np.repeat(grey[..., None], 3, axis=-1)
    wrong = labels != truth
    for color, where in (
        (_EXTRA, wrong & (truth == 0)),
        (_MISSED, wrong & (labels == 0)),
        (_MIXED, wrong & (truth > 0) & (labels > 0)),
    ):
        under = picture[where].astype(np.float32)
        picture[where] = np.rint(under * (1 - _STRENGTH) + color * _STRENGTH).astype(np.uint8)
    return picture


def _shrink(picture: UInt8, factor: int) -> UInt8:
    """Mean of squares of `factor` x `factor` pixels, those at the far edges smaller where the size does not divide."""
    if factor == 1:
        return picture
    height, width, _ = picture.shape
    down, across = np.arange(0, height, factor), np.arange(0, width, factor)
    total = np.add.reduceat(picture, down, axis=0, dtype=np.uint32)
    total = np.add.reduceat(total, across, axis=1)
    count = np.diff(down, append=height)[:, None] * np.diff(across, append=width)[None]
    mean: UInt8 = np.rint(total / count[..., None]).astype(np.uint8)
    return mean


def _grey_range(image: Image, plane: int) -> tuple[float, float]:
    """What is shown black and white: the 0.5 and 99.5 percentiles of some blocks of the plane."""
    height, width = image.shape[-2:]
    starts = [[int(i * max(0, n - 256) / 3) for i in range(4)] for n in (height, width)]
    blocks = [
        _read_plane(image, Box((plane, y, x), (plane + 1, min(height, y + 256), min(width, x + 256)))).ravel()
        for y in sorted(set(starts[0]))
        for x in sorted(set(starts[1]))
    ]
    seen = np.concatenate(blocks)
    seen = seen[np.isfinite(seen)]
    low, high = np.percentile(seen, (0.5, 99.5)) if seen.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-9))


def _read_grey(image: Image, box: Box, low: float, high: float) -> UInt8:
    values = _read_plane(image, box).astype(np.float32)
    shown = np.nan_to_num(np.clip((values - low) / (high - low), 0, 1))  # what is no number is black
    grey: UInt8 = (shown * 255).astype(np.uint8)
    return grey


def _read_plane(image: Image, box: Box) -> npt.NDArray[np.generic]:
    """The region (z, y, x) of an image with or without z, ``(y, x)``."""
    skip = 3 - len(image.axes)
    return image.read(Box(box.start[skip:], box.stop[skip:])).reshape(box.shape[1:])


def _true_greys(truth: UInt8, classes: int) -> UInt8:
    """Dark to middle grey by class, where there is no micrograph."""
    greys = np.zeros(256, np.uint8)
    greys[:classes] = np.linspace(30, 150, classes)
    return greys[truth]


def _safe(name: str) -> str:
    """A class name as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", name)
