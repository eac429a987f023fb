"""Files of makers' programs, drawn after the public descriptions of their formats."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.image_files import Array

_DM_TYPES = {"int16": 1, "float32": 2, "uint8": 6, "int32": 7, "int8": 9, "uint16": 10, "uint32": 11, "float64": 12}
_DM_CODES = {"int16": 2, "int32": 3, "uint16": 4, "uint32": 5, "float32": 6, "float64": 7, "uint8": 10, "int8": 10}
_SER_TYPES = {"uint8": 1, "uint16": 2, "uint32": 3, "int8": 4, "int16": 5, "int32": 6, "float32": 7, "float64": 8}


def write_dm3(path: Path, values: Array, *, scale: float = 0.004, units: Sequence[str] = ("µm", "µm", "")) -> None:
    """A DigitalMicrograph 3 file of one image: a tree of tags, big-endian, around little-endian numbers.

    Args:
        path: of the file.
        values: the image, its last axis x.
        scale: of a pixel, in `units` of x, y, z.
        units: of the axes, x first.
    """
    kind = values.dtype.name
    dimension = [
        ("", _group([("Origin", _number("float32", 0)), ("Scale", _number("float32", scale)), ("Units", _text(unit))]))
        for unit in units[: values.ndim]
    ]
    image = _group([
        ("Calibrations", _group([("Dimension", _group(dimension))])),
        ("Data", _array(kind, values)),
        ("DataType", _number("int32", _DM_TYPES[kind])),
        ("Dimensions", _group([("", _number("uint32", n)) for n in values.shape[::-1]])),
        ("PixelDepth", _number("int32", values.itemsize)),
    ])  # fmt: skip
    body = _tags([("ImageList", _group([("", _group([("ImageData", image), ("Name", _text("drawn"))]))]))]) + bytes(8)
    path.write_bytes(struct.pack(">III", 3, len(body) - 4, 1) + body)


def _tags(children: list[tuple[str, bytes]]) -> bytes:
    """A directory: sorted, open, the number of its tags, and those; each begins with its kind."""
    named = (each[:1] + struct.pack(">H", len(name)) + name.encode() + each[1:] for name, each in children)
    return struct.pack(">BBI", 1, 0, len(children)) + b"".join(named)


def _group(children: list[tuple[str, bytes]]) -> bytes:
    return b"\x14" + _tags(children)


def _data(info: Sequence[int], data: bytes) -> bytes:
    return b"\x15%%%%" + struct.pack(f">I{len(info)}I", len(info), *info) + data


def _number(kind: str, value: float) -> bytes:
    return _data([_DM_CODES[kind]], np.array([value], np.dtype(kind).newbyteorder("<")).tobytes())


def _array(kind: str, values: Array) -> bytes:
    return _data([20, _DM_CODES[kind], values.size], values.astype(values.dtype.newbyteorder("<")).tobytes())


def _text(text: str) -> bytes:
    encoded = text.encode("utf-16-le")
    return _data([20, 4, len(encoded) // 2], encoded)


def write_ser(path: Path, values: Array, *, scale_m: float = 4e-9) -> None:
    """A TIA series of images: a header, elements with their calibration, and a table of where they are."""
    frames = values[None] if values.ndim == 2 else values
    count = len(frames)
    where = struct.pack("<IddI", count, 0, 1, 0) + _ser_text("Number") + _ser_text("")
    tables = 30 + len(where)  # of the header, and what describes the one axis of the series
    first = tables + 8 * count
    elements, offsets, tags = [], [], []
    for i, frame in enumerate(frames):
        height, width = frame.shape
        offsets.append(first + sum(map(len, elements)))
        calibration = struct.pack("<ddi", 0, scale_m, 0) * 2
        kind = struct.pack("<Hii", _SER_TYPES[frame.dtype.name], width, height)
        elements.append(calibration + kind + frame[::-1].tobytes())  # rows from the bottom up
        tags.append(struct.pack("<HI", 0x4152, 1_400_000_000 + i))
    at = first + sum(map(len, elements))
    tag_offsets = [at + 6 * i for i in range(count)]
    header = struct.pack("<HHHIIIIiI", 0x4949, 0x0197, 0x0210, 0x4122, 0x4152, count, count, 0, 1)
    header = header[:-8] + struct.pack("<II", tables, 1)
    body = struct.pack(f"<{2 * count}I", *offsets, *tag_offsets)
    path.write_bytes(header + where + body + b"".join(elements) + b"".join(tags))


def _ser_text(text: str) -> bytes:
    return struct.pack("<I", len(text)) + text.encode()


def opened(path: Path) -> Any:
    """What openreadout reads of the first image, without axes of one entry."""
    import openreadout

    with openreadout.File(path) as file:
        return file.read_image(0).squeeze()
