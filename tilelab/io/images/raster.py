"""PNG and JPEG: one plane, decoded as a whole when first needed.

imagecodecs decodes them: it keeps 16 bits, has no limit on the number of pixels, and releases the GIL.  PNGs of fewer
than 8 bits are scaled to 8 and palettes expanded to colours, as every PNG reader does.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.source import Source, check_level
from tilelab.io.images.stated import Stated, stated_beside
from tilelab.io.images.units import resolution_nm
from tilelab.io.storage.decode import LARGE_BYTES, DecodedPieces
from tilelab.io.storage.files import hash_file
from tilelab.io.storage.local_file import LocalFile
from tilelab.text import format_bytes

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}
_PALETTE = 3  # PNG's colour type
_FRAME_MARKERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN_MARKER = 0xDA
_END_OF_JPEG = b"\xff\xd9"


class _Header(NamedTuple):
    """What a file says of itself before its pixels begin, at byte `pixels`."""

    height: int
    width: int
    samples: int
    bits: int
    scale_nm: dict[str, float]
    pixels: int
    palette: bool = False


class RasterSource(Source):
    """A PNG or JPEG file.

    Raises:
        InputError: the file is missing, damaged, truncated, or a CMYK JPEG.
    """

    def __init__(self, path: str, level: int = 0) -> None:
        check_level(path, level, 1)
        self.uri = path
        self._file = LocalFile(path)
        self._png = self._file.read(0, min(8, self._file.size)) == PNG_MAGIC
        self.format = "PNG" if self._png else "JPEG"
        try:
            header = _png_header(self._file) if self._png else _jpeg_header(self._file)
        except (struct.error, ValueError) as error:
            raise InputError(f"{path} is a damaged {self.format} file: {error}") from error
        if header.samples == 4 and not self._png:
            raise InputError(f"{path} has CMYK colours: convert it to RGB or grey first")
        self._pixels, self._palette, self._indices = header.pixels, header.palette, False
        self.axes = "yx" if header.samples == 1 else "yxs"
        self.shape = (header.height, header.width, header.samples)[: len(self.axes)]
        self.dtype = np.dtype(np.uint8 if header.bits <= 8 else np.uint16)
        self.chunks = self.shape
        self.levels = (self.shape,)
        self.rgb = header.samples >= 3
        self.samples = 1 if header.samples == 2 else None
        stated = Stated(header.scale_nm) if header.scale_nm else stated_beside(Path(path))
        self.scale_nm = stated.scale_nm
        self.assumptions = stated.of_image(path, header.width)
        self.bar, self.bar_said = stated.bar_rows(header.width, header.height), stated.bar_said
        self.details = {"compression": self.format.lower()}
        self._kept = DecodedPieces()
        self._bytes = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize
        if self._bytes > LARGE_BYTES:
            size = format_bytes(self._bytes)
            self.warnings += (
                f"{path} is decoded as a whole, {size} in memory: `tilelab convert` rewrites it in tiles",
            )

    def read(self, box: Box) -> Array:
        plane = self._kept.get(0, self._bytes, self._decode, keep=box.shape[:2] != self.shape[:2])
        return plane[box.slices].copy()

    def show_indices(self) -> None:
        if self._palette:
            self._indices, self.rgb, self.samples, self.axes = True, False, None, "yx"
            self.shape = self.chunks = self.shape[:2]
            self.levels = (self.shape,)
            self._bytes = math.prod(self.shape)

    def fingerprint(self) -> dict[str, str]:
        return hash_file(self._file)

    def close(self) -> None:
        self._kept.clear()
        self._file.close()

    def _decode(self) -> Array:
        data = self._file.read(0, self._file.size)
        try:
            if not self._png and data.rfind(_END_OF_JPEG) < self._pixels:
                raise ValueError("it ends before its image does")  # libjpeg would fill the rest with grey, silently
            if self._indices:
                plane = _png_indices(_pixel_chunks(data))
            else:
                plane = imagecodecs.png_decode(_pixel_chunks(data)) if self._png else imagecodecs.jpeg8_decode(data)
        except (RuntimeError, ValueError, OSError, SyntaxError, struct.error) as error:
            raise InputError(f"{self.uri} is a corrupt or truncated {self.format} file: {error}") from error
        if plane.shape != self.shape or plane.dtype != self.dtype:
            raise InputError(f"{self.uri} is corrupt: its header says {self.shape}, its pixels are {plane.shape}")
        return plane


def _png_header(file: LocalFile) -> _Header:
    """Walk the chunks before the pixels."""
    width, height, depth, color = struct.unpack(">II2B", file.read(16, 10))
    if file.read(12, 4) != b"IHDR" or color not in _PNG_SAMPLES or not (width and height):
        raise ValueError("its first chunk is no image header")
    samples = _PNG_SAMPLES[color]
    scale: dict[str, float] = {}
    position = 8
    while True:
        length, name = struct.unpack(">I4s", file.read(position, 8))
        if name in (b"IDAT", b"IEND"):
            break
        if name == b"tRNS" and color in (0, 2, 3):
            samples += 1  # transparency becomes alpha
        if name == b"pHYs" and length == 9:
            x, y, unit = struct.unpack(">IIB", file.read(position + 8, 9))
            sizes = {"y": resolution_nm(y / 100, "cm"), "x": resolution_nm(x / 100, "cm")} if unit == 1 else {}
            scale = {letter: size for letter, size in sizes.items() if size is not None}
        position += 12 + length
    return _Header(height, width, samples, depth, scale, position, color == _PALETTE)


def _pixel_chunks(data: bytes) -> bytes:
    """A PNG file without what its pixels do not need, checked; libpng warns of the rest on the terminal."""
    view, position = memoryview(data), 8
    kept: list[bytes | memoryview] = [PNG_MAGIC]
    name = b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):
            raise ValueError("it ends before its image does")
        if name[:1].isupper() or name == b"tRNS":
            if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
                raise ValueError(f"the checksum of the chunk at byte {position} is wrong")
            kept.append(view[position:end])
        position = end
    return b"".join(kept)


def _png_indices(data: bytes) -> Array:
    """The indices into a PNG's palette, uint8 ``(y, x)``; imagecodecs has colours only."""
    from PIL.PngImagePlugin import PngImageFile  # Pillow.open has a limit on pixels, this has none

    with PngImageFile(io.BytesIO(data)) as image:
        return np.array(image, dtype=np.uint8)


def _jpeg_header(file: LocalFile) -> _Header:
    """Walk the segments before the first scan."""
    frame = None
    position = 2
    while True:
        escape, marker, length = struct.unpack(">BBH", file.read(position, 4))
        if escape != 0xFF:
            raise ValueError(f"there is no segment at byte {position}")
        if marker == 0xFF:  # padding
            position += 1
            continue
        if marker in _FRAME_MARKERS:
            frame = struct.unpack(">BHHB", file.read(position + 4, 6))
        position += 2 + length
        if marker == _SCAN_MARKER:
            break
    if frame is None or not (frame[1] and frame[2]):
        raise ValueError("it has no frame header")
    bits, height, width, samples = frame
    return _Header(height, width, samples, bits, {}, position)
