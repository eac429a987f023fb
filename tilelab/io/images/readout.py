"""Files of microscopes' own programs, with openreadout: DigitalMicrograph, TIA, ZEN and other makers'.

    .dm3 .dm4       Gatan DigitalMicrograph         .czi    ZEISS
    .ser .emi       FEI TIA                         .lif    Leica       .nd2    Nikon

The pixels of .dm3, .dm4, .ser and .emi are read where they lie, others decoded by tiles or planes.  Spectra, spectrum
images, 4-D STEM and complex pictures (Fourier transforms) are refused, by what they are.
"""

from __future__ import annotations

import glob
import math
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.optional import one_line, require
from tilelab.io.images.several import choose, guessed
from tilelab.io.images.source import Source, check_level, whole_piece_warning
from tilelab.io.images.units import length_nm
from tilelab.io.storage.decode import LARGE_BYTES, DecodedPieces
from tilelab.io.storage.files import hash_file, read_region
from tilelab.io.storage.local_file import LocalFile
from tilelab.text import size_text

_KINDS = {
    "dm": "DigitalMicrograph",
    "ser": "TIA series",
    "czi": "CZI",
    "lif": "Leica LIF",
    "nd2": "Nikon ND2",
}
_CZI = b"ZISRAWFILE"
_SUFFIXES = {".dm3", ".dm4", ".ser", ".emi", ".czi", ".lif", ".nd2"}
_DTYPES = {"float": "float32", "double": "float64", "bit": "bool"}
_TILES = {"y": "height", "x": "width"}
_NO_IMAGE = "tilelab segments images"
_SER_HEADER = 50
"""Bytes of calibration, type and extent in front of the pixels of an image in a .ser file."""


def is_readout(path: str, head: bytes) -> bool:
    """Whether a file, by its name and first bytes, is one that openreadout reads for us."""
    return Path(path).suffix.lower() in _SUFFIXES or head.startswith(_CZI)


class ReadoutSource(Source):
    """One image of a file, at one resolution level; of several the first, unless `series` names another.

    Raises:
        InputError: openreadout is not installed, the file is damaged, or holds no image.
    """

    chooses = True

    def __init__(self, path: str, level: int = 0, series: str | None = None) -> None:
        suffix = Path(path).suffix.lower()
        self._readout = require("openreadout", f"{suffix} files")
        self.uri = self._path = path
        self._files: dict[str, LocalFile] = {}
        self._bare: list[tuple[LocalFile, int]] = []
        self._upwards = self._tiled = False
        self._kept = DecodedPieces()
        self._file = self._ask(lambda: self._readout.File(path), "opened")
        try:
            facts = self._ask(lambda: self._file.info, "read")
            kind = str(facts["format"]["id"])
            self.format = _KINDS.get(kind, str(facts["format"]["name"]))
            self._take_image(list(facts["images"]), kind, level, series)
        except BaseException:
            self.close()
            raise

    def _ask(self, what: Callable[[], Any], verb: str) -> Any:
        """What openreadout answers; its errors in our words."""
        try:
            return what()
        except (self._readout.OpenReadoutError, KeyError, ValueError, RuntimeError) as error:
            hint = getattr(error, "hint", None)
            raise InputError(f"{self.uri} cannot be {verb}: {one_line(error)}{f' ({hint})' if hint else ''}") from error

    def _take_image(self, images: list[dict[str, Any]], kind: str, level: int, series: str | None) -> None:
        shown = [_describe(image) for image in images]
        problems = [_problem(image) for image in images]
        good = [i for i, problem in enumerate(problems) if problem is None]
        chosen = choose(self.uri, series, [str(image.get("name") or "") for image in images], shown)
        if chosen is None:
            if not good:
                held = "; ".join(dict.fromkeys(p for p in problems if p)) or "no image"
                raise InputError(f"{self.uri} holds {held}: {_NO_IMAGE}")
            chosen = good[0]
            if len(good) > 1:
                self.assumptions += (guessed(self.uri, chosen, shown, "it is the first"),)
        if problems[chosen] is not None:
            raise InputError(f"image {chosen} of {self.uri} is {problems[chosen]}: {_NO_IMAGE}")
        image = images[chosen]
        levels = _levels(image)
        check_level(self.uri, level, len(levels))
        self._image, self._level = chosen, level
        self.series = tuple(shown)
        samples = int(image.get("samples_per_pixel") or 1)
        self.rgb = samples >= 3
        stored = str(image["pixel_type"])
        self.dtype = np.dtype(_DTYPES.get(stored, stored))
        sizes = {a: int(image[f"size_{a}"]) for a in "tczyx"} | {"s": samples}
        sizes |= {a: int(levels[level][f"size_{a}"]) for a in "yx"}
        self._order = [a for a in "tczyxs" if sizes[a] > 1 or a in "yx"]
        self.shape = tuple(sizes[a] for a in self._order)
        self.levels = tuple(
            tuple({**sizes, "y": int(each["size_y"]), "x": int(each["size_x"])}[a] for a in self._order)
            for each in levels
        )
        needed = math.prod(self.shape) * self.dtype.itemsize
        there = sum(path.stat().st_size for path in self._paths())
        if kind in ("dm", "ser") and self.dtype.kind != "b" and needed > there:
            raise InputError(f"{self.uri} is damaged: its pixels take {needed} bytes, it has {there}")
        self._bare = self._find_bare(kind, samples)
        if self._bare:
            self.chunks = (1,) * len(self.shape)
        else:
            tile = sizes | {a: int(levels[level].get(f"tile_{name}") or sizes[a]) for a, name in _TILES.items()}
            self._tiled = f"tile_{_TILES['x']}" in levels[level]
            self.chunks = tuple(1 if a in "tcz" else min(sizes[a], tile[a]) for a in self._order)
            nbytes = math.prod(self.chunks) * self.dtype.itemsize
            self.warnings += (whole_piece_warning(self.uri, nbytes),) if nbytes > LARGE_BYTES else ()
        third, thickness = _third_axis(image, kind)
        self.axes = "".join(third if a == "t" else a for a in self._order)
        self.scale_nm = _scale(image, levels[level]) | thickness
        self.details = {"layout": "planes" if self._bare else "tiles" if self._tiled else None, "images": len(images)}

    def _find_bare(self, kind: str, samples: int) -> list[tuple[LocalFile, int]]:
        """File and first byte of every frame (t, c or z) whose pixels lie as they are; empty where they do not."""
        if kind not in ("dm", "ser") or samples != 1 or self.dtype.kind not in "iuf" or len(self.shape) > 3:
            return []
        frames, nbytes = math.prod(self.shape[:-2]), math.prod(self.shape[-2:]) * self.dtype.itemsize
        entries = self._ask(lambda: self._file.entries(), "read")
        starts: list[tuple[str, int]] = []
        name, swap = self._path, False
        for entry in entries:
            details = entry.get("details") or {}
            swap |= details.get("byte_order", "little-endian") != "little-endian"
            if entry["kind"] == "container":
                name = str(entry["name"])
            elif (
                entry.get("image") == self._image and entry["kind"] == "image" and entry.get("size") == frames * nbytes
            ):
                starts += [(name, entry["offset"] + i * nbytes) for i in range(frames)]
            elif entry.get("image") == self._image and entry["kind"] == "plane" and entry.get("size") == nbytes:
                starts.append((name, entry["offset"] + _SER_HEADER))
        if len(starts) != frames or swap or sys.byteorder != "little":
            return []
        self._upwards = kind == "ser"
        self._files = {name: LocalFile(name) for name, _ in starts}
        for name, start in starts:
            if start + nbytes > self._files[name].size:
                raise InputError(f"{self.uri} is truncated: its pixels end at byte {start + nbytes} of {name}")
        return [(self._files[name], start) for name, start in starts]

    def read(self, box: Box) -> Array:
        at = dict(zip(self._order, zip(box.start, box.stop, strict=True), strict=True))
        (y0, y1), (x0, x1) = at["y"], at["x"]
        samples = slice(*at["s"]) if "s" in at else None
        planes = [range(*at.get(a, (0, 1))) for a in "tcz"]
        out = np.empty((*map(len, planes), y1 - y0, x1 - x0, *((box.shape[-1],) if samples else ())), self.dtype)
        for at_out, (t, c, z) in zip(np.ndindex(*out.shape[:3]), product(*planes), strict=True):
            if self._bare:
                self._read_bare(t + c + z, (y0, y1), (x0, x1), out[at_out])
            else:
                plane = self._plane(t, c, z, (y0, y1), (x0, x1))
                out[at_out] = plane if samples is None else plane[..., samples]
        return out.reshape(box.shape)

    def _read_bare(self, frame: int, y: tuple[int, int], x: tuple[int, int], out: Array) -> None:
        """Read a part of a frame where it lies; TIA's rows are stored from the bottom up."""
        file, start = self._bare[frame]
        height, width = self.shape[-2:]
        first, last = (height - y[1], height - y[0]) if self._upwards else y
        read_region(file, start, (height, width), Box((first, x[0]), (last, x[1])), out)
        if self._upwards:
            out[...] = out[::-1].copy()

    def _plane(self, t: int, c: int, z: int, y: tuple[int, int], x: tuple[int, int]) -> Array:
        """A part of a plane, decoded; of one that is stored in one piece the whole is kept for the next part."""
        height, width = (self.shape[self._order.index(a)] for a in "yx")

        def decode(top: int = 0, left: int = 0, rows: int = height, columns: int = width) -> Array:
            plane: Array = self._ask(
                lambda: self._file.read_plane(
                    image=self._image, c=c, z=z, t=t, level=self._level, region=(left, top, columns, rows)
                ),
                f"read in plane t={t} c={c} z={z}",
            )
            if plane.shape[:2] != (rows, columns):
                raise InputError(f"{self.uri} is corrupt: plane t={t} c={c} z={z} decodes to {size_text(plane.shape)}")
            return plane

        if self._tiled:
            return decode(y[0], x[0], y[1] - y[0], x[1] - x[0])
        whole = (y, x) == ((0, height), (0, width))
        nbytes = math.prod(self.chunks) * self.dtype.itemsize
        return self._kept.get((t, c, z), nbytes, decode, keep=not whole)[slice(*y), slice(*x)]

    def fingerprint(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for i, each in enumerate(self._paths()):
            with closing(LocalFile(str(each))) as file:
                found |= {f"{i}.{key}" if i else key: value for key, value in hash_file(file).items()}
        return found | {"image": str(self._image)}

    def _paths(self) -> list[Path]:
        """The file, and those beside it that hold the pixels of a .emi."""
        path = Path(self._path)
        beside = sorted(path.parent.glob(f"{glob.escape(path.stem)}_*.ser")) if path.suffix.lower() == ".emi" else []
        return [path, *beside]

    def close(self) -> None:
        self._kept.clear()
        for file in self._files.values():
            file.close()
        self._file.close()


def _describe(image: dict[str, Any]) -> str:
    """An image of several, for people."""
    sizes = [(a, int(image[f"size_{a}"])) for a in "tczyx"]
    axes = "".join(a for a, n in sizes if n > 1 or a in "yx")
    extent = size_text(n for a, n in sizes if n > 1 or a in "yx")
    return " ".join(part for part in (str(image.get("name") or ""), extent, axes, str(image["pixel_type"])) if part)


def _problem(image: dict[str, Any]) -> str | None:
    """Why something is no image that can be segmented; None of an image."""
    extra = image.get("extra") or {}
    spectral = extra.get("spectral_axis")
    wide = sum(int(image[f"size_{a}"]) > 1 for a in "yx")
    if spectral is not None:
        what = "a spectrum image" if wide and int(image["size_c"]) > 1 else "spectra"
        return f"{what} ({spectral.get('size')} bins of {spectral.get('quantity') or 'a spectrum'})"
    if len(extra.get("frame_grid") or ()) > 1:
        return f"4-D STEM (a pattern at each of {size_text(extra['frame_grid'])} places)"
    if extra.get("dimensions") is not None and len(extra["dimensions"]) < 2:
        return f"a line of {image['size_x']} values"
    if "complex" in str(image["pixel_type"]):
        return "a picture of complex numbers (a Fourier transform, say)"
    return None


def _levels(image: dict[str, Any]) -> list[dict[str, Any]]:
    """Every resolution level, finest first: ``size_y``, ``size_x``, and the tiles where it is stored in some."""
    listed = list(image.get("resolution_levels") or ())
    return listed or [{"size_y": image["size_y"], "size_x": image["size_x"]}]


def _scale(image: dict[str, Any], level: dict[str, Any]) -> dict[str, float]:
    stated = image.get("physical_size") or {}
    found = {a: length_nm(stated.get(a), stated.get("unit", "um")) for a in "zyx"}
    return {a: size * float(level.get(f"downsample_{a}", 1)) for a, size in found.items() if size is not None}


def _third_axis(image: dict[str, Any], kind: str) -> tuple[str, dict[str, float]]:
    """What the frames of an image are, ``t`` or ``z`` where that is stated and ``?`` else, and how far apart in nm."""
    if kind not in ("dm", "ser"):
        return "t", {}
    calibrations: list[Any] = (image.get("extra") or {}).get("calibrations") or []
    if len(calibrations) < 3:
        return "?", {}
    unit = str(calibrations[2].get("units") or "").strip()
    if unit.lower() in ("s", "ms", "min", "h"):
        return "t", {}
    size = length_nm(abs(float(calibrations[2].get("scale") or 0)), unit)
    return ("z", {"z": size}) if size is not None else ("?", {})
