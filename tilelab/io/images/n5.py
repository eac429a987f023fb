"""N5: datasets and multiscale groups in local folders, through TensorStore."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.io.images.axes import guess_axes
from tilelab.io.images.optional import read_json
from tilelab.io.images.several import FLAG, SeveralImagesError, choose
from tilelab.io.images.source import check_level
from tilelab.io.images.stated import bigdataviewer_sizes, known_lengths, without_unit
from tilelab.io.images.tensorstore import StoredVolume
from tilelab.io.images.units import length_nm
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.zarr.presence import check_presence, count_files, look_around

_ATTRIBUTES = "attributes.json"
_MOST_STATS = 1024
_MOST_SEEN = 64
_DEPTH = 6
_LISTED = 8
_SETUP = re.compile(r"setup\d+")


class N5Source(StoredVolume):
    """A dataset, a group with levels ``s0``, ``s1``, ..., or the only one of these in a container.

    N5 counts axes from x; here x is the last.  Axes are those of ``axes`` or of a ``transform`` (COSEM), else guessed.
    The pixel size is that of ``transform``, ``pixelResolution`` or ``resolution``, where a unit is given, of the
    dataset or times ``downsamplingFactors`` of its group; or that of BigDataViewer's XML beside the container.

    Raises:
        InputError: there is no such thing, several to choose from, damaged metadata, or an unknown compression.
    """

    format = "N5"

    chooses = True

    def __init__(self, path: str, level: int = 0, series: str | None = None) -> None:
        self.uri = path
        datasets, group, self.series = _find_image(LocalPath(path), series)
        check_level(path, level, len(datasets))
        documents = [read_json(dataset / _ATTRIBUTES) for dataset in datasets]
        shapes = [_dimensions(dataset, document) for dataset, document in zip(datasets, documents, strict=True)]
        self._folder, self._document = datasets[level], documents[level]
        self.open_store({"driver": "n5", "kvstore": {"driver": "file", "path": f"{self._folder.absolute()}/"}})
        self.levels = tuple(shape[::-1] for shape in shapes)
        grid = [-(-n // c) for n, c in zip(self.shape[::-1], self.chunks[::-1], strict=True)]
        expected = math.prod(grid)
        presence = count_files(str(self._folder), lambda name: _is_block(name, grid), expected, nested=True)
        self.warnings += check_presence(path, presence, "blocks")
        self.warnings += look_around(path, presence, grid, self._block, "blocks")
        outer = read_json(group / _ATTRIBUTES) if group and (group / _ATTRIBUTES).is_file() else {}
        self.axes, self.assumptions = _axes(path, self._document, outer, self.shape)
        if len(self.shape) == 3 and _setup(self._folder) is not None:
            self.axes, self.assumptions = "zyx", ()  # BigDataViewer has no others
        self.scale_nm, self.offset_px, guesses = _pixel_size(
            path, self._folder, self._document, group, self.axes, level
        )
        self.assumptions += guesses
        compression = self._document.get("compression", self._document.get("compressionType", {}))
        kind = compression.get("type") if isinstance(compression, dict) else str(compression)
        self.details = {"compression": kind, "stored": str(presence)}

    def fingerprint(self) -> dict[str, str]:
        """Hash of the metadata, and of size and modification time of up to 1024 blocks spread over the dataset."""
        metadata = hashlib.sha256((self._folder / _ATTRIBUTES).read_bytes()).hexdigest()
        grid = [-(-n // c) for n, c in zip(self.shape[::-1], self.chunks[::-1], strict=True)]
        count = math.prod(grid)
        chosen = sorted({i * count // min(count, _MOST_STATS) for i in range(min(count, _MOST_STATS))})
        files = (self._block(tuple(int(v) for v in np.unravel_index(i, grid))) for i in chosen)
        return {"metadata_sha256": metadata, "blocks_sha256": hash_stats(files)}

    def _block(self, at: tuple[int, ...]) -> LocalPath:
        """The file of a block."""
        return self._folder.joinpath(*map(str, at))


def _is_block(name: str, grid: list[int]) -> bool:
    """Whether a file is named as a block of the dataset."""
    parts = name.split("/")
    return len(parts) == len(grid) and all(p.isdecimal() and int(p) < n for p, n in zip(parts, grid, strict=True))


def _find_image(path: LocalPath, series: str | None) -> tuple[list[LocalPath], LocalPath | None, tuple[str, ...]]:
    """The datasets of all levels of the image that `path` is or holds, the group that they are in, all of several."""
    if _is_dataset(path):
        parent = path.parent
        return [path], parent if path.name.startswith("s") and (parent / "s0").is_dir() else None, ()
    levels = _levels(path)
    if levels:
        choose(str(path), series, [path.name], [path.name])
        return levels, path, ()
    found = _images(path)
    if not found:
        raise InputError(f"{path} is N5 but holds no dataset: give the container, a group or a dataset")
    every = [str(folder.relative_to(path)) for folder in found]
    taken = choose(str(path), series, every, every)
    found = found if taken is None else [found[taken]]
    if len(found) > 1:
        names = [str(folder.relative_to(path)) for folder in found[:_LISTED]]
        more = f" and {len(found) - len(names)} more" if len(found) > len(names) else ""
        raise SeveralImagesError(
            f"{path} has several images: give one, e.g. {found[0]}, or name it with {FLAG}; it has "
            f"{', '.join(names)}{more}"
        )
    shown = tuple(every)
    if _is_dataset(found[0]):
        return [found[0]], None, shown
    return _levels(found[0]), found[0], shown


def _is_dataset(path: LocalPath) -> bool:
    attributes = path / _ATTRIBUTES
    return attributes.is_file() and "dimensions" in read_json(attributes)


def _levels(group: LocalPath) -> list[LocalPath]:
    """The datasets ``s0``, ``s1``, ... of a multiscale group."""
    found: list[LocalPath] = []
    while _is_dataset(group / f"s{len(found)}"):
        found.append(group / f"s{len(found)}")
    return found


def _images(folder: LocalPath, depth: int = _DEPTH) -> list[LocalPath]:
    """Datasets and multiscale groups below `folder`, the first few."""
    found: list[LocalPath] = []
    if depth:
        for child in _folders(folder):
            if _is_dataset(child) or _levels(child):
                found.append(child)
            else:
                found += _images(child, depth - 1)
            if len(found) >= _MOST_SEEN:
                break
    return found


def _folders(folder: LocalPath) -> Iterator[LocalPath]:
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return (folder / name for name in names)


def _dimensions(dataset: LocalPath, document: Mapping[str, Any]) -> tuple[int, ...]:
    dimensions = document.get("dimensions")
    if not isinstance(dimensions, list) or not all(isinstance(n, int) and n >= 0 for n in dimensions):
        raise InputError(f"{dataset / _ATTRIBUTES} is damaged: dimensions are {dimensions!r}")
    return tuple(dimensions)


def _axes(
    path: str, own: Mapping[str, Any], outer: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[str, tuple[Assumption, ...]]:
    """One letter per axis, x last."""
    for document in (own, outer):
        named = document.get("axes")
        if isinstance(named, list) and len(named) == len(shape):
            letters = [str(axis).lower() for axis in named][::-1]
        elif _transformed(document, shape):
            letters = [str(axis).lower() for axis in document["transform"]["axes"]]
        else:
            continue
        if all(len(axis) == 1 for axis in letters) and {"y", "x"} <= set(letters):
            return "".join(letters), ()
    return guess_axes(path, shape, colours=False)


def _transformed(document: Mapping[str, Any], shape: tuple[int, ...]) -> bool:
    """Whether the document has a transform that names every axis."""
    transform = document.get("transform")
    named = transform.get("axes") if isinstance(transform, dict) else None
    return isinstance(named, list) and len(named) == len(shape)


def _pixel_size(
    path: str, folder: LocalPath, own: Mapping[str, Any], group: LocalPath | None, axes: str, level: int
) -> tuple[dict[str, float], dict[str, float], tuple[Assumption, ...]]:
    """Nanometres per pixel and position in pixels by axis letter, and what had to be guessed.

    They are those of the dataset; or of a group around it (Paintera keeps them one higher), times the factors of the
    level; or those of BigDataViewer's XML beside the container.
    """
    outer = [read_json(g / _ATTRIBUTES) for g in _groups(group) if (g / _ATTRIBUTES).is_file()]
    factors = _factors(own, outer[0] if outer else {}, level)
    setup = _setup(folder)
    if setup is not None and (sizes := bigdataviewer_sizes(setup.parent, int(setup.name[len("setup") :]))):
        return _times(sizes, factors, axes), {}, ()
    unknown: tuple[Assumption, ...] = ()
    for document, coarser in ((own, False), *((d, True) for d in outer)):
        sizes, offsets, units = _sizes(document, axes)
        if not sizes:
            continue
        if coarser:
            sizes = _times(sizes, factors, axes)
        offset_px = {a: offsets[a] / size for a, size in sizes.items() if offsets.get(a)}
        nm = {a: length_nm(size, units[a]) for a, size in sizes.items() if a in units}
        if known := known_lengths(nm):
            return known, offset_px, ()
        stated = " x ".join(f"{sizes[a]:g}" for a in axes if a in sizes)
        unknown = unknown or (without_unit(path, stated),)
        if offset_px:
            return {}, offset_px, unknown
    return {}, {}, unknown


def _setup(folder: LocalPath) -> LocalPath | None:
    """The folder of the BigDataViewer setup that a dataset is of."""
    return next((p for p in folder.absolute().parents if _SETUP.fullmatch(p.name)), None)


def _groups(group: LocalPath | None) -> tuple[LocalPath, ...]:
    return () if group is None else (group, group.parent)


def _sizes(document: Mapping[str, Any], axes: str) -> tuple[dict[str, float], dict[str, float], dict[str, str]]:
    """Pixel size and position in the document's own units, and those units, by axis letter."""
    named, offset = list(axes[::-1]), document.get("offset")
    transform, stated = document.get("transform"), document.get("pixelResolution")
    if isinstance(transform, dict) and isinstance(transform.get("scale"), list):
        named = [str(axis).lower() for axis in transform.get("axes", axes)]
        values, units, offset = transform["scale"], transform.get("units"), transform.get("translate")
    elif isinstance(stated, dict):
        values, units = stated.get("dimensions"), stated.get("unit")
    else:
        values, units = stated if isinstance(stated, list) else document.get("resolution"), document.get("units")
    each = units if isinstance(units, list) else [units] * len(named)
    sizes = {a: v for a, v in _by_axis(named, values).items() if v > 0}
    known = _zip(named, each if len(each) in (len(named), len(sizes)) else [])
    return sizes, _by_axis(named, offset), {a: unit for a, unit in known.items() if isinstance(unit, str)}


def _by_axis(axes: list[str], values: Any) -> dict[str, float]:
    """Finite spatial `values` by axis letter; none where their number does not fit."""
    found = _zip(axes, values if isinstance(values, list) else [])
    return {a: float(v) for a, v in found.items() if isinstance(v, int | float) and math.isfinite(v)}


def _zip(axes: list[str], values: list[Any]) -> dict[str, Any]:
    """`values` of the spatial axes, whether there is one for every axis or for these alone."""
    spatial = [axis for axis in axes if axis in "zyx"]
    named = axes if len(values) == len(axes) else spatial
    return {a: v for a, v in zip(named, values, strict=True) if a in "zyx"} if len(values) == len(named) else {}


def _factors(own: Mapping[str, Any], outer: Mapping[str, Any], level: int) -> list[float]:
    """How many pixels of the finest level one of this level is, x first; empty where nothing says so."""
    factors = own.get("downsamplingFactors")
    if isinstance(factors, list):
        return [float(f) for f in factors]
    every = outer.get("scales", outer.get("downsamplingFactors"))
    if isinstance(every, list) and level < len(every) and isinstance(every[level], list):
        return [float(f) for f in every[level]]
    return [] if level else [1.0] * 5


def _times(scale: dict[str, float], factors: list[float], axes: str) -> dict[str, float]:
    """Pixel sizes of a coarser level; none where its factors are not known."""
    by_axis = dict(zip(axes[::-1], factors, strict=False))
    return {axis: size * by_axis[axis] for axis, size in scale.items() if axis in by_axis}
