"""Open any image: `open_image` for its pixels, `describe` for what there is to know about it.

What a path is, is decided by its first bytes, not by its name:

    file      TIFF, BigTIFF, OME-TIFF; PNG; JPEG; BMP; .npy; HDF5 (``file.h5`` or ``file.h5::/path/in/file``); MRC;
              microscopes' own: DM3, DM4, SER, EMI, EMD, CZI, LIF, ND2
              Zarr and OME-Zarr in a zip file (.ozx)
    folder    Zarr 2 and 3, OME-Zarr; N5; neuroglancer precomputed; a folder of image files, one slice each

and in Python any array with ``shape``, ``dtype`` and slicing (NumPy, Dask, Zarr, xarray, h5py, ...).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tilelab.errors import InputError
from tilelab.io.images.bar import known_bar, leave_out_bar
from tilelab.io.images.formats import local_path, open_stored
from tilelab.io.images.image import Image
from tilelab.io.images.region import Region, crop
from tilelab.io.images.several import SeveralImagesError
from tilelab.io.images.view import AsLabels, SourceImage, plausible_sizes
from tilelab.io.storage.outside import check_outside


def open_image(
    uri: Any,
    *,
    level: int = 0,
    series: str | int | None = None,
    channel: int | None = None,
    timepoint: int | None = None,
    axes: str | None = None,
    pixel_size_nm: float | Sequence[float] | None = None,
    region: Region | None = None,
    bar: int | None = 0,
    as_labels: AsLabels | None = None,
    allow_outside: bool = False,
    infinite: bool = False,
) -> Image:
    """Open an image lazily; nothing is decoded until a region is read.

    >>> with tilelab.open_image("sample.tif") as image:
    ...     image.axes, image.shape, image[100:200, ::2].shape, np.asarray(image).dtype
    ('yx', (300, 400), (100, 200), dtype('uint8'))

    Args:
        uri: path of a file or folder (also ``file://``); ``s3://``, ``gs://``, ``https://`` of a Zarr or TIFF; or an
            array; an `Image` is returned as it is.
        level: resolution level, 0 is the finest.
        series: which of several images (series, multiscales, pages, datasets), by number from 0 or by name.
        channel: which channel of several; for colours, the sample to take as it is instead of making it grey.
        timepoint: which of several time points.
        axes: what the stored axes mean, one letter each of ``t c z y x s`` (s: colour), where that is not stated.
        pixel_size_nm: nanometres per pixel, instead of what is stated; one value, or one per spatial axis.
        region: the part to open, in pixels of that level: ``z0:z1,y0:y1,x0:x1`` (``y0:y1,x0:x1`` for a plane, ends may
            be left out), or pairs of numbers and None.
        bar: rows of the info bar at the bottom of a micrograph, left out before a region is taken: so many, or those
            that its metadata or its look tell of (None, an assumption); 0 keeps everything.
        as_labels: keep what is stored instead of making it grey, 0 and 1 of bool, the samples of colours as channels
            (`Image.rgb`); of a palette the ``indices`` or the
            ``colors``; with ``integers``, whole numbers of any type.
        allow_outside: read what the data name outside of their own folder (HDF5's external files, OME-TIFF's others).
        infinite: make a float64 beyond float32 infinite, instead of refusing to read it.

    Raises:
        InputError: it does not exist, is of no known format, is damaged or truncated, or has no such level, channel,
            time point or region.
    """
    chosen: dict[str, Any] = {
        "channel": channel,
        "timepoint": timepoint,
        "axes": axes,
        "pixel_size_nm": pixel_size_nm,
    }
    kept: dict[str, Any] = {"as_labels": as_labels, "allow_outside": allow_outside, "infinite": infinite}
    if region is not None:
        whole = open_image(uri, level=level, series=series, bar=bar, **chosen, **kept)
        try:
            return crop(whole, region)
        except InputError:
            if whole is not uri:
                whole.close()
            raise
    if isinstance(uri, Image):
        if level or series is not None or any(value is not None for value in chosen.values()):
            raise InputError(f"{uri.uri} is open already: level, channel and the like are chosen when it is opened")
        return uri
    source = open_stored(uri, level, None if series is None else str(series))
    if source is None:
        opened = _open_slices(local_path(uri), level=level, series=series, **chosen, **kept)
    else:
        try:
            check_outside(source.uri, source.outside, allow_outside)
            opened = SourceImage(source, level=level, series=series, as_labels=as_labels, infinite=infinite, **chosen)
        except InputError:
            source.close()
            raise
        if len(opened.level_sides) > 1:
            again = {"series": series, **chosen, **kept}
            opened.reduced = partial(_open_reduced, uri, again, opened.level_sides)
    if bar is None and not isinstance(uri, str | os.PathLike):
        return opened  # an array is what its maker wants of it
    try:
        return leave_out_bar(opened, bar)
    except InputError:
        opened.close()
        raise


def _open_reduced(uri: Any, chosen: Mapping[str, Any], sides: Sequence[int], side: int) -> Image:
    """The coarsest level of an image whose longer side, of `sides`, has at least `side` pixels."""
    return open_image(uri, level=max((n for n, longer in enumerate(sides) if longer >= side), default=0), **chosen)


def _open_slices(path: str, *, axes: str | None, pixel_size_nm: Any, **chosen: Any) -> Image:
    """A folder of slices; of a single one, that plane."""
    from tilelab.io.images.slices import SliceStack, slice_axes

    each = None if axes is None else slice_axes(path, axes)
    stack = SliceStack(path, lambda file: open_image(file, axes=each, **chosen), pixel_size_nm)
    if len(stack.files) > 1:
        return stack
    stack.close()
    plane = open_image(stack.files[0], axes=each, pixel_size_nm=pixel_size_nm, **chosen)
    plane.assumptions += stack.guesses
    return plane


def describe(
    uri: Any, *, axes: str | None = None, series: str | int | None = None, allow_outside: bool = False
) -> dict[str, Any]:
    """What there is to know about an image or a result, for `tilelab info`.

    It reads no pixels but the lowest quarter of a plane, to see whether that is an info bar.

    Args:
        uri: as for `open_image`.
        axes: what the stored axes mean, where that is not stated.
        series: which of several images.
        allow_outside: as for `open_image`.

    Returns:
        A dictionary that JSON can hold: ``uri``, ``format``, ``axes`` and ``shape`` as stored, ``dtype`` as stored,
        ``chunks``, ``levels`` (one shape each), ``pixel_size_nm`` by axis letter, ``bytes`` on disk of a file,
        ``warnings``, ``assumptions`` (see `Assumption`); ``image`` with axes, shape and dtype as `open_image` gives
        them, or ``error`` with the reason why it needs to be told more (a time point, say); and, where they apply,
        ``bar`` (rows of an info bar, which `tilelab infer` leaves out), ``compression``, ``layout``,
        ``shards``, ``stored`` (``a of b`` chunks
        or shards), ``images``, ``series`` (what there is of each), ``slices``, ``labels``, ``label``, ``name``,
        ``tilelab``.

    Raises:
        InputError: as `open_image`.
    """
    try:
        source = open_stored(uri, 0, None if series is None else str(series))
    except SeveralImagesError as error:  # all are listed, and the first is described
        first = describe(uri, axes=axes, series="0", allow_outside=allow_outside)
        return {key: value for key, value in first.items() if key != "image"} | {"error": str(error)}
    if source is None:
        return _describe_slices(local_path(uri), axes, series, allow_outside)
    try:
        check_outside(source.uri, source.outside, allow_outside)
        facts: dict[str, Any] = {
            "uri": source.uri,
            "format": source.format,
            "axes": source.axes,
            "shape": list(source.shape),
            "dtype": str(source.dtype),
            "chunks": list(source.chunks),
            "levels": [list(shape) for shape in source.levels],
            **({"series": list(source.series)} if len(source.series) > 1 else {}),
            "pixel_size_nm": plausible_sizes(source.uri, source.scale_nm)[0] or None,
            "bytes": Path(source.uri).stat().st_size if Path(source.uri).is_file() else None,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in source.details.items() if v is not None},
        }
        try:
            image: Image = SourceImage(source, axes=axes, infinite=True)
        except InputError as error:
            if axes is not None:
                raise
            return facts | {
                "warnings": list(source.warnings),
                "assumptions": msgspec.to_builtins(source.assumptions),
                "error": str(error),
            }
        return facts | _image_facts(image, isinstance(uri, str | os.PathLike))
    finally:
        source.close()


def _describe_slices(path: str, axes: str | None, series: str | int | None, allow_outside: bool) -> dict[str, Any]:
    from tilelab.io.images.slices import SliceStack, slice_axes

    each = None if axes is None else slice_axes(path, axes)
    chosen: dict[str, Any] = {"axes": each, "series": series, "allow_outside": allow_outside}
    stack = SliceStack(path, lambda file: open_image(file, **chosen))
    try:
        first = describe(stack.files[0], **chosen)
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
            **_image_facts(stack, True),
        }
    finally:
        stack.close()


def _image_facts(image: Image, stored: bool) -> dict[str, Any]:
    rows = 0 if not stored or (found := known_bar(image)) is None else found.rows
    image = leave_out_bar(image, None) if rows else image
    seen = {"axes": image.axes, "shape": list(image.shape), "dtype": str(image.dtype)}
    return {
        "warnings": list(image.warnings),
        "assumptions": msgspec.to_builtins(image.assumptions),
        "image": seen,
        **({"bar": rows} if rows else {}),
    }
