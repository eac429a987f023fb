"""Large images with known truth, made of real micrographs.

    python -m benchmarks.bench.mosaic --shape 9958x9959 out.tif

The plane is cut into one patch per micrograph, as square as may be.  Inside a patch the micrograph is repeated,
mirrored at every join, so there is no edge that the microscope did not see; patches of different micrographs just
meet (``--images 1`` makes a single patch).

No micrograph is shipped: they are looked for in $TILELAB_DATA, or ../shared/data beside the repository, as
SET/{train,val}/{images,masks}/NAME.png.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from benchmarks.bench.settings import ROOT
from tilelab.arrays import UInt8
from tilelab.errors import InputError, TilelabError
from tilelab.geometry import Box, reflect
from tilelab.sample import write_tiled


def data_folder() -> Path:
    """Where the micrographs are."""
    return Path(os.environ.get("TILELAB_DATA", ROOT.parent / "shared" / "data"))


def load_micrographs(root: Path, name: str, split: str, limit: int | None = None) -> list[tuple[UInt8, UInt8]]:
    """Images and masks of a set in the order of their names, uint8 ``(y, x)`` each.

    Raises:
        InputError: there are none, or one has no mask; says where it looked.
    """
    paths = sorted((root / name / split / "images").glob("*.png"))[:limit]
    if not paths:
        known = sorted(path.parent.name for path in root.glob("*/train"))
        raise InputError(
            f"no micrographs in {root / name / split / 'images'}: set TILELAB_DATA"
            + (f", or choose a set of {', '.join(known)}" if known else "")
        )
    pairs = []
    for path in paths:
        mask = path.parents[1] / "masks" / path.name
        if not mask.is_file():
            raise InputError(f"{path} has no mask {mask}")
        image, truth = (np.asarray(Pillow.open(file), dtype=np.uint8) for file in (path, mask))
        if image.shape != truth.shape:
            raise InputError(f"{path} has shape {image.shape}, its mask {truth.shape}")
        pairs.append((image, truth))
    return pairs


@dataclass(frozen=True)
class Mosaic:
    """A large plane of mirrored planes, drawn where it is asked for.

    Attributes:
        shape: rows and columns.
        planes: what it is made of, uint8 ``(y, x)``.
    """

    shape: tuple[int, int]
    planes: Sequence[UInt8]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across; the last row may repeat planes from the first."""
        height, width = self.shape
        count = len(self.planes)
        down = min(count, max(1, round(math.sqrt(count * height / width))))
        return down, -(-count // down)

    def patch(self, row: int, column: int) -> tuple[Box, UInt8]:
        """One patch: its region, and the plane that fills it."""
        down, across = self.grid
        start = (self.shape[0] * row // down, self.shape[1] * column // across)
        stop = (self.shape[0] * (row + 1) // down, self.shape[1] * (column + 1) // across)
        return Box(start, stop), self.planes[(row * across + column) % len(self.planes)]

    def read(self, box: Box) -> UInt8:
        """The pixels of a region, uint8 of its shape."""
        out = np.empty(box.shape, np.uint8)
        down, across = self.grid
        for index in range(down * across):
            patch, plane = self.patch(*divmod(index, across))
            part = patch.intersect(box)
            if not part.size:
                continue
            rows, columns = (
                reflect(np.arange(a - first, b - first, dtype=np.int64), size)
                for a, b, first, size in zip(part.start, part.stop, patch.start, plane.shape, strict=True)
            )
            there = tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))
            out[there] = plane[rows[:, None], columns[None, :]]
        return out

    def rows(self, start: int, stop: int) -> UInt8:
        """Whole rows ``start <= y < stop``, uint8."""
        return self.read(Box((start, 0), (stop, self.shape[1])))


def write_mosaic(mosaic: Mosaic, path: Path, *, tile: int = 512, compression: str | None = None) -> None:
    """Write a mosaic in memory for one row of tiles.

    Args:
        mosaic: what to write.
        path: ``.tif`` or ``.tiff`` for tiled TIFF, ``.zarr`` for a Zarr array.
        tile: pixels per side of a tile or chunk, for TIFF a multiple of 16.
        compression: ``zlib`` or ``zstd``; None for none.

    Raises:
        InputError: the suffix is neither.
    """
    if path.suffix in (".tif", ".tiff"):
        write_tiled(path, mosaic.shape, mosaic.rows, tile=tile, compression=compression)
        return
    if path.suffix != ".zarr":
        raise InputError(f"{path} is of an unknown format: name it .tif or .zarr")
    import zarr
    from zarr.codecs import GzipCodec, ZstdCodec

    codecs: dict[str | None, Any] = {None: None, "zlib": GzipCodec(), "zstd": ZstdCodec()}
    array = zarr.create_array(
        store=str(path), shape=mosaic.shape, chunks=(tile, tile), dtype="uint8", compressors=codecs[compression]
    )
    for start in range(0, mosaic.shape[0], tile):
        stop = min(mosaic.shape[0], start + tile)
        array[start:stop] = mosaic.rows(start, stop)


def parse_shape(text: str) -> tuple[int, int]:
    """``9958x9959`` as rows and columns."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write ROWSxCOLUMNS, e.g. 9958x9959")
    return int(height), int(width)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.mosaic", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the mosaic, .tif or .zarr")
    parser.add_argument("--truth", type=Path, help="also write the truth, .tif or .zarr")
    parser.add_argument("--set", default="superalloy", help="which micrographs (%(default)s)")
    parser.add_argument("--split", default="val", choices=("train", "val"))
    parser.add_argument("--images", type=int, metavar="N", help="use the first N only")
    parser.add_argument("--shape", type=parse_shape, default=(9958, 9959), metavar="ROWSxCOLUMNS")
    parser.add_argument("--tile", type=int, default=512, help="pixels per side of a tile (%(default)s)")
    parser.add_argument("--compression", choices=("none", "zlib", "zstd"), default="none")
    parser.add_argument("--data", type=Path, default=data_folder(), help="folder of the sets")
    args = parser.parse_args(argv)
    compression = None if args.compression == "none" else args.compression
    try:
        pairs = load_micrographs(args.data, args.set, args.split, args.images)
        for path, planes in ((args.out, [image for image, _ in pairs]), (args.truth, [truth for _, truth in pairs])):
            if path is not None:
                write_mosaic(Mosaic(args.shape, planes), path, tile=args.tile, compression=compression)
                print(f"{path}: {args.shape[0]} x {args.shape[1]} pixels of {len(planes)} micrographs")
    except TilelabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
