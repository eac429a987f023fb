"""Open any image: `open_image` for its pixels, `describe` for what there is to know about it.

What a path is, is decided by its first bytes, not by its name:

    file      TIFF, BigTIFF, OME-TIFF; PNG; JPEG; .npy; HDF5 (``file.h5`` or ``file.h5::/path/in/file``); MRC
    folder    Zarr 2 and 3, OME-Zarr; N5; neuroglancer precomputed; a folder of image files, one slice each

and in Python any array with ``shape``, ``dtype`` and slicing (NumPy, Dask, Zarr, xarray, h5py, ...).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from tilelab.errors import InputError
from tilelab.io.images.image import Image
from tilelab.io.images.region import Region, crop
from tilelab.io.images.source import Source
from tilelab.io.images.view import AsLabels, SourceImage
from tilelab.io.images.volume_formats import find_file_reader, find_folder_reader
from tilelab.io.storage.local_file import LocalFile
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import remote_place
from tilelab.io.storage.remote_access import clean_uri
from tilelab.io.storage.remote_path import SCHEMES, RemotePath

KNOWN_FORMATS = (
    "TIFF, BigTIFF, OME-TIFF, Zarr, OME-Zarr, N5, neuroglancer precomputed, HDF5, MRC, PNG, JPEG, .npy, "
    "or a folder of slices"
)

_TIFF_VERSIONS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_image(
    uri: Any,
    *,
    level: int = 0,
    channel: int | None = None,
    timepoint: int | None = None,
    axes: str | None = None,
    pixel_size_nm: float | Sequence[float] | None = None,
    region: Region | None = None,
    as_labels: AsLabels | None = None,
) -> Image:
    """Open an image lazily; nothing is decoded until a region is read.

    Args:
        uri: path of a file or folder (also ``file://``); ``s3://``, ``gs://``, ``https://`` of a Zarr or TIFF; or an
            array; an `Image` is returned as it is.
        level: resolution level, 0 is the finest.
        channel: which channel of several; for colours, the sample to take as it is instead of making it grey.
        timepoint: which of several time points.
        axes: what the stored axes mean, one letter each of ``t c z y x s`` (s: colour), where that is not stated.
        pixel_size_nm: nanometres per pixel, instead of what is stated; one value, or one per spatial axis.
        region: the part to open, in pixels of that level: ``z0:z1,y0:y1,x0:x1`` (``y0:y1,x0:x1`` for a plane, ends may
            be left out), or pairs of numbers and None.
        as_labels: keep what is stored instead of making it grey, 0 and 1 of bool, the samples of colours as channels
            (`Image.rgb`); of a PNG with a palette the ``indices`` or the ``colors``.

    Raises:
        InputError: it does not exist, is of no known format, is damaged or truncated, or has no such level, channel,
            time point or region.
    """
    if region is not None:
        whole = open_image(
            uri,
            level=level,
            channel=channel,
            timepoint=timepoint,
            axes=axes,
            pixel_size_nm=pixel_size_nm,
            as_labels=as_labels,
        )
        try:
            return crop(whole, region)
        except InputError:
            if whole is not uri:
                whole.close()
            raise
    if isinstance(uri, Image):
        if level or any(v is not None for v in (channel, timepoint, axes, pixel_size_nm)):
            raise InputError(f"{uri.uri} is open already: level, channel and the like are chosen when it is opened")
        return uri
    if not isinstance(uri, str | os.PathLike):
        from tilelab.io.images.array import ArraySource

        source: Source = ArraySource(uri, level)
    elif (place := remote_place(uri)) is not None:
        source = open_remote(place, level)
    else:
        path = _local_path(uri)
        reader = _find_reader(path)
        if reader is None:
            from tilelab.io.images.slices import SliceStack, slice_axes

            each = None if axes is None else slice_axes(path, axes)

            def open_slice(file: str) -> Image:
                return open_image(
                    file, level=level, channel=channel, timepoint=timepoint, axes=each, as_labels=as_labels
                )

            stack = SliceStack(path, open_slice, pixel_size_nm)
            if len(stack.files) > 1:
                return stack
            stack.close()
            return open_image(
                stack.files[0],
                level=level,
                channel=channel,
                timepoint=timepoint,
                axes=each,
                pixel_size_nm=pixel_size_nm,
                as_labels=as_labels,
            )
        source = reader(path, level)
    try:
        return SourceImage(
            source,
            level=level,
            channel=channel,
            timepoint=timepoint,
            axes=axes,
            pixel_size_nm=pixel_size_nm,
            as_labels=as_labels,
        )
    except InputError:
        source.close()
        raise


def describe(uri: Any, *, axes: str | None = None) -> dict[str, Any]:
    """What there is to know about an image or a result, for `tilelab info`; reads no pixels.

    Args:
        uri: as for `open_image`.
        axes: what the stored axes mean, where that is not stated.

    Returns:
        A dictionary that JSON can hold: ``uri``, ``format``, ``axes`` and ``shape`` as stored, ``dtype`` as stored,
        ``chunks``, ``levels`` (one shape each), ``pixel_size_nm`` by axis letter, ``bytes`` on disk of a file,
        ``warnings``, ``assumptions`` (see `Assumption`); ``image`` with axes, shape and dtype as `open_image` gives
        them, or ``error`` with the reason why it needs to be told more (a time point, say); and, where they apply,
        ``compression``, ``layout``, ``shards``, ``images``, ``slices``, ``labels``, ``label``, ``name``, ``tilelab``.

    Raises:
        InputError: as `open_image`.
    """
    if isinstance(uri, str | os.PathLike) and (place := remote_place(uri)) is not None:
        source = open_remote(place, 0)
    elif isinstance(uri, str | os.PathLike):
        path = _local_path(uri)
        reader = _find_reader(path)
        if reader is None:
            return _describe_slices(path, axes)
        source = reader(path, 0)
    else:
        from tilelab.io.images.array import ArraySource

        source = ArraySource(uri)
    try:
        facts: dict[str, Any] = {
            "uri": source.uri,
            "format": source.format,
            "axes": source.axes,
            "shape": list(source.shape),
            "dtype": str(source.dtype),
            "chunks": list(source.chunks),
            "levels": [list(shape) for shape in source.levels],
            "pixel_size_nm": dict(source.scale_nm) or None,
            "bytes": Path(source.uri).stat().st_size if Path(source.uri).is_file() else None,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in source.details.items() if v is not None},
        }
        try:
            image = SourceImage(source, axes=axes)
        except InputError as error:
            if axes is not None:
                raise
            return facts | {
                "warnings": list(source.warnings),
                "assumptions": msgspec.to_builtins(source.assumptions),
                "error": str(error),
            }
        return facts | _image_facts(image)
    finally:
        source.close()


def _describe_slices(path: str, axes: str | None) -> dict[str, Any]:
    from tilelab.io.images.slices import SliceStack, slice_axes

    each = None if axes is None else slice_axes(path, axes)
    stack = SliceStack(path, lambda file: open_image(file, axes=each))
    try:
        first = describe(stack.files[0], axes=each)
        size = stack.pixel_size_nm
        return {
            "uri": path,
            "format": f"folder of {first['format']} slices",
            "axes": stack.axes,
            "shape": list(stack.shape),
            "dtype": first["dtype"],
            "chunks": list(stack.chunks),
            "levels": [list(stack.shape)],
            "pixel_size_nm": None if size is None else dict(zip("zyx", size, strict=True)),
            "bytes": sum(Path(file).stat().st_size for file in stack.files),
            "slices": len(stack.files),
            **_image_facts(stack),
        }
    finally:
        stack.close()


def _image_facts(image: Image) -> dict[str, Any]:
    seen = {"axes": image.axes, "shape": list(image.shape), "dtype": str(image.dtype)}
    return {
        "warnings": list(image.warnings),
        "assumptions": msgspec.to_builtins(image.assumptions),
        "image": seen,
    }


def _local_path(uri: str | os.PathLike[str]) -> str:
    """The path that `uri` means."""
    path = os.fspath(uri)
    if "://" not in path:
        return path
    parts = urlsplit(path)
    if parts.scheme != "file":
        raise InputError(f"{clean_uri(path)} is of an unknown kind: known are file, {', '.join(SCHEMES)}")
    return unquote(parts.path)


def _find_reader(path: str) -> Callable[[str, int], Source] | None:
    """The reader for what `path` is; None for a folder of slices.

    Raises:
        InputError: it does not exist, is empty, or of no known format.
    """
    if not path:
        raise InputError("no image was given: the path is empty")
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir() raises for what can be no path
        from tilelab.io.images.zarr import ZarrSource, is_zarr

        return ZarrSource if is_zarr(LocalPath(path)) else find_folder_reader(Path(path))
    name, member = split_member(path)
    file = LocalFile(name)
    try:
        if file.size == 0:
            raise InputError(f"{name} is empty (0 bytes)")
        head = file.read(0, min(16, file.size))
        volume = find_file_reader(name, file)
    finally:
        file.close()
    if member and getattr(volume, "format", "") != "HDF5":
        raise InputError(f"{path}: only HDF5 files hold datasets, {name} is of another format")
    if head[:4] in _TIFF_VERSIONS:
        from tilelab.io.images.tiff import TiffSource

        return TiffSource
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        from tilelab.io.images.raster import RasterSource

        return RasterSource
    if head.startswith(b"\x93NUMPY"):
        from tilelab.io.images.npy import NpySource

        return NpySource
    if volume is not None:
        return volume
    if Path(path).name in ("zarr.json", ".zarray", ".zgroup", ".zattrs"):
        raise InputError(f"{path} is a part of {Path(path).parent}: give that folder")
    raise InputError(f"{path} is of an unknown format: known are {KNOWN_FORMATS}")


_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn")


_TIFF_VERSIONS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_remote(place: RemotePath, level: int) -> Source:
    """Open a remote Zarr, OME-Zarr or TIFF.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another format.
    """
    if place.suffix.lower() in _TIFF_SUFFIXES or not _is_zarr(place):
        _check_tiff(place)
        from tilelab.io.images.tiff import TiffSource

        return TiffSource(place, level)
    from tilelab.io.images.zarr import ZarrSource

    return ZarrSource(place, level)


def _is_zarr(place: RemotePath) -> bool:
    from tilelab.io.zarr.metadata import find_node

    return find_node(place) is not None or ".zarr" in place.suffixes


def _check_tiff(place: RemotePath) -> None:
    """Refuse what is no TIFF, in words that help."""
    try:
        head = place.store.get_range(place.key, 0, 4)
    except FileNotFoundError:
        if place.is_dir():
            raise InputError(f"{place} is no Zarr: it has no zarr.json, .zarray or .zgroup") from None
        raise InputError(f"{place} does not exist") from None
    except OSError as error:
        raise InputError(f"{place} cannot be read: {error.strerror}") from None
    if head not in _TIFF_VERSIONS:
        if place.name in ("zarr.json", ".zarray", ".zgroup", ".zattrs"):
            raise InputError(f"{place} is a part of {place.parent}: give that folder")
        raise InputError(f"{place} is of an unknown format: remote images are Zarr, OME-Zarr or TIFF; copy others here")
