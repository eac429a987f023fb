"""What a path or array is, decided by its first bytes and not by its name, and the reader for it.

Readers are imported when one of their images is met: those of HDF5, MRC, N5 and neuroglancer precomputed need packages
that the core does not (extra ``formats``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tilelab.errors import InputError
from tilelab.io.images.optional import is_precomputed
from tilelab.io.images.readout import is_readout
from tilelab.io.images.slices import is_pattern
from tilelab.io.images.source import Source
from tilelab.io.images.stated import described_by_bigdataviewer
from tilelab.io.storage.local_file import LocalFile
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.member import split_member
from tilelab.io.storage.place import remote_place
from tilelab.io.storage.remote_access import clean_uri
from tilelab.io.storage.remote_path import SCHEMES, RemotePath
from tilelab.io.storage.zip_path import ZipPath

Reader = Callable[..., Source]
"""Opens a path at a resolution level; those that `chooses` take the image of several as well."""

KNOWN_FORMATS = (
    "TIFF, BigTIFF, OME-TIFF, Zarr, OME-Zarr, N5, neuroglancer precomputed, HDF5, MRC, DM3, DM4, SER, EMI, EMD, "
    "CZI, PNG, JPEG, BMP, .npy, or a folder of slices"
)

_TIFF_VERSIONS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".scn")
_PNG, _JPEG, _BMP, _NUMPY = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"\x93NUMPY"
ZARR_PARTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (0, 512, 1024, 2048)
_MRC_SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali")
_MRC_STAMP = 208
_ZIP = b"PK\x03\x04"
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"


def open_stored(uri: Any, level: int = 0, series: str | None = None) -> Source | None:
    """What is stored at `uri` (see `open_image`), one image at one resolution level; None for a folder of slices.

    Raises:
        InputError: it does not exist, is of no known format, is damaged or truncated, or has no such level.
    """
    if isinstance(uri, ZipPath):
        from tilelab.io.images.zarr import ZarrSource

        return ZarrSource(uri, level, series)
    if isinstance(uri, RemotePath):
        return _open_remote(uri, level, series)
    if not isinstance(uri, str | os.PathLike):
        from tilelab.io.images.array import ArraySource

        return _read_series(ArraySource, uri, level, series)
    if (place := remote_place(uri)) is not None:
        return _open_remote(place, level, series)
    path = local_path(uri)
    reader = find_reader(path)
    return None if reader is None else _read_series(reader, path, level, series)


def _read_series(reader: Reader, path: Any, level: int, series: str | None) -> Source:
    """Open one image of several, where `series` says which."""
    if getattr(reader, "chooses", False):
        return reader(path, level, series)
    if series not in (None, "0"):
        raise InputError(f"--series {series} was asked for, {path} holds one image")
    return reader(path, level)


def local_path(uri: str | os.PathLike[str]) -> str:
    """The path that `uri` means."""
    path = os.fspath(uri)
    if "://" not in path:
        return path
    parts = urlsplit(path)
    if parts.scheme != "file":
        raise InputError(f"{clean_uri(path)} is of an unknown kind: known are file, {', '.join(SCHEMES)}")
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{path} names the machine {parts.netloc!r}: a path on this one has three slashes, file:///")
    return url2pathname(parts.path)


def find_reader(path: str) -> Reader | None:
    """The reader for what `path` is; None for a folder of slices.

    Raises:
        InputError: it does not exist, is empty, or of no known format.
    """
    if not path:
        raise InputError("no image was given: the path is empty")
    if os.path.isdir(path):  # noqa: PTH112 - Path.is_dir() raises for what can be no path
        from tilelab.io.images.zarr import ZarrSource, is_zarr

        return ZarrSource if is_zarr(LocalPath(path)) else _folder_reader(Path(path))
    if is_pattern(path):
        return None
    name, member = split_member(path)
    file = LocalFile(name)
    try:
        if file.size == 0:
            raise InputError(f"{name} is empty (0 bytes)")
        head = file.read(0, min(16, file.size))
        volume = _volume_reader(name, file)
    finally:
        file.close()
    if member and getattr(volume, "format", "") != "HDF5":
        raise InputError(f"{path}: only HDF5 files hold datasets, {name} is of another format")
    if head[:4] in _TIFF_VERSIONS:
        from tilelab.io.images.tiff import TiffSource

        return TiffSource
    if head.startswith((_PNG, _JPEG)):
        from tilelab.io.images.raster import RasterSource

        return RasterSource
    if head.startswith(_BMP) and head[6:10] == bytes(4):
        from tilelab.io.images.bmp import BmpSource

        return BmpSource
    if head.startswith(_NUMPY):
        from tilelab.io.images.npy import NpySource

        return NpySource
    if volume is not None:
        return volume
    if is_readout(path, head):
        from tilelab.io.images.readout import ReadoutSource

        return ReadoutSource
    if head.startswith(_ZIP):
        return _zip_reader(path)
    if head.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<") and _is_companion(Path(path)):
        from tilelab.io.images.tiff import TiffSource

        return TiffSource
    if Path(path).name in ZARR_PARTS:
        raise InputError(f"{path} is a part of {Path(path).parent}: give that folder")
    if Path(path).suffix.lower() == ".xml" and described_by_bigdataviewer(Path(path)) is not None:
        from tilelab.io.images.bigdataviewer import open_bigdataviewer

        return open_bigdataviewer
    raise InputError(
        f"{path} is of an unknown format: known are {KNOWN_FORMATS}; save it as TIFF with the program that wrote "
        "it, or with Fiji, which reads most"
    )


def _is_companion(path: Path) -> bool:
    """Whether an XML file describes OME-TIFF files."""
    with path.open("rb") as file:
        return b"<OME" in file.read(4096)


def _zip_reader(path: str) -> Reader:
    """The reader for a Zarr in a zip file; others are refused."""
    top = ZipPath.root(path)
    if not any(key.rpartition("/")[2] in ZARR_PARTS for key in top.member_names()):
        raise InputError(f"{path} is a zip file: unpack it first")
    from tilelab.io.images.zarr import ZippedZarrSource

    return ZippedZarrSource


def _volume_reader(path: str, file: LocalFile) -> Reader | None:
    """The reader for an opened file, not empty, by its first bytes; None for one that is neither HDF5 nor MRC.

    Raises:
        InputError: it is an MRC file that is compressed as a whole.
    """
    if any(file.size >= at + 8 and file.read(at, 8) == _HDF5 for at in _USER_BLOCKS):
        from tilelab.io.images.hdf5 import Hdf5Source

        return Hdf5Source
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    stamped = file.size >= _MRC_STAMP + 4 and file.read(_MRC_STAMP, 3) == b"MAP"
    if stamped or (suffixes and suffixes[-1] in _MRC_SUFFIXES):
        from tilelab.io.images.mrc import MrcSource

        return MrcSource
    if file.size >= 3 and file.read(0, 3).startswith((_GZIP, _BZIP2)) and {*suffixes} & {".map", *_MRC_SUFFIXES}:
        raise InputError(f"{path} is compressed as a whole, so no part of it can be read alone: unpack it first")
    return None


def _folder_reader(path: Path) -> Reader | None:
    """The reader for a folder that is an N5 container, group or dataset, or a precomputed volume; None for another."""
    if (path / "attributes.json").is_file() or any(".n5" in p.suffixes for p in (path, *path.absolute().parents)):
        from tilelab.io.images.n5 import N5Source

        return N5Source
    if is_precomputed(path):
        from tilelab.io.images.precomputed import PrecomputedSource

        return PrecomputedSource
    return None


def _open_remote(place: RemotePath, level: int, series: str | None) -> Source:
    """Open a remote Zarr, OME-Zarr or TIFF.

    Raises:
        InputError: it does not exist, cannot be reached or read, or is of another format.
    """
    if place.suffix.lower() in _TIFF_SUFFIXES or not _is_zarr(place):
        _check_tiff(place)
        from tilelab.io.images.tiff import TiffSource

        return TiffSource(place, level, series)
    from tilelab.io.images.zarr import ZarrSource

    return ZarrSource(place, level, series)


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
        if place.name in ZARR_PARTS:
            raise InputError(f"{place} is a part of {place.parent}: give that folder")
        raise InputError(f"{place} is of an unknown format: remote images are Zarr, OME-Zarr or TIFF; copy others here")
