"""Datasets of HDF5 files, with h5py; their compression filters with hdf5plugin where HDF5 lacks them."""

from __future__ import annotations

import math
import re
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import guess_axes, named_axes
from tilelab.io.images.emd import emd_axes
from tilelab.io.images.hdf5_links import find_origins
from tilelab.io.images.imaris import DATASET as IMARIS
from tilelab.io.images.imaris import finest, imaris_scale, imaris_size
from tilelab.io.images.optional import one_line, require
from tilelab.io.images.several import FLAG, SeveralImagesError, choose
from tilelab.io.images.source import Source, check_level, whole_piece_warning
from tilelab.io.images.stated import bigdataviewer_sizes, without_unit
from tilelab.io.images.units import length_nm
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.io.storage.files import hash_file, read_region
from tilelab.io.storage.local_file import LocalFile
from tilelab.io.storage.member import split_member
from tilelab.io.zarr.documents import parse_json
from tilelab.io.zarr.presence import Presence, check_presence
from tilelab.text import size_text

_LISTED = 8
_BIGDATAVIEWER = re.compile(r"/t\d+/s(\d+)/(\d+)/cells")
_VELOX = re.compile(r"/Data/Image/[^/]+/Data")
_SLOTS = 12_421  # a prime, as HDF5 asks for


class Hdf5Source(Source):
    """A dataset, ``FILE::/path/in/file``, or the only one of the file or of a group in it.

    Axes are those of the dimension labels or scales (NetCDF), or of vigra's ``axistags``; else they are guessed from
    the shape.  The pixel size is that of ``element_size_um`` (ilastik, Fiji), ``voxel_size`` or ``resolution`` where
    ``units`` are given (or the layout is CREMI's, which counts in nanometres), one entry per spatial axis, with
    ``offset`` in the same units; or of BigDataViewer's XML beside the file.

    Contiguous datasets are read where they lie; chunked ones by HDF5, one thread at a time, with the chunks that a read
    used in part kept decoded.

    Raises:
        InputError: the file is damaged or truncated, has no such dataset, or several to choose from.
    """

    format = "HDF5"

    chooses = True

    def __init__(self, path: str, level: int = 0, series: str | None = None) -> None:
        file, member = split_member(path)
        h5py = require("h5py", "HDF5")
        check_level(path, level, 1)
        try:
            self._h5: Any = h5py.File(file, "r", locking="best-effort")
        except Exception as error:
            raise InputError(f"{file} is no readable HDF5 file: {one_line(error)}") from error
        self._lock = threading.Lock()
        self._file: LocalFile | None = None
        try:
            dataset, self.series = _find_dataset(h5py, self._h5, file, member, series)
            self.uri = f"{file}::{dataset.name}"
            origins = find_origins(h5py, dataset, Path(file).parent)
            self.outside, self.warnings = origins.outside, origins.check(self.uri)
            self._take_facts(h5py, dataset)
        except BaseException:
            self._h5.close()
            raise
        self._path = file

    def read(self, box: Box) -> Array:
        if self._file is not None:
            out = np.empty(box.shape, self._stored)
            read_region(self._file, self._offset, self.shape, box, out)
            return out.astype(self.dtype, copy=False)
        try:
            with self._lock:
                pixels: Array = self._dataset[box.slices]
                if self.dtype == np.uint16 and pixels.dtype.kind == "i":
                    pixels = pixels.view(pixels.dtype.str.replace("i", "u"))
        except Exception as error:
            raise InputError(f"{self.uri} cannot be read in region {box}: {one_line(error)}") from error
        return np.asarray(pixels).astype(self.dtype, copy=False)

    def fingerprint(self) -> dict[str, str]:
        with closing(LocalFile(self._path)) as file:
            return hash_file(file) | {"dataset": self.uri.rpartition("::")[2]}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        with self._lock:
            self._h5.close()

    def _take_facts(self, h5py: Any, dataset: Any) -> None:
        self.shape = imaris_size(dataset) or tuple(int(n) for n in dataset.shape)
        stored = dataset.dtype
        if stored.kind not in "biufc":
            raise InputError(f"{self.uri} holds {stored}, not numbers")
        if stored == np.int16 and _is_bigdataviewer(dataset):
            stored = np.dtype(stored.str.replace("i", "u"))
            because = "BigDataViewer stores unsigned 16-bit pixels as signed ones"
            self.assumptions += (Assumption(what=f"the pixels of {self.uri}", taken="unsigned", because=because),)
        self.dtype = stored.newbyteorder("=")
        velox = _velox_metadata(dataset)
        known = (
            "yxt"
            if velox is not None
            else "zyx"
            if _is_bigdataviewer(dataset) or IMARIS.fullmatch(dataset.name)
            else None
        )
        emd = emd_axes(dataset)
        known = emd.letters if emd is not None else known
        self.axes, guesses = _axes(self.uri, dataset, self.shape) if known is None else (known, ())
        self.assumptions += guesses
        self.rgb = self.axes.endswith("s")
        self.levels = (self.shape,)
        if emd is not None or velox is not None:
            self.scale_nm, guesses = emd.scale_nm if emd is not None else _velox_scale(velox or {}), ()
        elif (imaris := imaris_scale(dataset, self.shape)) is not None:
            self.scale_nm, guesses = imaris, ()
        else:
            self.scale_nm, self.offset_px, guesses = _scale(self.uri, dataset, self.axes)
        self.assumptions += guesses
        compression = _check_filters(h5py, dataset, self.uri)
        self.chunks = tuple(dataset.chunks or (1,) * len(self.shape))
        stored_chunks = self._count(dataset)
        nbytes = math.prod(self.chunks) * stored.itemsize
        if dataset.chunks is not None and nbytes > LARGE_BYTES:
            self.warnings += (whole_piece_warning(self.uri, nbytes),)
        self._dataset = dataset
        offset = dataset.id.get_offset() if dataset.chunks is None and not dataset.external else None
        bare = dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype)  # and not 12 bits somewhere in 16, say
        if (
            self.shape == dataset.shape
            and offset is not None
            and not dataset.is_virtual
            and stored.kind != "b"
            and bare
        ):
            self._file, self._offset, self._stored = LocalFile(dataset.file.filename), int(offset), stored
        elif dataset.chunks is not None:
            access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
            access.set_chunk_cache(_SLOTS, max(LARGE_BYTES, 2 * nbytes), 1.0)  # whole chunks go first
            self._dataset = h5py.Dataset(h5py.h5d.open(dataset.file.id, dataset.name.encode(), access))
        self.details = {
            "compression": compression,
            "bytes": int(dataset.id.get_storage_size()),
            "stored": stored_chunks,
        }

    def _count(self, dataset: Any) -> str | None:
        """How many of its chunks are there, ``a of b``; None of a dataset without chunks.

        Raises:
            InputError: nothing is stored.
        """
        if dataset.is_virtual or dataset.external or not all(self.shape):
            return None
        if not dataset.id.get_storage_size():
            raise InputError(f"{self.uri} is empty: it was made, but nothing was ever written into it")
        if dataset.chunks is None:
            return None
        expected = math.prod(-(-n // c) for n, c in zip(self.shape, dataset.chunks, strict=True))
        presence = Presence(expected, int(dataset.id.get_num_chunks()), complete=True)
        self.warnings += check_presence(self.uri, presence)
        return str(presence)


def _find_dataset(h5py: Any, opened: Any, file: str, member: str, series: str | None) -> tuple[Any, tuple[str, ...]]:
    """The dataset that `member` names, or the only image below it, or of several the one that `series` names.

    And what there is to say of each of several.
    """
    try:
        node = opened[member or "/"]
    except (KeyError, ValueError) as error:
        raise InputError(f"{file} has no {member!r}: it has {_listing(_images(h5py, opened))}") from error
    if isinstance(node, h5py.Dataset):
        if node.shape is None or len(node.shape) < 2:
            raise InputError(f"{file}::{node.name} is no image: its shape is {node.shape}")
        return node, ()
    if not isinstance(node, h5py.Group):
        raise InputError(f"{file}::{member} is a data type, not an image")
    found = finest(_images(h5py, node))
    if not found:
        raise InputError(f"{file}{f'::{member}' if member else ''} has no dataset that could be an image")
    names = [str(dataset.name) for dataset in found]
    if series is not None and not series.isdecimal():
        series = f"/{series.lstrip('/')}"
    shown = tuple(_listing([dataset]) for dataset in found)
    taken = choose(file, series, names, shown)
    if taken is not None:
        return found[taken], shown
    if len(found) > 1:
        raise SeveralImagesError(
            f"{file} has several datasets: choose one as {file}::{found[0].name}, or with {FLAG}; it has "
            f"{_listing(found)}"
        )
    return found[0], shown


def _images(h5py: Any, group: Any) -> list[Any]:
    """All datasets below `group` that could be images, in the order of their names."""
    found: list[Any] = []

    def visit(_name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset) and node.name.endswith("/Metadata"):
            return  # text
        is_number = isinstance(node, h5py.Dataset) and node.dtype.kind in "biuf"
        if is_number and sum(n > 1 for n in node.shape or ()) >= 2:
            found.append(node)

    try:
        group.visititems(visit)
    except Exception as error:  # a damaged object header
        raise InputError(f"{group.file.filename} is damaged: {one_line(error)}") from error
    return found


def _listing(datasets: list[Any]) -> str:
    names = [f"{d.name} ({size_text(d.shape)} {d.dtype})" for d in datasets[:_LISTED]]
    more = len(datasets) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "") if names else "no images"


def _axes(uri: str, dataset: Any, shape: tuple[int, ...]) -> tuple[str, tuple[Assumption, ...]]:
    labels = [d.label or _scale_name(d) for d in dataset.dims]
    if all(labels):
        return named_axes(uri, labels, shape)
    tags = _text(dataset.attrs.get("axistags"))
    if tags is not None:
        try:
            keys = [str(axis["key"]) for axis in parse_json(tags.encode())["axes"]]
        except (ValueError, KeyError, TypeError):
            keys = []
        return named_axes(uri, keys, shape)
    return guess_axes(uri, shape)


def _scale_name(dimension: Any) -> str:
    """What an axis is called by the scale that is attached to it, as in NetCDF; empty without one."""
    try:
        return str(dimension[0].name).rpartition("/")[2] if len(dimension) else ""
    except (KeyError, ValueError, RuntimeError):  # a reference to nothing
        return ""


def _velox_metadata(dataset: Any) -> dict[str, Any] | None:
    """What Velox (Thermo Fisher) says of an image, stored (y, x, frame) as ``Data/Image/ID/Data``; None of others."""
    if dataset.ndim != 3 or not _VELOX.fullmatch(dataset.name):
        return None
    try:
        text = dataset.parent["Metadata"][:, 0].tobytes().rstrip(b"\0")
        found = parse_json(text)
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _velox_scale(metadata: dict[str, Any]) -> dict[str, float]:
    try:
        result = metadata["BinaryResult"]
        sizes = {"y": result["PixelSize"]["height"], "x": result["PixelSize"]["width"]}
        return _positive({a: length_nm(v, result[f"PixelUnit{a.upper()}"]) for a, v in sizes.items()})
    except (KeyError, TypeError):
        return {}


def _scale(uri: str, dataset: Any, axes: str) -> tuple[dict[str, float], dict[str, float], tuple[Assumption, ...]]:
    """Nanometres per pixel and position in pixels by axis letter, and what had to be guessed."""
    letters = [a for a in axes if a in "zyx"]
    attributes = dataset.attrs
    element = _numbers(attributes.get("element_size_um"))
    if element is not None:
        named = dict(zip(letters, element[-len(letters) :], strict=False)) if len(element) >= len(letters) else {}
        return _positive({a: length_nm(v, "um") for a, v in named.items()}), {}, ()
    if (sizes := _bigdataviewer_scale(dataset)) is not None:
        return sizes, {}, ()
    size = next((v for key in ("voxel_size", "resolution") if (v := _numbers(attributes.get(key))) is not None), None)
    if size is None or len(size) not in (len(letters), len(axes)):
        return {}, {}, ()
    named = dict(zip(letters if len(size) == len(letters) else axes, size, strict=True))
    offset = _numbers(attributes.get("offset"))
    begun = dict(zip(named, offset, strict=True)) if offset is not None and len(offset) == len(size) else {}
    offset_px = {a: v / named[a] for a, v in begun.items() if a in "zyx" and v and named[a] > 0}
    units = attributes.get("units", attributes.get("unit"))
    unit = _text(units if isinstance(units, str | bytes) else next(iter(np.ravel(units)), None))
    stated = " x ".join(f"{v:g}" for v in size)
    guesses: tuple[Assumption, ...] = ()
    if units is None and dataset.name.startswith("/volumes/"):
        unit, what = "nm", f"the unit of the pixel size of {uri}, {stated}"
        because = "CREMI, whose layout this is, counts in it"
        guesses = (Assumption(what=what, taken="nm", because=because, flag="--pixel-size"),)
    scale = _positive({a: length_nm(v, unit) for a, v in named.items() if a in "zyx"})
    return scale, offset_px, guesses if scale else (without_unit(uri, stated),)


def _is_bigdataviewer(dataset: Any) -> bool:
    return dataset.ndim == 3 and _BIGDATAVIEWER.fullmatch(dataset.name) is not None


def _bigdataviewer_scale(dataset: Any) -> dict[str, float] | None:
    """What BigDataViewer's XML beside the file says, times the factors of the level; None for other datasets."""
    match = _BIGDATAVIEWER.fullmatch(dataset.name)
    if match is None:
        return None
    sizes = bigdataviewer_sizes(Path(dataset.file.filename), int(match[1]))
    try:
        factors = dict(
            zip("xyz", (float(v) for v in dataset.file[f"s{match[1]}/resolutions"][int(match[2])]), strict=True)
        )
    except (KeyError, ValueError, IndexError, TypeError):
        return sizes if match[2] == "0" else {}
    return {a: size * factors[a] for a, size in sizes.items()}


def _positive(sizes: dict[str, float | None]) -> dict[str, float]:
    return {axis: size for axis, size in sizes.items() if size is not None}


def _numbers(value: Any) -> list[float] | None:
    try:
        return None if value is None else [float(v) for v in np.ravel(value)]
    except (TypeError, ValueError):
        return None


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None if value is None else str(value)


def _check_filters(h5py: Any, dataset: Any, uri: str) -> str | None:
    """The names of the dataset's filters; loads hdf5plugin for those that HDF5 lacks."""
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i) for i in range(created.get_nfilters())]
    missing = [f for f in filters if not h5py.h5z.filter_avail(f[0])]
    if missing:
        require("hdf5plugin", f"{uri}, which is compressed with {_text(missing[0][3]) or f'filter {missing[0][0]}'},")
        for number, _, _, name in missing:
            if not h5py.h5z.filter_avail(number):
                raise InputError(f"{uri} is compressed with a filter that is not known here: {_text(name)} ({number})")
    return ", ".join(_text(f[3]) or str(f[0]) for f in filters) or None
