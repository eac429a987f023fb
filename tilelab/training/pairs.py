"""Images with masks, plane by plane, from anything that `open_image` and `open_labels` read.

Small planes are kept in memory, since every step reads from them; large ones are read where they lie (see `shelf`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from tilelab.arrays import Array, Int64, UInt8
from tilelab.errors import InputError
from tilelab.evaluation.census import Census, check_map, judge, report_unlisted
from tilelab.evaluation.label_map import LabelMap
from tilelab.evaluation.labels import Labels, open_labels
from tilelab.evaluation.pairs import list_files, match_names, name_of
from tilelab.geometry import Box
from tilelab.io.images.bar import may_be_bar
from tilelab.io.images.formats import find_reader
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Neighbourhood, Volume
from tilelab.io.storage.member import split_member
from tilelab.spec import Normalization
from tilelab.text import size_text
from tilelab.training.inspection import Inspection, check_finite
from tilelab.training.sections import Data
from tilelab.training.shelf import Lasting, LastingImage, kept_bytes, open_lasting

BLOCK = 64
"""Side of the blocks in which the pixels of each class are counted."""
_KEPT_PIXELS = 2**26
_ROUNDING = 1e-12  # of a mean of squares: what is left of the variance of a constant


class Mask(Protocol):
    """Class indices of a plane, or `IGNORE`, read region by region."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def read(self, box: Box) -> UInt8:
        """A region ``(y, x)``."""
        ...


class ArrayMask:
    """A mask in memory, uint8 ``(y, x)``."""

    def __init__(self, array: UInt8) -> None:
        self.array = array
        self.shape: tuple[int, int] = (array.shape[0], array.shape[1])

    def read(self, box: Box) -> UInt8:
        """A region ``(y, x)``."""
        return self.array[box.slices]


class StoredMask:
    """One plane of labels on disk, of rows and columns `shape`."""

    def __init__(self, labels: Lasting[Labels], z: int, shape: tuple[int, int]) -> None:
        self.labels = labels
        self.z = z
        self.shape = shape

    def read(self, box: Box) -> UInt8:
        """A region ``(y, x)``."""
        with self.labels.use() as labels:
            region: UInt8 = labels.read(Box((self.z, *box.start), (self.z + 1, *box.stop)))[0]
        return region


class Plane(Image):
    """One plane of an image, axes ``yx``, or ``cyx`` where it has several channels or neighbours."""

    def __init__(self, image: Image, z: int = 0, neighbours: int = 0) -> None:
        self.volume = Neighbourhood(Volume(image), neighbours) if neighbours else Volume(image)
        self.z = z
        self.neighbours = neighbours or image.neighbours
        many = self.volume.channels > 1
        self.stack = image.stack if self.volume.shape[0] == 1 else image
        self.uri = f"{image.uri}[{z}]" if self.volume.shape[0] > 1 else image.uri
        self.axes = "cyx" if many else "yx"
        self.shape = (*((self.volume.channels,) if many else ()), *self.volume.shape[1:])
        self.chunks = (*((self.volume.channels,) if many else ()), *self.volume.chunks[1:])
        self.dtype = image.dtype
        size = self.volume.pixel_size_nm
        self.pixel_size_nm = None if size is None else size[1:]
        self.warnings, self.assumptions = image.warnings, image.assumptions

    def read(self, box: Box) -> Array:
        """Decode one region."""
        at, to = box.start[-2:], box.stop[-2:]
        region = self.volume.read(Box((self.z, *at), (self.z + 1, *to)))[:, 0]
        return region[box.start[0] : box.stop[0]] if self.axes == "cyx" else region[0]

    def fingerprint(self) -> dict[str, str]:
        """That of the image, and which plane."""
        return self.volume.image.fingerprint() | {"z": str(self.z)}


@dataclass(frozen=True)
class MaskedPlane:
    """An image plane and its mask."""

    name: str
    image: Image
    mask: Mask

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.mask.shape


def make_pair(name: str, image: Array, mask: UInt8) -> MaskedPlane:
    """A pair of arrays, ``(y, x)`` or ``(c, y, x)`` and uint8 ``(y, x)``."""
    return MaskedPlane(name, Plane(open_image(image, axes="cyx"[-image.ndim :])), ArrayMask(mask))


def open_pairs(data: Data, root: Path, classes: int, neighbours: int = 0) -> list[MaskedPlane]:
    """The pairs of `open_set`, where nothing else of it is needed."""
    return open_set(data, root, [f"class {k}" for k in range(classes)], neighbours)[0]


def open_set(
    data: Data, root: Path, names: Sequence[str], neighbours: int = 0, what: str = "train"
) -> tuple[list[MaskedPlane], Inspection]:
    """Find and check the pairs of one set, in the order of their names, stacks plane by plane; every mask is read.

    Args:
        data: where they are.
        root: the folder that its paths are relative to.
        names: of the classes.
        neighbours: slices on either side that are channels of each plane.
        what: name of the set.

    Returns:
        The pairs, and what was seen of them.

    Raises:
        InputError: a folder is missing or empty, a file has no partner, sizes differ, a mask holds a value that is no
            class, an image has pixels that are not finite, or channels where neighbours are to be; files are named.
    """
    mapping = LabelMap.parse(data.labels) if data.labels else None
    check_map(mapping, names, f"{what}.labels")
    seen, stored = Inspection(what, names), Census(f"{what} masks")
    pairs: list[MaskedPlane] = []
    try:
        matched = _match(root / data.images, root / data.masks)
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror or error}") from error
    room = _KEPT_PIXELS
    for name, image_path, mask_path in matched:
        image, lasting = _open_pair(image_path, mask_path, data, mapping)
        with lasting.use() as labels:
            start, stop = _check_pair(image, labels, data, neighbours, (image_path, mask_path))
            single, census = stop - start == 1, Census(f"mask {mask_path}")
            stop = min(stop, start + data.limit - len(pairs)) if data.limit else stop
            check_finite(str(image_path), Volume(image), start, stop)
            for z in range(start, stop):
                plane: Image = Plane(image, z, neighbours)
                plane.assumptions += labels.assumptions
                mask: Mask = StoredMask(lasting, z, labels.shape[1:])
                room -= mask.shape[0] * mask.shape[1] * (2 * neighbours + 1)
                if room >= 0:
                    mask = ArrayMask(labels.read(_rows(labels, z, 0, mask.shape[0]), census)[0])
                    seen.count(mask.array)
                    plane = load_plane(plane)
                    seen.see(plane[...])
                else:
                    _count_in_place(labels, z, census, seen)
                    seen.see(plane.read(_top(plane)))
                pairs.append(MaskedPlane(name if single else f"{name}[{z}]", plane, mask))
        judge(census, mapping, names)
        stored.merge(census)
        if data.limit and len(pairs) == data.limit:
            break
    seen.planes = len(pairs)
    if (line := report_unlisted(stored, mapping, names)) is not None:
        seen.notes.append(line)
    return pairs, seen


def _open_pair(
    image_path: Path, mask_path: Path, data: Data, mapping: LabelMap | None
) -> tuple[LastingImage, Lasting[Labels]]:
    """An image and its labels, of as many rows: an info bar that one of them has is left out."""

    def open_mask(rows: int | None = None) -> Labels:
        labels = open_labels(mask_path, mapping, data.mask_axes, series=data.mask_series)
        if rows is not None and rows < labels.shape[1]:
            labels.keep_rows(rows)
        return labels

    labels = open_mask()
    image = open_lasting(image_path, labels.shape[1], axes=data.axes, series=data.series)
    rows = image.shape[-2]
    if may_be_bar(labels.shape[1] - rows, labels.shape[1]):
        labels.keep_rows(rows)
    weight = kept_bytes(labels.image)
    return image, Lasting(labels, partial(open_mask, labels.shape[1]), weight)


def _check_pair(image: Image, labels: Labels, data: Data, neighbours: int, paths: tuple[Path, Path]) -> tuple[int, int]:
    """The planes of a pair that are asked for, the first and the one after the last; refuses what does not fit."""
    volume = Volume(image)
    if volume.shape != labels.shape:
        sizes = [size_text(shape) for shape in (volume.shape, labels.shape)]
        raise InputError(f"image {paths[0]} has {sizes[0]} pixels (z, y, x), its mask {paths[1]} {sizes[1]}")
    if neighbours and volume.channels > 1:
        raise InputError(f"{paths[0]} has {volume.channels} channels, network.neighbours needs a grey stack")
    start, stop = data.planes or (0, volume.shape[0])
    if not 0 <= start < stop <= volume.shape[0]:
        raise InputError(f"planes {start} to {stop} were asked for, {paths[0]} has {volume.shape[0]}")
    return start, stop


def _count_in_place(labels: Labels, z: int, census: Census, seen: Inspection) -> None:
    """See a plane of a mask that is too large to keep."""
    rows = max(BLOCK, min(labels.chunks[1], _KEPT_PIXELS // labels.shape[2]))
    for top in range(0, labels.shape[1], rows):
        seen.count(labels.read(_rows(labels, z, top, min(labels.shape[1], top + rows)), census)[0])


def _rows(labels: Labels, z: int, top: int, bottom: int) -> Box:
    return Box((z, top, 0), (z + 1, bottom, labels.shape[2]))


def _top(plane: Image) -> Box:
    """The first rows of a plane, of every channel."""
    stop = list(plane.shape)
    stop[-2] = min(stop[-2], BLOCK)
    return Box((0,) * len(stop), tuple(stop))


def load_plane(plane: Image) -> Image:
    """`plane` in memory."""
    kept = Plane(open_image(plane.read(Box.whole(plane.shape)), axes=plane.axes, pixel_size_nm=plane.pixel_size_nm))
    kept.uri, kept.neighbours, kept.assumptions = plane.uri, plane.neighbours, plane.assumptions
    kept.stack = plane.stack
    return kept


def _match(images: Path, masks: Path) -> list[tuple[str, Path, Path]]:
    """Name, image and mask of each pair: two single files, or the namesakes of two folders."""
    single = [_is_single(path) for path in (images, masks)]
    if all(single):
        return [(name_of(images), images, masks)]
    if any(single):
        raise InputError(f"{images} and {masks} must both be folders, or both be single images")
    here, there = list_files(images), list_files(masks)
    if images == masks:  # one folder for both: those with a partner of a longer name are the images
        longer = {n for n in here for m in here if n != m and n.startswith(m) and match_names({m}, {n: here[n]})}
        here = {n: p for n, p in here.items() if n not in longer}
        there = {n: p for n, p in there.items() if n not in here}
    found = match_names(set(here), there)
    alone = sorted(set(here) - set(found))
    if alone:
        raise InputError(f"{here[alone[0]]} has no mask of the same name in {masks}")
    left = sorted(set(there.values()) - set(found.values()))
    if left:
        raise InputError(f"{left[0]} has no image of the same name in {images}")
    return [(name, here[name], found[name]) for name in sorted(found)]


def _is_single(path: Path) -> bool:
    file, member = split_member(str(path))
    if not Path(file).exists():
        raise InputError(f"no such folder or file: {file}")
    return bool(member) or path.is_file() or find_reader(file) is not None


def bands(mask: Mask) -> Iterator[UInt8]:
    """The mask from top to bottom, `BLOCK` rows at a time."""
    height, width = mask.shape
    for top in range(0, height, BLOCK):
        yield mask.read(Box((top, 0), (min(height, top + BLOCK), width)))


def count_blocks(mask: Mask, classes: int) -> Int64:
    """Pixels per class in blocks of 64 x 64, int64 ``(classes, rows, columns)``; reads a row of blocks at a time."""
    edges = np.arange(0, mask.shape[1], BLOCK)
    rows = [[np.add.reduceat((band == label).sum(axis=0), edges) for label in range(classes)] for band in bands(mask)]
    return np.array(rows, dtype=np.int64).transpose(1, 0, 2)


def check_images(images: Iterable[Image], normalization: Normalization, channels: int) -> None:
    """Refuse images that the network could not take, in the recipe's words.

    Raises:
        InputError: one has other channels, or a type for which the normalisation is not made; it is named.
    """
    for image in images:
        volume = Volume(image)
        if volume.channels not in (1, channels):
            raise InputError(
                f"{image.uri} has {volume.channels} channels, the network {channels}: set network.channels = "
                f"{volume.channels}, or save one of them alone"
            )
        if normalization.kind == "constants" and str(volume.dtype) != normalization.dtype:
            raise InputError(
                f"{image.uri} is {volume.dtype}, the normalization is for {normalization.dtype}: convert the image, or "
                "set normalization.kind = 'mean-std'"
            )


def measure_normalization(images: Iterable[Image]) -> Normalization:
    """Mean and standard deviation over all pixels of all planes, as constants; per channel where there are several.

    Raises:
        InputError: the images have different numbers of channels or types; two are named.
    """
    count, total, square = 0, np.zeros(1), np.zeros(1)
    first: Plane | None = None
    for image in images:
        plane = Plane(image)
        first = first or plane
        for what, here, there in (
            ("channels", plane.volume.channels, first.volume.channels),
            ("type", plane.dtype, first.dtype),
        ):
            if here != there:
                raise InputError(
                    f"{plane.uri} has {what} {here}, {first.uri} {there}: convert them, or set normalization.kind = "
                    "'mean-std' where only the type differs"
                )
        height, width = plane.shape[-2:]
        for top in range(0, height, 512):
            box = Box((0, top, 0), (1, min(height, top + 512), width))
            values = plane.volume.read(box).reshape(plane.volume.channels, -1).astype(np.float64)
            count += values.shape[1]
            total = total + values.sum(axis=1)
            square = square + np.square(values).sum(axis=1)
    if first is None:
        raise InputError("there is no image to measure")
    mean = total / count
    variance = square / count - mean**2
    deviation = np.where(variance > _ROUNDING * square / count, np.sqrt(np.maximum(variance, 0)), 1e-6)
    # four digits, or of volts and other small numbers three that say something
    digits = [4 if d >= 1e-3 else 2 - math.floor(math.log10(d)) for d in deviation]
    return Normalization(
        mean=tuple(round(float(m), n) for m, n in zip(mean, digits, strict=True)),
        std=tuple(round(float(d), n) for d, n in zip(deviation, digits, strict=True)),
        dtype=str(first.dtype),
    )
