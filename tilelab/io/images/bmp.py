"""BMP without compression, as microscopes write it: grey or a palette of 8 bits, colours of 24 or 32; read by rows."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.source import Source, check_level
from tilelab.io.images.stated import Stated, stated_beside
from tilelab.io.images.units import resolution_nm
from tilelab.io.images.view import luma
from tilelab.io.storage.files import hash_file
from tilelab.io.storage.local_file import LocalFile

_HEADER, _BITFIELDS = 54, 3
_MASKS = (0xFF0000, 0xFF00, 0xFF)


class BmpSource(Source):
    """A BMP file.

    Raises:
        InputError: the file is damaged, truncated, compressed, or of another number of bits.
    """

    format = "BMP"

    def __init__(self, path: str, level: int = 0) -> None:
        check_level(path, level, 1)
        self.uri = path
        self._file = LocalFile(path)
        try:
            self._describe(path)
        except InputError:
            self._file.close()
            raise

    def _describe(self, path: str) -> None:
        if self._file.size < _HEADER:
            raise InputError(f"{path} is truncated: a BMP header has {_HEADER} bytes, the file {self._file.size}")
        self._offset, size, width, height, _, bits, kind = struct.unpack("<IIiiHHI", self._file.read(10, 24))
        x, y, colours = struct.unpack("<iiI", self._file.read(38, 12))
        plain = kind == 0 or (kind == _BITFIELDS and bits == 32 and self._masks() == _MASKS)
        if bits not in (8, 24, 32) or not plain:
            raise InputError(f"{path} is a BMP file of {bits} bits, compression {kind}: save it as PNG or TIFF")
        if width < 1 or not height:
            raise InputError(f"{path} is a damaged BMP file: it says that it has {width} x {height} pixels")
        self._upwards, self._bytes = height > 0, bits // 8
        self._stride = -(-width * self._bytes // 4) * 4
        height = abs(height)
        if (end := self._offset + self._stride * height) > self._file.size:
            raise InputError(f"{path} is truncated: its pixels end at byte {end}, the file has {self._file.size}")
        self.rgb = self._bytes > 1
        self.axes = "yxs" if self.rgb else "yx"
        self.shape = (height, width, 3)[: len(self.axes)]
        self.dtype = np.dtype(np.uint8)
        self.chunks = (1, *self.shape[1:])
        self.levels = (self.shape,)
        sizes = {"y": resolution_nm(y / 100, "cm"), "x": resolution_nm(x / 100, "cm")}
        known = {letter: nm for letter, nm in sizes.items() if nm is not None}
        stated = Stated(known) if len(known) == 2 else stated_beside(Path(path))
        self.scale_nm = stated.scale_nm
        self.assumptions = stated.of_image(path, width)
        self.bar, self.bar_said = stated.bar_rows(width, height), stated.bar_said
        self.details = {"compression": None}
        if not self.rgb:
            self._set_palette(14 + size, colours or 256)

    def _masks(self) -> tuple[int, ...]:
        return struct.unpack("<3I", self._file.read(_HEADER, 12))

    def _set_palette(self, at: int, colours: int) -> None:
        """What stored values stand for, unless they are grey values as they are."""
        if colours > 256 or at + 4 * colours > self._offset:
            raise InputError(f"{self.uri} is a damaged BMP file: its palette has {colours} colours")
        table = np.zeros((256, 3), np.uint8)
        table[:colours] = np.frombuffer(self._file.read(at, 4 * colours), np.uint8).reshape(-1, 4)[:, 2::-1]
        grey = np.arange(256, dtype=np.uint8)
        if (table[:colours] != grey[:colours, None]).any():
            self.lut = luma(table)
            if (table != table[:, :1]).any():
                self.warnings += (f"{self.uri} has a colour palette: its colours are read as grey",)

    def show_indices(self) -> None:
        self.lut = None

    def read(self, box: Box) -> Array:
        (top, left), (bottom, right) = box.start[:2], box.stop[:2]
        first = self.shape[0] - bottom if self._upwards else top
        data = self._file.read(self._offset + first * self._stride, (bottom - top) * self._stride)
        rows = np.frombuffer(data, np.uint8).reshape(bottom - top, self._stride)
        rows = rows[::-1] if self._upwards else rows
        pixels = rows[:, left * self._bytes : right * self._bytes]
        if not self.rgb:
            return pixels.copy()
        samples = pixels.reshape(*pixels.shape[:1], -1, self._bytes)[..., 2::-1]
        return samples[..., box.start[2] : box.stop[2]].copy()

    def fingerprint(self) -> dict[str, str]:
        return hash_file(self._file)

    def close(self) -> None:
        self._file.close()
