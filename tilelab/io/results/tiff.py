"""A finished result as pyramidal OME-TIFF, for QuPath, Fiji and everything else that reads Bio-Formats.

    page per plane        classes (values are class indices), then one per probability channel if wanted;
                          or, of a result that has neither, the channels of its map, float32
      SubIFD per level    its pyramid, halved in y and x
    tiles 512 x 512, deflate; BigTIFF where 4 GB may not do

Labels alone have the colours of their classes as a colour table: Fiji, QuPath's openslide and every picture viewer show
them in colours, and what reads numbers reads the indices.  Channels beside probabilities cannot have one.  Names and
colours of the classes are in the OME-XML, as a map annotation.

Rows are streamed from the levels of the OME-Zarr, a row of tiles at a time.
"""

from __future__ import annotations

import html
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from tilelab.arrays import Array
from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.results.image_pyramid import halve
from tilelab.io.results.result import ResultInfo, encode_info, parse_info, read_info
from tilelab.io.results.tiff_pyramid import plain_xml, read_ome_xml, resolution_tags
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.zarr.layout import Layout
from tilelab.io.zarr.sharded_array import ShardedArray, output_error
from tilelab.kernels.pyramid import halve_mean, halve_mode
from tilelab.machine.disk import replacing

_TILE = 512
_CLASSIC_LIMIT = 2**32 - 2**26
"""Pixels of one byte that a classic TIFF surely holds, whatever the compression makes of them."""
_ROWS_AT_ONCE = 2048
_NAMESPACE = "tilelab/result"
_COMMENT = re.compile(rf'<CommentAnnotation [^>]*Namespace="{_NAMESPACE}"[^>]*>.*?<Value>(.*?)</Value>', re.DOTALL)


def write_tiff(result: Address, out: str | Path, *, probabilities: bool = False, threads: int = 1) -> Path:
    """Write the labels of a result, and its probabilities if wanted, as one pyramidal OME-TIFF.

    Args:
        result: the OME-Zarr folder; one that is unfinished reads as 0 where nothing was written.
        out: the file, replaced if it exists; it appears whole or not at all.
        probabilities: add a channel per class probability, ``round(255 p)``.
        threads: that compress.

    Returns:
        `out`.

    Raises:
        InputError: `result` is not a result or is corrupt.
        OutputError: the result has nothing to write, or the disk is full or unwritable.
    """
    root, path = as_place(result), Path(out)
    info = read_info(root)
    planes = _planes(info, root, probabilities)
    layout = info.layout
    size = planes[0].levels[0].dtype.itemsize
    pixels = (
        size * len(planes) * layout.shape[0] * sum(y * x for _, y, x in map(layout.level_shape, range(layout.levels)))
    )
    options: dict[str, Any] = {
        "dtype": planes[0].levels[0].dtype,
        "tile": (_TILE, _TILE),
        "compression": "adobe_deflate",
        "maxworkers": threads,
        "buffersize": 2**24,
        **_colours(info, planes),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            replacing(path) as unfinished,
            tifffile.TiffWriter(unfinished, bigtiff=pixels > _CLASSIC_LIMIT, ome=True) as tiff,
        ):
            for level in range(layout.levels):
                top = {"subfiletype": 1} if level else {"subifds": layout.levels - 1, **_description(info, planes)}
                shape = _page_shape(info, planes, level)
                tiff.write(
                    _tiles(planes, layout, level),
                    shape=shape,
                    **resolution_tags(info.pixel_size_nm, level),
                    **options,
                    **top,
                )
    except OSError as error:
        raise output_error(path, error) from error
    return path


def read_tiff_info(path: str | Path) -> ResultInfo:
    """What the result said of itself that `write_tiff` made a file of.

    Raises:
        InputError: the file was not made by `write_tiff`.
    """
    found = _COMMENT.search(read_ome_xml(path))
    if found is None:
        raise InputError(f"{path} was not made by tilelab")
    return parse_info(html.unescape(found[1]), path)


@dataclass(frozen=True)
class _Plane:
    """What becomes one channel of the file: a channel of an array, and how it is halved."""

    name: str
    color: str
    levels: tuple[ShardedArray, ...]
    channel: int
    halve: Callable[[Any, int], Any]


def _planes(info: ResultInfo, root: Place, probabilities: bool) -> list[_Plane]:
    """The channels of the file, labels first."""
    labels, chances = info.arrays(root, "labels"), info.arrays(root, "probabilities")
    planes = [_Plane("classes", "#ffffff", labels, 0, halve_mode)] if labels else []
    if probabilities or not labels:
        for i, index in enumerate(info.probabilities):
            planes.append(_Plane(info.classes[index].name, info.classes[index].color, chances, i, halve_mean))
    if not planes and len(info.kept_maps) == 1:
        (known,) = info.kept_maps
        numbers = info.arrays(root, f"maps/{known.name}")
        planes = [_Plane(f"{known.output} {i}", "#ffffff", numbers, i, halve) for i in range(known.channels)]
    if not planes:
        raise OutputError(f"{root} has neither labels nor probabilities, nor a single map, to write as TIFF")
    return planes


def _page_shape(info: ResultInfo, planes: list[_Plane], level: int) -> tuple[int, ...]:
    """Extent of a level in the file: ``([c,] [z,] y, x)``; z is never halved there, as OME-TIFF demands."""
    _, y, x = info.layout.level_shape(level)
    lead = (len(planes),) if len(planes) > 1 else ()
    return (*lead, *info.layout.shape[3 - len(info.axes) : 1], y, x)


def _tiles(planes: list[_Plane], layout: Layout, level: int) -> Iterator[Array]:
    """Every tile of a level, page by page in raster order, filled up with 0 at the edges."""
    depth, (_, height, width) = layout.shape[0], layout.level_shape(level)
    for plane in planes:
        for z in range(depth):
            for y in range(0, height, _TILE):
                rows = _rows(plane, layout, level, z, y, min(y + _TILE, height))
                for x in range(0, width, _TILE):
                    part = rows[:, x : x + _TILE]
                    tile = np.zeros((_TILE, _TILE), rows.dtype)
                    tile[: part.shape[0], : part.shape[1]] = part
                    yield tile


def _rows(plane: _Plane, layout: Layout, level: int, z: int, start: int, stop: int) -> Array:
    """Rows ``start:stop`` of slice `z` at a level that is halved in y and x alone, ``(rows, width)``."""
    if (layout.z_factor == 1 or level == 0) and level < len(plane.levels):
        box = Box((z, start, 0), (z + 1, stop, layout.level_shape(level)[2]))
        rows: Array = plane.levels[level].read_channel(plane.channel, box)[0, 0]
        return rows
    _, height, width = layout.shape
    step = max(1, _ROWS_AT_ONCE >> level)
    parts = []
    for y in range(start, stop, step):
        box = Box((z, y << level, 0), (z + 1, min(height, min(stop, y + step) << level), width))
        block = plane.levels[0].read_channel(plane.channel, box)
        for _ in range(level):
            block = plane.halve(block, 1)
        parts.append(block[0, 0])
    return np.concatenate(parts)


def _colours(info: ResultInfo, planes: list[_Plane]) -> dict[str, Any]:
    """What the samples mean: of labels alone, indices into the colours of the classes."""
    if not info.labels or len(planes) > 1:
        return {"photometric": "minisblack"}
    table = np.zeros((3, 256), np.uint16)
    for index, known in enumerate(info.classes):
        table[:, index] = np.frombuffer(bytes.fromhex(known.color[1:]), np.uint8).astype(np.uint16) * 257
    return {"photometric": "palette", "colormap": table}


def _told(info: ResultInfo, names: list[str]) -> str:
    """What identifies a file: as it always was, so that a result without maps keeps its bytes."""
    return repr((info, names)).replace(", maps=UNSET", "")


def _description(info: ResultInfo, planes: list[_Plane]) -> dict[str, Any]:
    """What the OME-XML says."""
    axes = ("C" if len(planes) > 1 else "") + info.axes.upper()
    names = [plain_xml(plane.name) for plane in planes]
    colors = [int.from_bytes([*bytes.fromhex(plane.color[1:]), 255], "big", signed=True) for plane in planes]
    metadata: dict[str, Any] = {
        # tifffile would take a random one, and the same result would have other bytes each time
        "UUID": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, _told(info, [plane.name for plane in planes]))}",
        "axes": axes,
        "Name": plain_xml(info.name),
        "Channel": {"Name": names, "Color": colors} if len(planes) > 1 else {"Name": names[0]},
        "MapAnnotation": {
            "Namespace": "tilelab/classes",
            **{str(i): plain_xml(f"{known.name} {known.color}") for i, known in enumerate(info.classes)},
        },
        "CommentAnnotation": {"Namespace": _NAMESPACE, "Value": encode_info(info).decode()},
    }
    if info.pixel_size_nm is not None:
        for axis, size in zip(info.axes.upper(), info.pixel_size_nm, strict=True):
            metadata[f"PhysicalSize{axis}"] = size / 1000
            metadata[f"PhysicalSize{axis}Unit"] = "µm"
    return {"metadata": metadata, "software": "tilelab"}
