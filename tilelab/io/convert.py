"""Rewrite any image as sharded OME-Zarr or pyramidal OME-TIFF, streaming.

Everything is written into ``DST.converting`` beside the destination and renamed when it is whole, so a conversion that
is killed leaves nothing under the final name; the next one clears away what it left.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tilelab.errors import InputError, OutputError
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.region import Region
from tilelab.io.storage.claims import Write, claim
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.zarr.metadata import find_node
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import MARK, make_ours, move_whole, remove_entry, remove_ours, replace_folder, try_lock

_TIFF_SUFFIXES = (".tif", ".tiff")


def convert_image(
    source: Any,
    destination: str | os.PathLike[str],
    *,
    level: int = 0,
    series: str | int | None = None,
    channel: int | None = None,
    timepoint: int | None = None,
    axes: str | None = None,
    pixel_size_nm: float | Sequence[float] | None = None,
    region: Region | None = None,
    allow_outside: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Rewrite an image, with all its resolution levels made anew.

    Args:
        source: anything that `open_image` reads.
        destination: ``NAME.zarr`` (OME-Zarr 0.5, sharded, zstd) or ``NAME.tif``, ``NAME.tiff`` (OME-TIFF, tiles,
            deflate, BigTIFF where it needs to be).
        level, series, channel, timepoint, axes, pixel_size_nm, region: as for `open_image`; pixel size and position are
            kept.
        allow_outside: read what the source names outside of its own folder.
        overwrite: replace a file, or a Zarr folder, that is there.
        progress: called with pixels done and pixels in all, for the finest level.
        note: called with each of the image's warnings and assumptions.

    Returns:
        ``path``, ``format``, ``axes``, ``shape``, ``dtype``, ``pixel_size_nm``, ``levels``, ``bytes`` and ``seconds``.

    Raises:
        InputError: the source cannot be read.
        OutputError: the destination exists, is of no known kind, is the source, is being written by another conversion,
            or the disk is full or unwritable.
    """
    began = time.perf_counter()
    path = LocalPath(destination)
    to_tiff = path.suffix.lower() in _TIFF_SUFFIXES
    if not to_tiff and path.suffix.lower() != ".zarr":
        raise OutputError(f"{path} is of no kind that can be written: name it NAME.ome.zarr or NAME.ome.tif")
    _check_destination(source, path, to_tiff, overwrite)
    chosen: dict[str, Any] = {
        "level": level,
        "series": series,
        "channel": channel,
        "timepoint": timepoint,
        "axes": axes,
    }
    chosen |= {"axes": axes, "pixel_size_nm": pixel_size_nm}
    with open_image(source, region=region, allow_outside=allow_outside, **chosen) as image:
        if note is not None:
            for said in (*image.warnings, *image.assumptions):
                note(str(said))
        levels, nbytes = _write(image, path, to_tiff, overwrite, progress)
        return {
            "path": str(path),
            "format": "OME-TIFF" if to_tiff else "OME-Zarr 0.5",
            "axes": image.axes,
            "shape": list(image.shape),
            "dtype": str(image.dtype),
            "pixel_size_nm": image.pixel_size_nm,
            "levels": levels,
            "bytes": nbytes,
            "seconds": time.perf_counter() - began,
        }


def _write(
    image: Image, path: LocalPath, to_tiff: bool, overwrite: bool, progress: Callable[[int, int], None] | None
) -> tuple[int, int]:
    """Write all levels beside `path`, then give them that name; returns the number of levels and of bytes."""
    from tilelab.io.results.image_pyramid import write_pyramid

    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    total, done = math.prod(image.shape), 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    with _workplace(path) as folder:
        whole = folder / "image"
        levels = write_pyramid(image, whole, name, advance)
        if to_tiff:
            from tilelab.io.results.tiff_pyramid import write_pyramid_tiff

            whole = folder / "image.tif"
            write_pyramid_tiff(levels, whole, name, image.pixel_size_nm, image.fingerprint())
        nbytes = sum(whole.file_sizes()) or whole.version().size
        _move(whole, path, overwrite)
    return len(levels), nbytes


def _check_destination(source: Any, path: LocalPath, to_tiff: bool, overwrite: bool) -> None:
    """Refuse, before any work, what could not be replaced in the end."""
    claim({"the source": source}, [Write(path, "DST", "result" if to_tiff else "folder")])
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise OutputError(f"{path} exists: choose another destination, or replace it with --overwrite")
    if path.is_dir() == to_tiff:
        raise OutputError(
            f"{path} is a {'folder' if to_tiff else 'file'}, which is not what would be written: remove it"
        )
    if path.is_dir():
        try:
            known = find_node(path) is not None
        except InputError:
            known = True
        if not known:
            raise OutputError(
                f"{path} is a folder but no Zarr, so it is not replaced: remove it or choose another name"
            )


@contextlib.contextmanager
def _workplace(path: LocalPath) -> Iterator[LocalPath]:
    """The folder beside `path` to write in, empty and ours alone; it is gone afterwards."""
    folder = Path(path.with_name(path.name + ".converting"))
    try:
        make_ours(folder)
        lock = (folder / MARK / "lock").open("a")
    except OSError as error:
        raise output_error(folder, error) from error
    with lock:
        if not try_lock(lock):
            raise OutputError(f"{path} is being written by another conversion: wait for it")
        try:
            for left in folder.iterdir():
                if left.name != MARK:
                    remove_entry(left)
            yield LocalPath(folder)
        except OSError as error:
            raise output_error(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                remove_ours(folder)


def _move(whole: Path, path: LocalPath, overwrite: bool) -> None:
    """Give what is whole its final name."""
    if os.path.lexists(path) and not overwrite:
        raise OutputError(f"{path} has come into being meanwhile: choose another destination, or --overwrite")
    if whole.is_dir():
        try:
            replace_folder(whole, path)
        except OSError as error:
            raise output_error(path, error) from error
    else:
        move_whole(whole, path)
