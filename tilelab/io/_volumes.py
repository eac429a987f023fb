"""Which of the volume formats a file or folder is: HDF5, MRC, N5, neuroglancer precomputed.

Their readers need packages that the core does not (``pip install tilelab[formats]``) and are imported when one is met.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tilelab.errors import InputError
from tilelab.io._files import ReadOnlyFile
from tilelab.io._source import Source

_HDF5 = b"\x89HDF\r\n\x1a\n"
_USER_BLOCKS = (0, 512, 1024, 2048)
_MRC_SUFFIXES = (".mrc", ".mrcs", ".rec", ".st", ".ali")
_MRC_STAMP = 208
_GZIP, _BZIP2 = b"\x1f\x8b", b"BZh"


def require(module: str, what: str) -> Any:
    """The optional package `module`, which reading `what` takes.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"reading {what} needs {module}, which cannot be imported ({error}): pip install tilelab[formats]"
        ) from error


def split_member(path: str) -> tuple[str, str]:
    """``file.h5::/path/in/file`` as the file and the path in it, which is empty where none is named."""
    if "::" not in path or Path(path).exists():
        return path, ""
    file, _, member = path.partition("::")
    return file, member


def find_file_reader(path: str, file: ReadOnlyFile) -> Callable[[str, int], Source] | None:
    """The reader for an opened file, not empty, by its first bytes; None for one that is neither HDF5 nor MRC.

    Raises:
        InputError: it is an MRC file that is compressed as a whole.
    """
    if any(file.size >= at + 8 and file.read(at, 8) == _HDF5 for at in _USER_BLOCKS):
        from tilelab.io._hdf5 import Hdf5Source

        return Hdf5Source
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    stamped = file.size >= _MRC_STAMP + 4 and file.read(_MRC_STAMP, 3) == b"MAP"
    if stamped or (suffixes and suffixes[-1] in _MRC_SUFFIXES):
        from tilelab.io._mrc import MrcSource

        return MrcSource
    if file.size >= 3 and file.read(0, 3).startswith((_GZIP, _BZIP2)) and {*suffixes} & {".map", *_MRC_SUFFIXES}:
        raise InputError(f"{path} is compressed as a whole, so no part of it can be read alone: unpack it first")
    return None


def find_folder_reader(path: Path) -> Callable[[str, int], Source] | None:
    """The reader for a folder that is an N5 container, group or dataset, or a precomputed volume; None for another."""
    if (path / "attributes.json").is_file() or any(".n5" in p.suffixes for p in (path, *path.absolute().parents)):
        from tilelab.io._n5 import N5Source

        return N5Source
    if is_precomputed(path):
        from tilelab.io._precomputed import PrecomputedSource

        return PrecomputedSource
    return None


def is_precomputed(path: Path) -> bool:
    """Whether the folder `path` is a neuroglancer precomputed volume, or by its name should be."""
    if path.suffix == ".precomputed":
        return True
    info = path / "info"
    if not info.is_file():
        return False
    try:
        document = json.loads(info.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and (
        "scales" in document or str(document.get("@type", "")).startswith("neuroglancer_")
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is incomplete: it has no {path.name}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return document


def one_line(error: BaseException) -> str:
    """What a library says, on one line and without its internals."""
    text = " ".join(str(error).split())
    for end in (" [tensorstore_spec=", " [source locations=", " [source_location"):
        text = text.partition(end)[0]
    return text or type(error).__name__
