"""An image written as OME-Zarr with all levels, in one pass over its pixels and bounded memory.

for every block of slices     as many as one chunk of the source holds
  for every lane              as wide as the memory allows, whole shards
    rows, top to bottom       whole chunks of the source, read one step ahead
      --> level 0 --> level 1 --> ... (the levels whose shards complete together)
the coarse levels after       from the last of those
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise, product
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.storage.place import Place
from tilelab.io.zarr import ome as _ome
from tilelab.io.zarr.documents import parse_json
from tilelab.io.zarr.layout import Layout
from tilelab.io.zarr.levels import Cascade, finish_levels, make_level, push_all
from tilelab.io.zarr.sharded_array import ShardedArray, encode_document, output_error, replace_file
from tilelab.kernels.pyramid import halve_mean, halve_mode, halved
from tilelab.machine.cpu import core_count

Progress = Callable[[int], None]
"""Called with the number of pixels that were written since the last call."""

_MEMORY_BYTES = 256 * 2**20
_READ_BYTES = 64 * 2**20
_SOURCE = "source"
_COMPUTED = 4
"""Regions of an image that is computed, which are computed side by side at most."""


def write_pyramid(
    image: Image,
    root: Place,
    name: str,
    progress: Progress | None = None,
    label: Mapping[str, Any] | None = None,
    identity: str = "",
) -> tuple[ShardedArray, ...]:
    """Write `image` as OME-Zarr 0.5 into the new folder `root`; returns the arrays of its levels, finest first.

    Sharded, zstd, of the image's dtype; levels are 2 x 2 means, rounded half up, or of labels what is most frequent.

    Args:
        image: axes ``yx``, ``zyx``, ``cyx`` or ``czyx``.
        root: folder to write, which must not hold a Zarr yet.
        name: of the image, for viewers.
        progress: told about the finest level.
        label: of labels, what there is to say of them (``image-label``); may be empty.
        identity: of the source (`identity_of`), kept where it is given.

    Raises:
        InputError: the image cannot be read.
        OutputError: the disk is full or the folder is unwritable.
    """
    extent = dict(zip(image.axes, image.shape, strict=True))
    channels = extent.get("c", 1)
    layout = layout_of(image)
    arrays = tuple(_array(image, layout, root, level) for level in range(layout.levels))
    scratch = root / ".writing"
    reduce = halve if label is None else halve_labels
    try:
        scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(root, error) from error
    with ThreadPoolExecutor(core_count(), "tilelab-shards") as pool:
        for box, rows in _units(image, layout, channels):
            cascade = Cascade(arrays[: layout.aligned], layout, box, 1, reduce, scratch)
            for block in _read_rows(image, box, rows):
                push_all([(cascade, block)], pool.map)
                if progress is not None:
                    progress(block.size)
    for finer, coarser in list(pairwise(arrays))[layout.aligned - 1 :]:
        make_level(finer, coarser, layout, reduce, scratch)
    _write_metadata(image, layout, arrays, root, name, scratch, label, identity)
    scratch.remove_tree()
    return arrays


def read_identity(root: Place) -> str | None:
    """The identity of what an OME-Zarr was made of; None where it does not say."""
    try:
        (scales,) = parse_json((root / "zarr.json").read_bytes())["attributes"]["ome"]["multiscales"]
        return str(scales["metadata"][_SOURCE])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def layout_of(image: Image) -> Layout:
    """How `write_pyramid` cuts an image."""
    extent = dict(zip(image.axes, image.shape, strict=True))
    zyx = (extent.get("z", 1), extent["y"], extent["x"])
    return Layout.fit(zyx, _zyx_size(image), bytes_per_pixel=extent.get("c", 1) * image.dtype.itemsize)


def halve(block: Array, z_factor: int) -> Array:
    """Mean of 2x2 (or 2x2x2) pixels, whole numbers rounded half up; ``(n, z, y, x)`` to `halved` shape, same dtype."""
    if block.dtype == np.uint8:
        return halve_mean(block, z_factor)
    whole = block.dtype.kind == "u"
    total = np.zeros(halved(block.shape, z_factor), np.uint32 if whole else np.float32)
    for offsets in product(range(z_factor), range(2), range(2)):
        part = block
        for axis, (offset, step) in enumerate(zip(offsets, (z_factor, 2, 2), strict=True), start=1):
            last = block.shape[axis] - 1  # an odd edge counts twice
            part = part.take(np.minimum(np.arange(0, last + 1, step) + offset, last), axis=axis)
        total += part
    count = 4 * z_factor
    return ((total + count // 2) // count if whole else total / count).astype(block.dtype)


def halve_labels(block: Array, z_factor: int) -> Array:
    """Most frequent of 2x2 (or 2x2x2) labels, ties to the higher; ``(n, z, y, x)`` to `halved` shape, same dtype."""
    if block.dtype.kind == "u":
        return halve_mode(block, z_factor)
    parts = []
    for offsets in product(range(z_factor), range(2), range(2)):
        part = block
        for axis, (offset, step) in enumerate(zip(offsets, (z_factor, 2, 2), strict=True), start=1):
            last = block.shape[axis] - 1  # an odd edge counts twice
            part = part.take(np.minimum(np.arange(0, last + 1, step) + offset, last), axis=axis)
        parts.append(part)
    best, most = parts[0], np.zeros(parts[0].shape, np.uint8)
    for part in parts:
        count = sum((part == other).astype(np.uint8) for other in parts)
        wins = (count > most) | ((count == most) & (part > best))
        best, most = np.where(wins, part, best), np.where(wins, count, most)
    return best.astype(block.dtype, copy=False)


def _array(image: Image, layout: Layout, root: Place, level: int) -> ShardedArray:
    spatial = 3 - ("z" not in image.axes)
    lead = image.shape[:1] if "c" in image.axes else ()
    one = (1,) * len(lead)
    return ShardedArray(
        path=root / str(level),
        shape=lead + layout.level_shape(level)[3 - spatial :],
        dtype=image.dtype,
        chunk=one + layout.chunk[3 - spatial :],
        shard=one + layout.level_shard(level)[3 - spatial :],
        axes=image.axes,
    )


def _units(image: Image, layout: Layout, channels: int) -> Iterator[tuple[Box, int]]:
    """Regions (z, y, x) that one pass from top to bottom takes, and how many rows at a time."""
    depth, height, width = layout.shape
    grain_z, grain, grain_x = layout.grain
    chunk = dict(zip(image.axes, image.chunks, strict=True))
    # A unit holds a row of shards compressed (or not at all, if nothing compresses) and a few rows of chunks.
    column = channels * image.dtype.itemsize * (grain * 4 // 3 + 4 * layout.chunk[1])
    planes = min(chunk.get("z", 1), depth, _MEMORY_BYTES // (column * min(width, grain_x)))
    planes = max(1, planes // grain_z) * grain_z
    lane = max(1, _MEMORY_BYTES // (column * planes) // grain_x) * grain_x
    rows = -(-layout.chunk[1] // chunk["y"]) * chunk["y"]
    if rows * min(lane, width) * planes * channels * image.dtype.itemsize > _READ_BYTES:
        rows = layout.chunk[1]  # large pieces stay decoded while they are read in part
    for z, x in product(range(0, depth, planes), range(0, width, lane)):
        yield Box((z, 0, x), (min(depth, z + planes), height, min(width, x + lane))), rows


def _read_rows(image: Image, box: Box, rows: int) -> Iterator[Array]:
    """The rows of `box` (z, y, x), ``(c, z, rows, x)`` at a time; the next ones are read, or computed, meanwhile."""
    phase = image.chunk_phase[image.axes.index("y")] % rows if image.chunk_phase else 0

    def read(y: int) -> Array:
        start, stop = list(box.start), list(box.stop)
        start[1], stop[1] = y, min(box.stop[1], ((y + phase) // rows + 1) * rows - phase)
        region = dict(zip("zyx", zip(start, stop, strict=True), strict=True))
        count = image.shape[0] if "c" in image.axes else 1
        ends = zip(*(region.get(axis, (0, count)) for axis in image.axes), strict=True)
        pixels = image.read(Box(*ends))
        return pixels.reshape(count, stop[0] - start[0], stop[1] - start[1], stop[2] - start[2])

    ahead = min(_COMPUTED, core_count()) if image.computed else 1
    with ThreadPoolExecutor(ahead, "tilelab-read") as reader:
        positions = iter([box.start[1], *range(rows - phase, box.stop[1], rows)])
        coming = [reader.submit(read, y) for y in islice(positions, ahead)]
        try:
            while coming:
                block = coming.pop(0).result()
                coming += [reader.submit(read, y) for y in islice(positions, 1)]
                yield block
        finally:
            for future in coming:
                future.cancel()


def _write_metadata(
    image: Image,
    layout: Layout,
    arrays: tuple[ShardedArray, ...],
    root: Place,
    name: str,
    scratch: Place,
    label: Mapping[str, Any] | None,
    identity: str,
) -> None:
    """The ``zarr.json`` of every level, then that of the image."""
    finish_levels(arrays, scratch)
    high = float(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1.0
    shown = [_ome.channel(f"channel {i}", "#ffffff", 0.0, high) for i in range(arrays[0].channels)]
    scales = _ome.multiscale(
        layout,
        image.axes,
        image.pixel_size_nm,
        name=name,
        method="mean" if label is None else "mode",
        levels=len(arrays),
        origin_px=image.origin_px,
    )
    scales["metadata"] = {"method": "tilelab", **({_SOURCE: identity} if identity else {})}
    ome = _ome.image(scales, shown)
    if label is not None:
        ome = {"version": _ome.VERSION, "multiscales": [scales], "image-label": {"version": _ome.VERSION, **label}}
    replace_file(root / "zarr.json", [encode_document(_ome.group({"ome": ome}))], scratch)


def _zyx_size(image: Image) -> tuple[float, ...] | None:
    size = image.pixel_size_nm
    return size if size is not None and len(size) == 3 else None
