"""The metadata of Zarr arrays and groups, version 2 and 3, in one form: JSON documents alone, without zarr-python."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
import numpy as np

from tilelab.errors import InputError
from tilelab.io.storage.local_file import refuse_loose_link
from tilelab.io.storage.place import Place
from tilelab.io.zarr.documents import (
    WRITTEN,
    ArrayV2,
    ArrayV3,
    Codec,
    Group,
    Sharding,
    Written,
    check_extensions,
    fill_of,
    parse_json,
)

_V3_DTYPES = {"bool", "float16", "float32", "float64", *(f"{u}int{b}" for u in ("", "u") for b in (8, 16, 32, 64))}
_DECODERS = {"zstd", "gzip", "zlib", "blosc"}


@dataclass(frozen=True)
class ChunkCodec:
    """How the bytes of one chunk become its pixels, where that is simple enough to be done here.

    Attributes:
        dtype: as stored, byte order included.
        order: the axes in the order in which they are stored, outermost first.
        compressor: name of the byte codec; None for bare pixels.
    """

    dtype: np.dtype[Any]
    order: tuple[int, ...]
    compressor: str | None


@dataclass(frozen=True)
class ArrayNode:
    """A Zarr array.

    Attributes:
        path: its folder, local or remote.
        version: 2 or 3.
        shape: extent per axis.
        dtype: of the pixels, native byte order; object for what is no number.
        stored_type: the same as it is written.
        grid: extent of what is one file: a shard, or a chunk where there are none.
        chunk: extent of what is decoded at once.
        separator: between the numbers of a file's name.
        prefix: before them.
        fill: value of what is absent; None where `told_fill` is no such pixel.
        told_fill: the same as it is written.
        codec: how chunks are decoded; None leaves that to zarr-python.
        index_at_end: shards have their index at the end, not at the start.
        names: names of the axes, if they have some.
        attributes: what users and conventions have added.
        document: the metadata as it is on disk, for the fingerprint.
        written: which files were written; None where nobody says, and what is absent has the fill value.
    """

    path: Place
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored_type: str
    grid: tuple[int, ...]
    chunk: tuple[int, ...]
    separator: str
    prefix: tuple[str, ...]
    fill: Any
    told_fill: Any
    codec: ChunkCodec | None
    index_at_end: bool
    names: tuple[str, ...] | None
    attributes: dict[str, Any]
    document: bytes
    written: Written | None = None

    def __post_init__(self) -> None:
        if not len(self.shape) == len(self.grid) == len(self.chunk):
            raise ValueError(f"chunks of {self.grid} and {self.chunk} for an array of {self.shape}")
        if any(g % c for g, c in zip(self.grid, self.chunk, strict=True)):
            raise ValueError(f"shards of {self.grid} are no whole chunks of {self.chunk}")

    @property
    def sharded(self) -> bool:
        """Whether a file holds several chunks and an index of them."""
        return self.grid != self.chunk

    @property
    def files_grid(self) -> tuple[int, ...]:
        """Files on each axis."""
        return tuple(-(-n // g) for n, g in zip(self.shape, self.grid, strict=True))

    def file(self, index: tuple[int, ...]) -> Place:
        """Where the shard (or chunk) `index` is."""
        return self.path / self.separator.join((*self.prefix, *map(str, index)))


@dataclass(frozen=True)
class GroupNode:
    """A Zarr group.

    Attributes:
        path: its folder.
        version: 2 or 3.
        attributes: what users and conventions have added.
        document: the metadata as it is on disk.
    """

    path: Place
    version: int
    attributes: dict[str, Any] = field(default_factory=dict)
    document: bytes = b""


def find_node(path: Place) -> ArrayNode | GroupNode | None:
    """The array or group at `path`; None when there is neither.

    Raises:
        InputError: there is one, but its metadata are damaged.
    """
    denied: InputError | None = None
    for name, parse in (("zarr.json", _node_v3), (".zarray", _array_v2), (".zgroup", _group_v2)):
        try:
            document = (path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refusal = InputError(f"{path / name} cannot be read: {error.strerror}")
            if error.errno != errno.EACCES:
                raise refusal from error
            denied = denied or refusal  # a store that does not let us list it says so of what it lacks, too
            continue
        try:
            return parse(path, document, parse_json(document))
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path / name} is damaged or not understood: {reason}") from error
    if denied is not None:
        raise denied
    return None


def _node_v3(path: Place, document: bytes, meta: dict[str, Any]) -> ArrayNode | GroupNode:
    if meta["node_type"] == "group":
        return GroupNode(path, 3, msgspec.convert(meta, Group).attributes or {}, document)
    return array_node(path, meta, document)


def array_node(path: Place, meta: dict[str, Any], document: bytes = b"") -> ArrayNode:
    """The version 3 array that the content `meta` of a ``zarr.json`` describes.

    Raises:
        ValueError, KeyError, TypeError, InputError: it is not understood.
    """
    told = msgspec.convert(meta, ArrayV3)
    check_extensions(meta)
    _refuse_pickles(path, [codec.name for codec in told.codecs])
    name = str(told.data_type)
    dtype: np.dtype[Any] = np.dtype(name) if name in _V3_DTYPES else np.dtype(object)
    grid = chunk = tuple(told.chunk_grid.configuration.chunk_shape)
    codecs, at_end, simple = told.codecs, True, True
    if codecs[0].name == "sharding_indexed":
        shard = msgspec.convert(codecs[0].configuration, Sharding)
        chunk, at_end = tuple(shard.chunk_shape), shard.index_location == "end"
        index = [codec.name for codec in shard.index_codecs]
        simple = len(codecs) == 1 and index == ["bytes", "crc32c"] and _endian(shard.index_codecs[0]) == "<"
        codecs = shard.codecs
    default = told.chunk_key_encoding.name == "default"
    return ArrayNode(
        path=path,
        version=3,
        shape=tuple(told.shape),
        dtype=dtype,
        stored_type=name,
        grid=grid,
        chunk=chunk,
        separator=told.separator,
        prefix=("c",) if default else (),
        fill=fill_of(told.fill_value, dtype),
        told_fill=told.fill_value,
        codec=_codec_v3(codecs, dtype, len(told.shape)) if simple else None,
        index_at_end=at_end,
        names=tuple(map(str, told.dimension_names)) if told.dimension_names else None,
        attributes=told.attributes or {},
        document=document,
        written=_written(told, grid),
    )


def _written(told: ArrayV3, grid: tuple[int, ...]) -> Written | None:
    """Which files were written, where that is told and is of this array."""
    if (kept := (told.attributes or {}).get(WRITTEN)) is None:
        return None
    written = msgspec.convert(kept, Written)
    return written if written.counts(math.prod(-(-n // g) for n, g in zip(told.shape, grid, strict=False))) else None


def _endian(codec: Codec) -> Literal["<", ">"]:
    """The byte order of a ``bytes`` codec."""
    order = (codec.configuration or {}).get("endian", "little")
    if order not in ("little", "big"):
        raise ValueError(f"its byte order is {order!r}, neither little nor big")
    return "<" if order == "little" else ">"


def _codec_v3(codecs: Sequence[Codec], dtype: np.dtype[Any], axes: int) -> ChunkCodec | None:
    """The decoder for `codecs`: ``[transpose], bytes, [zstd | gzip | blosc]``; None for anything else."""
    order = tuple(range(axes))
    if codecs[0].name == "transpose":
        order = msgspec.convert((codecs[0].configuration or {})["order"], tuple[int, ...])
        if sorted(order) != [*range(axes)]:
            raise ValueError(f"it is transposed by {order}, of {axes} axes")
        codecs = codecs[1:]
    names = [codec.name for codec in codecs]
    if not names or names[0] != "bytes" or not set(names[1:]) <= _DECODERS or len(names) > 2 or dtype.kind == "O":
        return None
    return ChunkCodec(dtype.newbyteorder(_endian(codecs[0])), order, names[1] if names[1:] else None)


def _array_v2(path: Place, document: bytes, meta: dict[str, Any]) -> ArrayNode:
    told = msgspec.convert(meta, ArrayV2)
    filters, compressor = told.filters or [], told.compressor
    codecs = [str(codec["id"]) for codec in (*filters, *([compressor] if compressor else []))]
    _refuse_pickles(path, codecs)
    stored = np.dtype(told.dtype) if isinstance(told.dtype, str) else np.dtype(object)
    order = tuple(range(len(told.shape)))[:: -1 if told.order == "F" else 1]
    name = codecs[-1] if compressor else None
    simple = not filters and (name is None or name in _DECODERS) and stored.kind in "biuf"
    attributes = _attributes_v2(path)
    names = attributes.get("_ARRAY_DIMENSIONS")
    return ArrayNode(
        path=path,
        version=2,
        shape=tuple(told.shape),
        dtype=stored.newbyteorder("=") if stored.kind in "biuf" else np.dtype(object),
        stored_type=str(told.dtype),
        grid=tuple(told.chunks),
        chunk=tuple(told.chunks),
        separator=told.dimension_separator,
        prefix=(),
        fill=fill_of(0 if told.fill_value is None else told.fill_value, stored),
        told_fill=told.fill_value,
        codec=ChunkCodec(stored, order, name) if simple else None,
        index_at_end=True,
        names=tuple(map(str, names)) if isinstance(names, list) and names else None,
        attributes=attributes,
        document=document,
    )


def _group_v2(path: Place, document: bytes, meta: dict[str, Any]) -> GroupNode:
    attributes = _attributes_v2(path)
    version = msgspec.convert(meta, Group).zarr_format
    return GroupNode(path, version, attributes, document + json.dumps(attributes).encode())


def _attributes_v2(path: Place) -> dict[str, Any]:
    try:
        document = (path / ".zattrs").read_bytes()
    except FileNotFoundError:
        refuse_loose_link(str(path / ".zattrs"))
        return {}
    except OSError as error:
        raise ValueError(f".zattrs beside it cannot be read: {error.strerror}") from error
    try:
        return dict(parse_json(document))
    except (ValueError, TypeError) as error:
        raise ValueError(f".zattrs beside it is no JSON object: {error}") from error


def _refuse_pickles(path: Place, names: Sequence[str]) -> None:
    """Unpickling runs code that the file brings along."""
    if any("pickle" in name for name in names):
        raise InputError(f"{path} stores pickled Python objects, which could run code: they are not read")
