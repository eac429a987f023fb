"""The labels of a small plane as a palette PNG: pixel values are class indices, shown in the classes' colours."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.results.result import Result, ResultInfo, encode_info, parse_info, read_result
from tilelab.io.storage.place import Address
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import replacing

_MOST = 20_000
"""Pixels on a side; what opens a PNG decodes all of it."""
_ROWS = 256
_DEFLATE_LEVEL = 6
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORD = b"tilelab\0\0\0\0\0"
"""Of the text that says what the result says of itself: not compressed, in no language."""


def write_png(result: Address, out: str | Path) -> Path:
    """Write the labels of a plane as an 8-bit palette PNG, streamed row by row.

    Args:
        result: the OME-Zarr folder.
        out: the file, replaced if it exists; it appears whole or not at all.

    Returns:
        `out`.

    Raises:
        InputError: `result` is not a result or is corrupt.
        OutputError: the result is a stack, too large or has no labels, or the disk is full or unwritable.
    """
    opened, path = read_result(result), Path(out)
    _check(opened, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            _encode(opened, file)
    except OSError as error:
        raise output_error(path, error) from error
    return path


def check_png(shape: tuple[int, ...], out: str | Path) -> None:
    """Refuse what a PNG cannot hold, before any work is done.

    Args:
        shape: of the image, ``(y, x)`` or ``(z, y, x)``.
        out: the file that was asked for, for the message.

    Raises:
        OutputError: it is a stack or too large.
    """
    *lead, y, x = shape
    others = "use .ome.zarr or .tif"
    if lead and lead[0] > 1:
        raise OutputError(f"{out}: a PNG holds one plane, the result has {lead[0]} slices: {others}")
    if max(y, x) > _MOST:
        raise OutputError(f"{out}: a PNG of {x} x {y} px is too large to be opened (at most {_MOST} a side): {others}")


def read_png_info(path: str | Path) -> ResultInfo:
    """What the result said of itself that `write_png` made a file of.

    Raises:
        InputError: the file was not made by `write_png`.
    """
    try:
        with Path(path).open("rb") as file:
            whole = file.read(8) == _SIGNATURE
            while whole and len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
                length = int.from_bytes(head[:4], "big")
                data = file.read(length + 4)[:length]
                if head[4:] == b"iTXt" and data.startswith(_KEYWORD):
                    return parse_info(data.removeprefix(_KEYWORD), path)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    raise InputError(f"{path} was not made by tilelab")


def _check(result: Result, path: Path) -> None:
    """Refuse what cannot be written."""
    if not result.labels:
        raise OutputError(f"{path}: {result.path} has no labels to write as PNG")
    check_png(result.labels[0].shape, path)


def _encode(result: Result, file: BinaryIO) -> None:
    """Write the PNG's chunks."""
    labels = result.labels[0]
    height, width = labels.shape[-2:]
    file.write(_SIGNATURE)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))  # 8-bit palette
    _chunk(file, b"PLTE", b"".join(bytes.fromhex(known.color[1:]) for known in result.info.classes))
    size = result.info.pixel_size_nm
    if size is not None:
        per_metre = [min(2**31 - 1, round(1e9 / nm)) for nm in size[-2:]]
        _chunk(file, b"pHYs", struct.pack(">IIB", per_metre[1], per_metre[0], 1))
    names = ", ".join(f"{i} {known.name}" for i, known in enumerate(result.info.classes))
    _chunk(file, b"iTXt", b"Description\0\0\0\0\0" + names.encode(errors="replace"))
    _chunk(file, b"iTXt", _KEYWORD + encode_info(result.info))
    deflate = zlib.compressobj(_DEFLATE_LEVEL)
    lead = (0,) * (len(labels.shape) - 2)
    for y in range(0, height, _ROWS):
        stop = min(height, y + _ROWS)
        rows = labels.read(Box((*lead, y, 0), (*(1 for _ in lead), stop, width))).reshape(stop - y, width)
        # Every row begins with its filter type; 0, none, compresses indices best.
        raw = b"".join(b"\0" + row.tobytes() for row in rows)
        _chunk(file, b"IDAT", deflate.compress(raw))
    _chunk(file, b"IDAT", deflate.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    """Write one chunk with its length and checksum; an empty piece of the pixels is left out."""
    if data or kind == b"IEND":
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
