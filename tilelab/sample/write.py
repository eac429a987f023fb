"""Writes drawn micrographs to files in bounded memory."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tilelab.arrays import UInt8
from tilelab.geometry import Box
from tilelab.sample.superalloy import draw_superalloy


def write_superalloy(image: Path, truth: Path, shape: tuple[int, int], seed: int = 0) -> None:
    """Draw a micrograph straight into two tiled TIFF files, in memory for a few rows of tiles.

    Args:
        image: file for the micrograph, uint8.
        truth: file for its labels, uint8, indices into `CLASSES`.
        shape: rows and columns.
        seed: as in `draw_superalloy`.
    """
    packed: dict[int, bytes] = {}  # the truth's strips: drawn with the image, written after it, tiny in between

    def image_rows(start: int, stop: int) -> UInt8:
        drawn, labels = draw_superalloy(shape, seed, box=Box((start, 0), (stop, shape[1])))
        packed[start] = zlib.compress(labels.tobytes(), 1)
        return drawn

    def truth_rows(start: int, stop: int) -> UInt8:
        return np.frombuffer(zlib.decompress(packed.pop(start)), np.uint8).reshape(stop - start, shape[1])

    write_tiled(image, shape, image_rows)
    write_tiled(truth, shape, truth_rows)


def write_tiled(
    path: Path,
    shape: tuple[int, int],
    rows: Callable[[int, int], UInt8],
    *,
    tile: int = 512,
    compression: str | None = "zlib",
) -> None:
    """Write a plane as tiled TIFF (BigTIFF from 4 GB), one row of tiles at a time.

    Args:
        path: the file.
        shape: rows and columns of the plane.
        rows: gives the rows ``start <= y < stop``, uint8 ``(stop - start, columns)``.
        tile: pixels per side of a tile, a multiple of 16.
        compression: as tifffile names it; None for none.
    """
    from tifffile import TiffWriter

    def tiles() -> Iterator[UInt8]:
        for y in range(0, shape[0], tile):
            strip = rows(y, min(shape[0], y + tile))
            for x in range(0, shape[1], tile):
                part = strip[:, x : x + tile]
                yield np.pad(part, ((0, tile - part.shape[0]), (0, tile - part.shape[1])))

    with TiffWriter(path, bigtiff=shape[0] * shape[1] >= 2**32 - 2**25) as writer:
        writer.write(
            tiles(), shape=shape, dtype=np.uint8, tile=(tile, tile), compression=compression, photometric="minisblack"
        )
