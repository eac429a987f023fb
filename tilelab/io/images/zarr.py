"""Zarr arrays and OME-Zarr images in local folders and remote stores."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.axes import named_axes
from tilelab.io.images.ngff import Multiscale, count_multiscales, find_multiscale, ome_attributes
from tilelab.io.images.several import FLAG, SeveralImagesError, choose, guessed, listing
from tilelab.io.images.source import Source, check_level, whole_piece_warning
from tilelab.io.storage.decode import LARGE_BYTES, for_each
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.outside import leaves
from tilelab.io.storage.place import Address, Place, as_place
from tilelab.io.storage.zip_path import ZipPath
from tilelab.io.zarr.metadata import ArrayNode, GroupNode, find_node
from tilelab.io.zarr.presence import Presence, check_keys, check_presence, check_written, count_chunks, look_around
from tilelab.io.zarr.remote_chunks import open_reader
from tilelab.text import size_text

_MOST_STATS = 1024
_MOST_REMOTE_STATS = 64
_SAMPLED_SIZES = 16
_ASIDE = ("__MACOSX", ".DS_Store")
"""What a Mac adds to what it zips."""
_FIELDS_OF = {"plate": "wells", "well": "images"}


class ZarrSource(Source):
    """A Zarr array, or one level of an OME-Zarr image or label.

    `address` may name an array, an image group, a label group, a level inside one, or a group with a single image.

    Raises:
        InputError: there is no such thing, or its metadata are damaged.
    """

    chooses = True

    def __init__(self, address: Address, level: int = 0, series: str | None = None) -> None:
        place = as_place(address)
        path = self.uri = str(address)
        node, image, group, self.series, because = _choose_image(place, series)
        self._group = group
        documents = []
        if image is None or group is None:
            if not isinstance(node, ArrayNode):
                raise _no_image(place, node)
            check_level(path, level, 1)
            self.axes, self.assumptions = named_axes(path, node.names, node.shape)
            self.rgb = self.axes.endswith("s")
            self.scale_nm = {}
            self.levels = (node.shape,)
            self.format = f"Zarr {node.version}"
        else:
            if isinstance(node, ArrayNode):  # a level was named by its path
                check_level(path, level, 1)
                level = [group.path / p for p in image.paths].index(node.path)
            else:
                self.home = group.path
            check_level(path, level, len(image.paths))
            self.outside = tuple(f"{group.path}/{name}" for name in image.paths if leaves(name))
            levels = [_level_array(group, image, i) for i in range(len(image.paths))]
            node = levels[level]
            self.axes = image.axes
            if len(node.shape) != len(image.axes):  # where nothing names them
                self.axes, self.assumptions = named_axes(path, node.names, node.shape)
            self.levels = tuple(array.shape for array in levels)
            self.scale_nm = image.scale_nm(level)
            self.offset_px = image.offset_px(level)
            self.format = f"OME-Zarr {image.version}"
            documents.append(group.document)
            if image.scales[level] is not None and not image.units and set(image.scales[level] or ()) != {1.0}:
                self.warnings = (f"{path} gives pixel sizes without a unit: they are ignored",)
            elif odd := image.odd_scale(level):
                self.warnings = (f"{path} gives pixel sizes of {odd}, which are none: they are ignored",)
        if because:
            self.assumptions += (guessed(path, 0, self.series, because),)
        self.shape, self.dtype, self.chunks = node.shape, node.dtype, node.chunk
        if node.dtype.kind == "O":
            raise InputError(
                f"{node.path} has pixels of type {node.stored_type[:60]!r}, which is no kind of number here"
            )
        self._node = node
        presence = self._count()
        self._documents = [*documents, node.document]
        self._reader = open_reader(node)
        nbytes = math.prod(self.chunks) * self.dtype.itemsize
        if nbytes > LARGE_BYTES:
            self.warnings += (whole_piece_warning(path, nbytes),)
        self.details = {
            "compression": node.codec.compressor if node.codec else "by zarr-python",
            "shards": node.grid if node.sharded else None,
            "stored": str(presence),
            **(_describe_group(group, image) if group is not None else {}),
        }

    def read(self, box: Box) -> Array:
        return self._reader.read(box)

    def _count(self) -> Presence:
        """Count the files that are there; refuses an array without any."""
        node = self._node
        presence, what = count_chunks(node), "shards" if node.sharded else "chunks"
        if node.written is not None:
            check_written(self.uri, presence, node.written, what)
        elif presence.absent and _written_here(self._group):
            self.warnings += (f"{self.uri}: {presence} {what} are stored, the others read as 0",)
        elif presence.absent:
            check_keys(node, presence)
            self.warnings += check_presence(self.uri, presence, what)
        elif not node.path.waits:
            self.warnings += look_around(self.uri, presence, node.files_grid, node.file, what)
        return presence

    def fingerprint(self) -> dict[str, str]:
        """Hash of the metadata, and of size and time of chunk files spread over the array (1024, or 64 remote ones)."""
        metadata = hashlib.sha256(b"\n".join(self._documents)).hexdigest()
        grid = self._node.files_grid
        count = math.prod(grid)
        asked = min(count, _MOST_REMOTE_STATS if self._node.path.waits else _MOST_STATS)
        chosen = sorted({i * count // asked for i in range(asked)})
        files = (self._node.file(tuple(int(v) for v in np.unravel_index(i, grid))) for i in chosen)
        return {"metadata_sha256": metadata, "chunks_sha256": hash_stats(files)}

    def stored_bytes(self) -> int:
        """From a few of its files, spread over the array."""
        grid = self._node.files_grid
        count = math.prod(grid)
        asked = min(count, _SAMPLED_SIZES)
        places = [
            self._node.file(tuple(int(v) for v in np.unravel_index((2 * i + 1) * count // (2 * asked), grid)))
            for i in range(asked)
        ]
        sizes = [0] * asked

        def ask(i: int) -> None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                sizes[i] = places[i].version().size

        for_each(ask, range(asked), threads=False, requests=self._node.path.waits)
        return sum(sizes) * count // max(1, asked)

    def close(self) -> None:
        self._reader.clear()


class ZippedZarrSource(ZarrSource):
    """The same in a zip file: OME-Zarr's ``.ozx``, or any Zarr that was zipped, with or without its folder.

    Raises:
        InputError: as `ZarrSource`; the zip file is damaged.
    """

    def __init__(self, path: str, level: int = 0, series: str | None = None) -> None:
        top = ZipPath.root(path)
        while not _is_node(top) and len(inside := [p for p in top.iterdir() if p.name not in _ASIDE]) == 1:
            top = inside[0]
        super().__init__(top, level, series)


def _written_here(group: GroupNode | None) -> bool:
    """Whether a tilelab that did not yet say what it wrote (`Written`) wrote an image: it left out all zeros."""
    if group is None:
        return False
    listed = ome_attributes(group).get("multiscales")
    written = listed[0].get("metadata") if isinstance(listed, list) and listed and isinstance(listed[0], dict) else None
    if isinstance(written, dict) and written.get("method") == "tilelab":
        return True
    above = [group.path, *group.path.absolute().parents[:2]]
    nodes = (find_node(path) for path in above)
    return any(isinstance(node, GroupNode) and "tilelab" in node.attributes for node in nodes)


def is_zarr(path: Place) -> bool:
    """Whether the folder `path` is a Zarr node, or lies inside one's hierarchy as something that should be."""
    return _is_node(path) or ".zarr" in path.suffixes


def _is_node(path: Place) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


_Found = tuple[ArrayNode | GroupNode | None, Multiscale | None, GroupNode | None]


def _choose_image(path: Place, series: str | None) -> tuple[*_Found, tuple[str, ...], str]:
    """What `_find_image` finds of the image that `series` means, what there is to choose from, and why it was taken."""
    node = find_node(path)
    names, shown, because = _several(path, node)
    if not names and series not in (None, "0"):
        raise InputError(f"{FLAG} {series} was asked for, {path} holds one image")
    taken = choose(str(path), series, names, shown) if names else None
    if not names or not isinstance(node, GroupNode):
        return (*_find_image(path), (), "")
    if count_multiscales(node):
        number = taken or 0
        return node, find_multiscale(node, number), node, shown, because if taken is None else ""
    if taken is None and not because:
        return node, None, None, shown, ""  # nothing is taken for granted
    return (*_find_image(path / names[taken or 0]), shown, because if taken is None else "")


def _several(path: Place, node: ArrayNode | GroupNode | None) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Names of the images of a group that has several, what there is to say of each, and why the first would be taken.

    Grounds are empty where none would be.
    """
    if not isinstance(node, GroupNode):
        return (), (), ""
    count = count_multiscales(node)
    if count:
        images = [find_multiscale(node, i) for i in range(count)]
        found = [image for image in images if image is not None]
        names = tuple(image.name or str(i) for i, image in enumerate(found))
        shown = tuple(f"{image.name} {image.axes} ({', '.join(image.paths)})".strip() for image in found)
        return (names, shown, "it is the first multiscale image") if count > 1 else ((), (), "")
    attributes = ome_attributes(node)
    if "bioformats2raw.layout" in attributes:
        members = _numbered(path, attributes)
        shown = tuple(_image_text(path / name, name) for name in members)
        return (members, shown, "it is the first series") if len(members) > 1 else ((), (), "")
    for kind, key in _FIELDS_OF.items():
        if kind in attributes:
            fields = tuple(str(place.relative_to(path)) for place in _fields(path, attributes[kind], key))
            return fields, fields, ""
    if "labels" in attributes:
        return (), (), ""
    names = tuple(_members(node))
    return (names, tuple(_image_text(path / name, name) for name in names), "") if len(names) > 1 else ((), (), "")


def _numbered(path: Place, attributes: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the series that Bio-Formats wrote, in its order."""
    listed = attributes.get("series")
    ome = find_node(path / "OME")
    if not isinstance(listed, list) and isinstance(ome, GroupNode):
        listed = ome_attributes(ome).get("series")
    if isinstance(listed, list):
        return tuple(_inside(path, name) for name in listed)
    names: list[str] = []
    while find_node(path / str(len(names))) is not None:
        names.append(str(len(names)))
    return tuple(names)


def _inside(path: Place, name: object) -> str:
    """A name that the metadata of a group give for something in it.

    Raises:
        InputError: it leads out of the group.
    """
    if leaves(str(name)):
        raise InputError(f"{path} names an image outside of its own folder, {name}: correct its metadata")
    return str(name)


def _image_text(path: Place, name: str) -> str:
    """An image of several, for people."""
    try:
        node, image, group = _find_image(path)
        if image is not None and group is not None:
            node = _level_array(group, image, 0)
    except InputError:
        return f"{name} (damaged)"
    return f"{name} {size_text(node.shape)} {node.dtype}" if isinstance(node, ArrayNode) else name


def _find_image(path: Place) -> _Found:
    """What is at `path`, the image that it is or belongs to, and the group that describes that."""
    node = find_node(path)
    if isinstance(node, ArrayNode):
        parents: Iterable[Place] = path.absolute().parents
        for parent, _ in zip(parents, range(3), strict=False):
            group = find_node(parent)
            for number in range(count_multiscales(group)) if isinstance(group, GroupNode) else ():
                image = find_multiscale(group, number) if isinstance(group, GroupNode) else None
                if image and isinstance(group, GroupNode) and path.absolute() in [group.path / p for p in image.paths]:
                    return replace(node, path=path.absolute()), image, group
        return node, None, None
    if isinstance(node, GroupNode):
        image = find_multiscale(node)
        if image is not None:
            return node, image, node
        if "bioformats2raw.layout" in ome_attributes(node) and find_node(path / "0") is not None:
            return _find_image(path / "0")
        members = _members(node)
        if len(members) == 1 and not {"plate", "well"} & {*ome_attributes(node)}:
            return _find_image(path / members[0])
    return node, None, None


def _members(group: GroupNode) -> list[str]:
    """Names of the arrays and groups right below `group`, labels aside."""
    names = (child.name for child in group.path.iterdir() if child.is_dir() and child.name != "labels")
    return sorted(name for name in names if find_node(group.path / name) is not None)


def _level_array(group: GroupNode, image: Multiscale, level: int) -> ArrayNode:
    path = group.path / image.paths[level]
    node = find_node(path)
    if not isinstance(node, ArrayNode):
        raise InputError(f"{group.path} is incomplete: the array of its level {level} is not at {path}")
    if image.named and len(node.shape) != len(image.axes):
        raise InputError(f"{path} has {len(node.shape)} axes, its OME-Zarr metadata say {image.axes!r}")
    return node


def _no_image(path: Place, node: GroupNode | None) -> InputError:
    """Why `path` cannot be opened, and what could be instead."""
    if node is None:
        if path.lists and not path.is_dir():
            return InputError(f"{path} does not exist")
        return InputError(f"{path} is no Zarr: it has no zarr.json, .zarray or .zgroup")
    attributes = ome_attributes(node)
    for kind, images in _FIELDS_OF.items():
        if kind in attributes:
            there = _fields(path, attributes[kind], images)
            what = f"{path} is a {kind} of {len(there)} fields, not an image"
            if not there:
                return InputError(f"{what}, and none of its fields is there")
            every = "/".join("*" for _ in there[0].relative_to(path).parts)
            lead = f"name a field of it, e.g. {there[0]} (or with {FLAG}), or all with '{path}/{every}'"
            return SeveralImagesError(f"{what}: {lead}")
    labels = attributes.get("labels")
    names = list(labels) if isinstance(labels, list) else _members(node)
    if not names:
        return InputError(f"{path} is a Zarr group without an image")
    images = listing([_image_text(path / str(name), str(name)) for name in names])
    return SeveralImagesError(
        f"{path} is a Zarr group of several images, {images}: name one, e.g. {path / str(names[0])}, or with {FLAG}"
    )


def _fields(path: Place, document: Any, images: str) -> list[Place]:
    """The fields of a plate or a well that are there."""
    listed = document.get(images) if isinstance(document, dict) else None
    found: list[Place] = []
    for entry in listed if isinstance(listed, list) else ():
        place = path / _inside(path, entry.get("path")) if isinstance(entry, dict) else path
        node = find_node(place) if place != path else None
        if not isinstance(node, GroupNode):
            continue
        well = ome_attributes(node).get("well")
        found += _fields(place, well, "images") if images == "wells" and well is not None else [place]
    return found


def _is_folder(path: Place) -> bool:
    """Whether something is a folder, as far as one may know."""
    try:
        return path.is_dir()
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
        return False


def _describe_group(group: GroupNode, image: Multiscale | None) -> dict[str, Any]:
    """Labels and classes of an OME-Zarr image, for people."""
    details: dict[str, Any] = {"name": image.name} if image and image.name else {}
    attributes = ome_attributes(group)
    if "image-label" in attributes:
        details["label"] = attributes["image-label"]
    labels = find_node(group.path / "labels") if _is_folder(group.path / "labels") else None
    if isinstance(labels, GroupNode):
        listed = ome_attributes(labels).get("labels")
        details["labels"] = [str(name) for name in listed] if isinstance(listed, list) else []
    if "tilelab" in group.attributes:
        details["tilelab"] = group.attributes["tilelab"]
    return details
