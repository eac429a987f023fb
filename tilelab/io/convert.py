"""Rewrite any image as sharded OME-Zarr or pyramidal OME-TIFF, streaming.

Everything is written into ``DST.converting`` beside the destination and renamed when it is whole, so a conversion that
is killed leaves nothing under the final name; the next one clears away what it left.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.assumptions import check_strict
from tilelab.errors import InputError, OutputError
from tilelab.io.images.bar import known_bar
from tilelab.io.images.formats import local_path
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.region import Region
from tilelab.io.images.view import AsLabels
from tilelab.io.label_source import LabelSource, find_labels, look_like_labels
from tilelab.io.results.image_pyramid import layout_of, read_identity, write_pyramid
from tilelab.io.results.precomputed import is_precomputed, write_precomputed_levels
from tilelab.io.results.result import find_loss, read_info
from tilelab.io.results.tiff import read_tiff_info, write_tiff
from tilelab.io.results.tiff_pyramid import read_tiff_identity, write_pyramid_tiff
from tilelab.io.storage.claims import Write, claim
from tilelab.io.storage.files import identity_of
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.outside import leaves
from tilelab.io.storage.place import Place, remote_place
from tilelab.io.zarr import ome as _ome
from tilelab.io.zarr.metadata import find_node
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import (
    MARK,
    flush_tree,
    make_ours,
    move_whole,
    remove_entry,
    remove_ours,
    replace_folder,
    try_lock,
)

_TIFF_SUFFIXES = (".tif", ".tiff")
_PRECOMPUTED = ".precomputed"


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
    labels: bool | None = None,
    strict: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Rewrite an image, with all its resolution levels made anew.

    Args:
        source: anything that `open_image` reads.
        destination: ``NAME.zarr`` (OME-Zarr 0.5, sharded, zstd), ``NAME.tif``, ``NAME.tiff`` (OME-TIFF, tiles,
            deflate, BigTIFF where it needs to be) or, of labels, ``NAME.precomputed`` (neuroglancer's).
        level, series, channel, timepoint, axes, pixel_size_nm, region: as for `open_image`; pixel size and position are
            kept.
        allow_outside: read what the source names outside of its own folder.
        labels: it holds labels (True), whose levels keep what is most frequent and whose whole numbers of any type
            stay, or it does not (False); None believes its metadata, and takes an image of few values for labels.
        strict: refuse what would have to be assumed.
        overwrite: replace a file, or a Zarr folder, that is there.
        progress: called with pixels done and pixels in all, for the finest level.
        note: called with each of the image's warnings and assumptions.

    Returns:
        ``path``, ``format``, ``axes``, ``shape``, ``dtype``, ``pixel_size_nm``, ``levels``, ``bytes`` and ``seconds``.

    Raises:
        InputError: the source cannot be read.
        StrictError: something would have to be assumed, and `strict` forbids it.
        OutputError: the destination exists, is of no known kind, is the source, is being written by another conversion,
            or the disk is full or unwritable.
    """
    began = time.perf_counter()
    if remote_place(destination) is not None:
        raise OutputError(
            f"{destination}: convert writes to disk alone: give a path here, and copy it there afterwards"
        )
    path = LocalPath(local_path(destination))
    to_tiff = path.suffix.lower() in _TIFF_SUFFIXES
    if not to_tiff and path.suffix.lower() not in (".zarr", _PRECOMPUTED):
        raise OutputError(
            f"{path} is of no kind that can be written: name it NAME.ome.zarr, NAME.ome.tif, of labels NAME.precomputed"
        )
    _check_destination(source, path, to_tiff, overwrite)
    chosen: dict[str, Any] = {
        "level": level,
        "series": series,
        "channel": channel,
        "timepoint": timepoint,
        "axes": axes,
    }
    chosen |= {"axes": axes, "pixel_size_nm": pixel_size_nm}
    chosen |= {"region": region, "allow_outside": allow_outside}
    found = find_labels(source, series, channel, labels=labels)
    wanted: AsLabels | None = None if found.label is None else "integers"
    with open_image(source, as_labels=wanted, **chosen) as image:
        check_strict(image.assumptions, strict)
        said = [*image.warnings, *image.assumptions]
        stored = isinstance(source, str | os.PathLike)
        if stored and found.label is None and labels is None and (guess := look_like_labels(image)) is not None:
            check_strict([guess], strict)
            found, said = replace(found, label={}), [*said, guess]
        if stored and found.label is None and (bar := known_bar(image)) is not None:
            said.append(f"{image.uri} has an info bar in its lowest {bar.rows} rows ({bar.because}), which is kept")
        if found.wide and image.dtype == np.float32:
            said.append(f"{found.wide} pixels become float32: if they are labels, keep them with --labels")
        if found.lost and found.label is None and channel is None:
            said.append(f"{image.uri} {found.lost}")
        plain = level == 0 and all(v is None for v in (series, channel, timepoint, axes, pixel_size_nm, region))
        if outside := [name for name in found.beside if leaves(name)]:
            raise InputError(f"{image.uri} names labels outside of its own folder, {outside[0]}: correct its metadata")
        if found.beside and (found.home is None or (to_tiff and not (plain and _is_result(source)))):
            where = "the TIFF" if to_tiff else "what is made of one level"
            said.append(
                f"labels of {image.uri} ({', '.join(found.beside)}) are not in {where}: convert each by its path"
            )
        if note is not None:
            for one in said:
                note(str(one))
        levels, nbytes = _write(image, path, to_tiff, overwrite, progress, found, chosen, source, plain)
        return {
            "path": str(path),
            "format": "OME-TIFF"
            if to_tiff
            else "precomputed"
            if path.suffix.lower() == _PRECOMPUTED
            else "OME-Zarr 0.5",
            "axes": image.axes,
            "shape": list(image.shape),
            "dtype": str(image.dtype),
            "pixel_size_nm": image.pixel_size_nm,
            "levels": levels,
            "bytes": nbytes,
            "seconds": time.perf_counter() - began,
        }


def made_of(source: Any, destination: str | os.PathLike[str], **chosen: Any) -> bool | None:
    """Whether what is at a destination was converted from `source` as it is now; None where it does not say.

    Args:
        source, destination: as for `convert_image`.
        chosen: what `open_image` takes besides.

    Raises:
        InputError: the source cannot be opened.
    """
    path = LocalPath(local_path(destination))
    to_tiff = path.suffix.lower() in _TIFF_SUFFIXES
    known = read_tiff_identity(path) if to_tiff else read_identity(path)
    if known is None:
        return None
    if to_tiff and not any(chosen.values()) and _is_result(source):
        with contextlib.suppress(InputError):
            return read_tiff_info(path) == read_info(source)
    with open_image(source, **chosen) as image:
        return identity_of(image.fingerprint()) == known


def _write(
    image: Image,
    path: LocalPath,
    to_tiff: bool,
    overwrite: bool,
    progress: Callable[[int, int], None] | None,
    found: LabelSource,
    chosen: dict[str, Any],
    source: Any,
    plain: bool,
) -> tuple[int, int]:
    """Write all levels beside `path`, then give them that name; returns the number of levels and of bytes."""
    name = path.name.removesuffix(path.suffix).removesuffix(".ome")
    total, done = math.prod(image.shape), 0

    def advance(pixels: int) -> None:
        nonlocal done
        done += pixels
        if progress is not None:
            progress(done, total)

    with _workplace(path) as folder:
        whole = folder / "image"
        if path.suffix.lower() == _PRECOMPUTED and found.label is None:
            raise OutputError(f"{path} can hold labels alone: say that {image.uri} holds some with --labels")
        if path.suffix.lower() == _PRECOMPUTED and image.dtype.kind == "f":
            raise OutputError(f"{path} can hold whole numbers alone, {image.uri} has {image.dtype}: round it first")
        identity = identity_of(image.fingerprint())
        levels = write_pyramid(image, whole, name, advance, found.label, identity)
        if path.suffix.lower() == _PRECOMPUTED:
            whole = folder / "image.precomputed"
            place: dict[str, Any] = {"pixel_size_nm": image.pixel_size_nm, "origin_px": image.origin_px}
            write_precomputed_levels(levels, layout_of(image), Path(whole), **place)
        elif to_tiff:
            whole = folder / "image.tif"
            if plain and _is_result(source):
                if (loss := find_loss(source)) is not None:
                    raise InputError(f"{image.uri} has {loss}: copy it anew, or make it anew with `tilelab infer`")
                write_tiff(source, whole, probabilities=True)
            else:
                _check_tiff_type(image)
                write_pyramid_tiff(levels, whole, name, image.pixel_size_nm, identity, found.label)
        elif found.beside and found.home is not None:
            _write_labels(whole, found.home / "labels", found.beside, chosen)
        nbytes = sum(whole.file_sizes()) or whole.version().size
        _move(whole, path, overwrite)
    return len(levels), nbytes


def _is_result(source: Any) -> bool:
    """Whether a source is a finished result of tilelab with labels."""
    try:
        return bool(isinstance(source, str | os.PathLike) and read_info(source).labels)
    except InputError:
        return False


def _check_tiff_type(image: Image) -> None:
    """Refuse labels of 64 bits, which no OME-TIFF holds."""
    if image.dtype.kind in "iu" and image.dtype.itemsize > 4:
        raise OutputError(
            f"{image.uri} holds labels of type {image.dtype}, OME-TIFF has 32 bits at most: convert it to NAME.ome.zarr"
        )


def _write_labels(root: LocalPath, home: Place, names: Sequence[str], chosen: dict[str, Any]) -> None:
    """Write the label images of an image, which are in the group `home`, into its new OME-Zarr."""
    own = chosen | {"series": None, "channel": None, "axes": None}
    for name in names:
        path = home / name
        told = find_labels(path, None, None, labels=True)
        with open_image(path, as_labels="integers", **own) as labels:
            write_pyramid(labels, root / "labels" / name, name, None, told.label)
    document = _ome.group({"ome": {"version": _ome.VERSION, "labels": list(names)}})
    (root / "labels" / "zarr.json").write_bytes(json.dumps(document, indent=1).encode())


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
            known = find_node(path) is not None or is_precomputed(path)
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
            flush_tree(whole)
            replace_folder(whole, path)
        except OSError as error:
            raise output_error(path, error) from error
    else:
        move_whole(whole, path)
