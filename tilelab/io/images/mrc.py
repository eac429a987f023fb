"""MRC files (MRC2014, CCP4, IMOD): the header is read by mrcfile, pixels lie behind it as they are."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.optional import one_line, require
from tilelab.io.images.source import Source, check_level
from tilelab.io.images.units import length_nm
from tilelab.io.storage.files import hash_file, read_region
from tilelab.io.storage.local_file import LocalFile

_HEADER = 1024
_MODES = {0: "int8", 1: "int16", 2: "float32", 6: "uint16", 12: "float16"}
_IMOD_STAMP = 1146047817
_IMOD = slice(40, 48)  # of the header's ``extra2``: stamp and flags
_IMOD_SIGNED = 1
_VOLUME_STACK = 401
_DEFAULT_NM = 0.1
_SAMPLED = 2**20
_SIGNED = 128
_CLEARLY = 0.8


class MrcSource(Source):
    """The pixels of an MRC file.

    8-bit pixels (mode 0) are signed by the standard, but unsigned where IMOD says so, or where the header's maximum is
    beyond 127; where the header knows no range, they are what makes neighbours more alike, and that is said.  Signed 8-
    and 16-bit pixels become float32 with the same values (see `view.py`), so nothing is shifted or clipped.  The voxel
    size is the cell's size over its sampling, in Ångström.

    Raises:
        InputError: the file is damaged, truncated, or of a mode (complex, 4-bit) that is no image.
    """

    format = "MRC"

    def __init__(self, path: str, level: int = 0) -> None:
        mrcfile = require("mrcfile", "MRC")
        check_level(path, level, 1)
        self.uri = path
        self._file = LocalFile(path)
        try:
            if self._file.size < _HEADER:
                raise InputError(f"{path} is truncated: an MRC header has {_HEADER} bytes, the file {self._file.size}")
            self._take_facts(_read_header(mrcfile, path))
        except InputError:
            self._file.close()
            raise

    def read(self, box: Box) -> npt.NDArray[np.generic]:
        out = np.empty(box.shape, self._stored)
        read_region(self._file, self._offset, self.shape, box, out)
        return out.astype(self.dtype, copy=False)

    def fingerprint(self) -> dict[str, str]:
        return hash_file(self._file)

    def close(self) -> None:
        self._file.close()

    def _take_facts(self, header: Any) -> None:
        nx, ny, nz, mode = (int(header[name]) for name in ("nx", "ny", "nz", "mode"))
        if min(nx, ny, nz) < 1:
            raise InputError(f"{self.uri} is empty or no MRC file: its header says {nx} x {ny} x {nz}")
        if mode not in _MODES:
            known = ", ".join(f"{number} ({name})" for number, name in _MODES.items())
            raise InputError(f"{self.uri} has mode {mode}, which is no image of real numbers: known are {known}")
        if header["map"].tobytes()[:3] != b"MAP" and _order(header) is None:
            raise InputError(f"{self.uri} is a damaged MRC file, or none: its header has neither stamp nor axes")
        offset = _HEADER + max(0, int(header["nsymbt"]))
        kind = _MODES[mode]
        if mode == 0 and self._unsigned(header, offset, nx * ny * nz):
            kind = "uint8"
        self._stored = np.dtype(kind).newbyteorder(header["nx"].dtype.byteorder)
        self.dtype = self._stored.newbyteorder("=")
        self._offset = offset
        needed = self._offset + nx * ny * nz * self.dtype.itemsize
        if self._file.size < needed:
            raise InputError(f"{self.uri} is truncated: {needed} bytes are needed, it has {self._file.size}")
        letters, self.shape = _axes(header), (nz, ny, nx)
        deep = int(header["mz"])
        if int(header["ispg"]) >= _VOLUME_STACK and 0 < deep < nz and nz % deep == 0:
            self.axes, self.shape = f"t{letters}", (nz // deep, deep, ny, nx)
        else:
            self.axes = letters
        self.chunks = (1,) * len(self.shape)
        self.levels = (self.shape,)
        self.scale_nm = _scale(header)
        if self.scale_nm and all(math.isclose(size, _DEFAULT_NM, rel_tol=1e-6) for size in self.scale_nm.values()):
            because = "its header says 1 Å, which programs write too where they do not know"
            self.assumptions += (
                Assumption(what=f"the pixel size of {self.uri}", taken="0.1 nm", because=because, flag="--pixel-size"),
            )
        self.details = {"layout": f"mode {mode}, {kind}"}

    def _unsigned(self, header: Any, offset: int, count: int) -> bool:
        """Whether 8-bit pixels are 0 to 255; an assumption where the header does not know their range."""
        told = _unsigned(header)
        if told is not None:
            return told
        step = max(1, count // _SAMPLED)
        size = min(_SAMPLED, count, max(0, self._file.size - offset))
        at = offset + (count - size) // 2 if step > 1 else offset
        taken = np.frombuffer(self._file.read(at, size), np.uint8) if size else np.zeros(1, np.uint8)
        if taken.max() < _SIGNED:
            return False  # the same either way
        rough, smooth = (np.abs(np.diff(v.astype(np.int32))).mean() for v in (taken, taken.view(np.int8)))
        signed = bool(smooth < _CLEARLY * rough)
        name = "signed" if signed else "unsigned"
        because = "8-bit MRC files are written both ways, its header does not know the range, and so "
        because += "neighbours are alike" if signed or rough < _CLEARLY * smooth else "most old ones are"
        self.assumptions += (Assumption(what=f"the 8-bit pixels of {self.uri}", taken=name, because=because),)
        return not signed


def _read_header(mrcfile: Any, path: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of them is checked by us
            with mrcfile.open(path, mode="r", permissive=True, header_only=True) as opened:
                return opened.header.copy()
    except Exception as error:
        raise InputError(f"{path} is no readable MRC file: {one_line(error)}") from error


def _unsigned(header: Any) -> bool | None:
    """Whether 8-bit pixels are 0 to 255; None where nothing tells."""
    order = header["nx"].dtype.newbyteorder("=") if header["nx"].dtype.isnative else header["nx"].dtype
    stamp, flags = np.frombuffer(header["extra2"].tobytes()[_IMOD], order)
    if stamp == _IMOD_STAMP:
        return not flags & _IMOD_SIGNED
    low, high = float(header["dmin"]), float(header["dmax"])
    if high > np.iinfo(np.int8).max:
        return True
    return False if low < high and math.isfinite(high - low) else None  # the standard: else it is not determined


def _axes(header: Any) -> str:
    """What sections, rows and columns are."""
    return _order(header) or "zyx"


def _order(header: Any) -> str | None:
    """The axes that a header states; None where they are none."""
    stored = [int(header[name]) for name in ("maps", "mapr", "mapc")]
    return "".join("xyz"[n - 1] for n in stored) if sorted(stored) == [1, 2, 3] else None


def _scale(header: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for axis in "xyz":
        samples = int(header[f"m{axis}"])
        size = length_nm(float(header["cella"][axis]) / samples, "angstrom") if samples > 0 else None
        if size is not None and math.isfinite(size):
            found[axis] = size
    return found
