"""Which of the volume formats a file or folder is: HDF5, MRC, N5, neuroglancer precomputed.

Their readers need packages that the core does not (``pip install tilelab[formats]``) and are imported when one is met.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tilelab.errors import InputError
from tilelab.io.images.optional import is_precomputed
from tilelab.io.images.source import Source
from tilelab.io.storage.local_file import LocalFile

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (0, 512, 1024, 2048)
_MRC_SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali")
_MRC_STAMP = 208
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"


def find_file_reader(path: str, file: LocalFile) -> Callable[[str, int], Source] | None:
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


def find_folder_reader(path: Path) -> Callable[[str, int], Source] | None:
    """The reader for a folder that is an N5 container, group or dataset, or a precomputed volume; None for another."""
    if (path / "attributes.json").is_file() or any(".n5" in p.suffixes for p in (path, *path.absolute().parents)):
        from tilelab.io.images.n5 import N5Source

        return N5Source
    if is_precomputed(path):
        from tilelab.io.images.precomputed import PrecomputedSource

        return PrecomputedSource
    return None
