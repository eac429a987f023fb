"""The labels of a finished result as a neuroglancer precomputed volume, which neuroglancer shows as a segmentation.

    OUT.precomputed/info                    uint8, type segmentation, a scale per level of the OME-Zarr
    OUT.precomputed/0, 1, ...               the scales, sharded (see `_precomputed_shards`), raw chunks, gzip
    OUT.precomputed/segment_properties/     names of the classes
    OUT.precomputed/tilelab.json            what the result says of itself

Chunks are those of the OME-Zarr; one of background alone is absent, which reads as 0.  A scale is exact in place as
long as the first pixel lies at a multiple of its factor; a region that begins elsewhere is at most a coarse pixel off
there, for ``voxel_offset`` knows whole pixels only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.results.precomputed_shards import Sharding, compress, encode_minishard_index
from tilelab.io.results.result import ResultInfo, encode_info, parse_info, read_info
from tilelab.io.storage.place import Address, as_place
from tilelab.io.zarr.layout import Extent, Layout
from tilelab.io.zarr.sharded_array import ShardedArray, output_error
from tilelab.machine.disk import (
    discard_folder,
    flush_tree,
    is_ours,
    make_ours,
    remove_entry,
    remove_ours,
    replace_folder,
)

_DESCRIPTION = "tilelab.json"
_PROPERTIES = "segment_properties"


def write_precomputed(result: Address, out: str | Path) -> Path:
    """Write the labels of a result as a precomputed volume.

    Args:
        result: the OME-Zarr folder.
        out: the folder ``NAME.precomputed``; one that this function wrote is replaced.  It appears whole or not at all.

    Returns:
        `out`.

    Raises:
        InputError: `result` is not a result or is corrupt.
        OutputError: the result has no labels, `out` is something else, or the disk is full or unwritable.
    """
    root, path = as_place(result), Path(out)
    info = read_info(root)
    if not info.labels:
        raise OutputError(f"{root} has no labels, which is what a precomputed volume is made of")
    unfinished = path.with_name(f"{path.name}.partial")
    try:
        if path.exists() and not (path / _DESCRIPTION).is_file():
            raise OutputError(f"{path} exists and was not made by tilelab: choose another output")
        if is_ours(unfinished):  # what a killed process left
            remove_ours(unfinished)
        make_ours(unfinished)
        volume = unfinished / "volume"
        volume.mkdir()
        _write_documents(info, volume)
        for level, array in enumerate(info.arrays(root, "labels")):
            _write_scale(array, info.layout.chunk, volume / str(level))
        flush_tree(volume)
        replace_folder(volume, path)
        discard_folder(unfinished, path)
    except OSError as error:
        raise output_error(path, error) from error
    return path


def is_precomputed(path: Path) -> bool:
    """Whether a folder is a precomputed volume that was written here."""
    return (path / _DESCRIPTION).is_file()


def read_precomputed_info(path: str | Path) -> ResultInfo:
    """What the result said of itself that `write_precomputed` made a volume of.

    Raises:
        InputError: it was not made by `write_precomputed`.
    """
    description = Path(path) / _DESCRIPTION
    try:
        return parse_info(description.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} was not made by tilelab") from error


def _write_documents(info: ResultInfo, folder: Path) -> None:
    named: dict[str, Any] = {_PROPERTIES: _PROPERTIES}
    _write_info(info.layout, info.layout.levels, "uint8", info.pixel_size_nm, info.origin_px, folder, named)
    (folder / _PROPERTIES).mkdir()
    names = {str(i): known.name for i, known in enumerate(info.classes) if i}
    _write_json(
        folder / _PROPERTIES / "info",
        {
            "@type": "neuroglancer_segment_properties",
            "inline": {
                "ids": list(names),
                "properties": [{"id": "label", "type": "label", "values": list(names.values())}],
            },
        },
    )
    (folder / _DESCRIPTION).write_bytes(encode_info(info))


def write_precomputed_levels(
    levels: Sequence[ShardedArray],
    layout: Layout,
    folder: Path,
    *,
    pixel_size_nm: tuple[float, ...] | None = None,
    origin_px: tuple[float, ...] = (),
) -> None:
    """Write labels of any whole numbers as a precomputed volume into a new folder; those of int64 as uint64.

    Args:
        levels: the labels, finest first.
        layout: of the levels.
        folder: must not be there.
        pixel_size_nm, origin_px: of the finest, per axis.
    """
    folder.mkdir()
    stored = levels[0].dtype.name
    stored = "uint64" if stored == "int64" else stored  # nobody reads signed ones of 64 bits
    _write_info(layout, len(levels), stored, pixel_size_nm, origin_px, folder, {})
    for level, array in enumerate(levels):
        _write_scale(array, layout.chunk, folder / str(level))
    (folder / _DESCRIPTION).write_text("{}")


def _write_info(
    layout: Layout,
    levels: int,
    dtype: str,
    pixel_size_nm: tuple[float, ...] | None,
    origin_px: tuple[float, ...],
    folder: Path,
    more: dict[str, Any],
) -> None:
    size = _three(pixel_size_nm, 0.0)
    size = size if size[0] else (size[1], *size[1:])  # a plane is as thick as its pixels are wide
    origin = _three(origin_px, 0.0) if origin_px else (0.0, 0.0, 0.0)
    scales = []
    for level in range(levels):
        factor = layout.scale(level)
        scales.append(
            {
                "key": str(level),
                "size": list(layout.level_shape(level)[::-1]),
                "resolution": [s * f for s, f in zip(size[::-1], factor[::-1], strict=True)],
                "voxel_offset": [int(o // f) for o, f in zip(origin[::-1], factor[::-1], strict=True)],
                "chunk_sizes": [list(layout.chunk[::-1])],
                "encoding": "raw",
                "sharding": Sharding(_grid(layout.level_shape(level), layout.chunk)).document(),
            }
        )
    _write_json(
        folder / "info",
        {
            "@type": "neuroglancer_multiscale_volume",
            "type": "segmentation",
            "data_type": dtype,
            "num_channels": 1,
            "scales": scales,
            **more,
        },
    )


def _three(values: tuple[float, ...] | None, missing: float) -> tuple[float, float, float]:
    """`values` on (z, y, x); 1 where the pixel size is unknown, `missing` on an axis that the image lacks."""
    z, y, x = (missing, *(values or (1.0, 1.0, 1.0)))[-3:]
    return z, y, x


def _grid(shape: Extent, chunk: Extent) -> tuple[int, int, int]:
    """Chunks on (x, y, z)."""
    z, y, x = (-(-n // c) for n, c in zip(shape, chunk, strict=True))
    return x, y, z


def _write_scale(array: ShardedArray, chunk: Extent, folder: Path) -> None:
    """Every shard of one scale that is not empty."""
    sharding = Sharding(_grid(array.shape_zyx, chunk))
    folder.mkdir()
    for shard in range(1 << sharding.shard_bits):
        path = folder / sharding.shard_name(shard)
        with path.open("xb") as file:
            empty = not _write_shard(array, chunk, sharding, shard, file)
        if empty:
            remove_entry(path)


def _write_shard(array: ShardedArray, chunk: Extent, sharding: Sharding, shard: int, file: BinaryIO) -> bool:
    """One shard; False when it holds nothing.  Memory: a minishard of pixels, and indices."""
    index = np.zeros((1 << sharding.minishard_bits, 2), "<u8")
    file.write(index.tobytes())
    indices: list[tuple[int, bytes]] = []
    position = 0
    for minishard in range(len(index)):
        numbers: list[int] = []
        begins: list[int] = []
        sizes: list[int] = []
        for number, encoded in _encoded_chunks(array, chunk, sharding, shard, minishard):
            numbers.append(number)
            begins.append(position)
            sizes.append(len(encoded))
            file.write(encoded)
            position += len(encoded)
        if numbers:
            indices.append((minishard, encode_minishard_index(numbers, begins, sizes)))
    for minishard, encoded in indices:
        file.write(encoded)
        index[minishard] = position, position + len(encoded)
        position += len(encoded)
    file.seek(0)
    file.write(index.tobytes())
    return bool(indices)


def _encoded_chunks(
    array: ShardedArray, chunk: Extent, sharding: Sharding, shard: int, minishard: int
) -> Iterator[tuple[int, bytes]]:
    """Number and compressed pixels of each chunk of a minishard that is not all background."""
    cells = sharding.minishard_box(shard, minishard)
    if not cells.size:
        return
    shape = array.shape_zyx
    start = tuple(i * c for i, c in zip(cells.start[::-1], chunk, strict=True))
    stop = tuple(min(n, i * c) for n, i, c in zip(shape, cells.stop[::-1], chunk, strict=True))
    block: Array = array.read_channel(0, Box(start, stop))[0]
    if not block.any():
        return
    if block.dtype == np.int64 and block.min() < 0:
        raise OutputError(
            f"a precomputed volume holds no labels of 64 bits below 0, as {block.min()}: convert to .ome.zarr"
        )
    for number, at in sharding.numbers(shard, minishard):
        first = [i * c - s for i, c, s in zip(at[::-1], chunk, start, strict=True)]
        part = block[tuple(slice(f, f + c) for f, c in zip(first, chunk, strict=True))]  # cut off at the edges
        if part.any():
            yield number, compress(part.tobytes())


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1))
