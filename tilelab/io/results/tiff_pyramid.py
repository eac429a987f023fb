"""A pyramid (arrays in a local folder) as tiled OME-TIFF: pages by channel and slice, a SubIFD per level."""

from __future__ import annotations

import html
import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.tiff_log import collect_notes
from tilelab.io.zarr.documents import parse_json
from tilelab.io.zarr.sharded_array import ShardedArray, output_error
from tilelab.machine.cpu import core_count

_TILE = 512
_LABEL = "image-label"
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MOST_PER_CM = 2**31
_UUID = re.compile(r'<OME\b[^>]*\bUUID="([^"]+)"')
_DESCRIPTION = re.compile(r"<Description>(\{.*?\})</Description>", re.DOTALL)
_CLASSIC_LIMIT = 2**32 - 2**26
"""Bytes of pixels that a classic TIFF surely holds, whatever compression makes of them."""


def write_pyramid_tiff(
    levels: tuple[ShardedArray, ...],
    path: Path,
    name: str,
    pixel_size_nm: tuple[float, ...] | None,
    identity: str,
    label: Mapping[str, Any] | None = None,
) -> None:
    """Write the levels of an image as one OME-TIFF: tiles of 512 x 512, deflate, whole numbers as differences.

    Args:
        levels: ``yx``, ``zyx``, ``cyx`` or ``czyx``, finest first, halved in y and x.
        path: of the file.
        name: of the image.
        pixel_size_nm: of level 0 on the spatial axes, or None.
        identity: of the source (`identity_of`), which becomes the file's.
        label: of labels, what there is to say of them; kept as the image's description.

    Raises:
        InputError: a level cannot be read.
        OutputError: the disk is full or the file is unwritable.
    """
    axes = levels[0].axes
    nbytes = sum(int(np.prod(level.shape, dtype=np.int64)) * level.dtype.itemsize for level in levels)
    metadata: dict[str, Any] = {
        "axes": axes.upper(),
        "Name": plain_xml(name),
        "UUID": identity,
    }
    if label is not None:
        metadata["Description"] = json.dumps({_LABEL: dict(label)})
    if pixel_size_nm is not None:
        for axis, size in zip(axes.replace("c", "").upper(), pixel_size_nm, strict=True):
            metadata |= {f"PhysicalSize{axis}": size / 1000, f"PhysicalSize{axis}Unit": "µm"}
    try:
        with tifffile.TiffWriter(path, bigtiff=nbytes > _CLASSIC_LIMIT, ome=True) as tiff:
            for i, level in enumerate(levels):
                first: dict[str, Any] = {"subifds": len(levels) - 1, "metadata": metadata, "software": "tilelab"}
                tiff.write(
                    _tiles(level),
                    shape=level.shape,
                    dtype=level.dtype,
                    tile=(_TILE, _TILE),
                    photometric="minisblack",
                    compression="adobe_deflate",
                    predictor=level.dtype.kind in "iu",  # few readers know the one for float
                    maxworkers=core_count(),
                    buffersize=2**24,
                    **resolution_tags(pixel_size_nm, i),
                    **({"subfiletype": 1} if i else first),
                )
    except OSError as error:
        raise output_error(path, error) from error


def plain_xml(text: str) -> str:
    """`text` with a mark for what no XML holds: control characters, and bytes of a file's name that are no text."""
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def resolution_tags(pixel_size_nm: Sequence[float] | None, level: int) -> dict[str, Any]:
    """TIFF's own resolution of a level, pixels per centimetre; empty where it is not known, or no ratio of 32 bits."""
    per_cm = [] if pixel_size_nm is None else [1e7 / (size * 2**level) for size in pixel_size_nm[-2:]]
    if not per_cm or not all(1 / _MOST_PER_CM <= n <= _MOST_PER_CM for n in per_cm):
        return {}
    return {"resolution": (per_cm[1], per_cm[0]), "resolutionunit": "CENTIMETER"}


def read_ome_xml(path: str | Path) -> str:
    """What a TIFF says of itself; empty where it has no OME-XML.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        with collect_notes(), tifffile.TiffFile(path) as tiff:
            return tiff.ome_metadata or ""
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, struct.error) as error:  # tifffile's own errors are ValueErrors; a few bytes are no header
        raise InputError(f"cannot read {path}: {error}") from error


def read_tiff_identity(path: str | Path) -> str | None:
    """The identity of an OME-TIFF; None of other files."""
    try:
        found = _UUID.search(read_ome_xml(path))
    except InputError:
        return None
    return None if found is None else found[1]


def read_tiff_label(path: str | Path) -> dict[str, Any] | None:
    """What a file of labels that `write_pyramid_tiff` wrote says of them; None of other files."""
    try:
        found = _DESCRIPTION.search(read_ome_xml(path))
        told = None if found is None else parse_json(html.unescape(found[1]).encode())
    except (InputError, ValueError):
        return None
    label = told.get(_LABEL) if isinstance(told, dict) else None
    return label if isinstance(label, dict) else None


def _tiles(level: ShardedArray) -> Iterator[Array]:
    """Every tile in the order of the file, filled up with 0 at the edges."""
    depth, height, width = (1, *(level.shape[1:] if "c" in level.axes else level.shape))[-3:]
    for channel, z, y in product(range(level.channels), range(depth), range(0, height, _TILE)):
        rows = level.read_channel(channel, Box((z, y, 0), (z + 1, min(y + _TILE, height), width)))[0, 0]
        for x in range(0, width, _TILE):
            part = rows[:, x : x + _TILE]
            tile = np.zeros((_TILE, _TILE), level.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile
