"""Which reader suits what lies at a remote address."""

from __future__ import annotations

import os

from tilelab.errors import InputError
from tilelab.io._source import Source
from tilelab.io.remote import SCHEMES, RemotePath

_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn")
_TIFF_VERSIONS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def remote_place(uri: str | os.PathLike[str] | RemotePath) -> RemotePath | None:
    """The place that `uri` means if it is in a bucket or on a web server, else None."""
    if isinstance(uri, RemotePath):
        return uri
    text = os.fspath(uri)
    return RemotePath.parse(text) if text.partition("://")[0].lower() in SCHEMES and "://" in text else None


def open_remote(place: RemotePath, level: int) -> Source:
    """Open a remote Zarr, OME-Zarr or TIFF.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another format.
    """
    if place.suffix.lower() in _TIFF_SUFFIXES or not _is_zarr(place):
        _check_tiff(place)
        from tilelab.io._tiff import TiffSource

        return TiffSource(place, level)
    from tilelab.io._zarr import ZarrSource

    return ZarrSource(place, level)


def _is_zarr(place: RemotePath) -> bool:
    from tilelab.io._zarr_meta import find_node

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
