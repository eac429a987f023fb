"""The metadata of Zarr arrays and groups, version 2 and 3, in one form: JSON documents alone, without zarr-python."""

from __future__ import annotations

import errno
import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tilelab.errors import InputError
from tilelab.io.storage.place import Place

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
        grid: extent of what is one file: a shard, or a chunk where there are none.
        chunk: extent of what is decoded at once.
        separator: between the numbers of a file's name.
        prefix: before them.
        fill: value of what is absent.
        codec: how chunks are decoded; None leaves that to zarr-python.
        index_at_end: shards have their index at the end, not at the start.
        names: names of the axes, if they have some.
        attributes: what users and conventions have added.
        document: the metadata as it is on disk, for the fingerprint.
    """

    path: Place
    version: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    grid: tuple[int, ...]
    chunk: tuple[int, ...]
    separator: str
    prefix: tuple[str, ...]
    fill: Any
    codec: ChunkCodec | None
    index_at_end: bool
    names: tuple[str, ...] | None
    attributes: dict[str, Any]
    document: bytes

    def __post_init__(self) -> None:
        if self.separator not in ("/", "."):  # with others, chunks would lie anywhere
            raise ValueError(f"the separator of its chunk keys is {self.separator!r}, neither / nor .")

    @property
    def sharded(self) -> bool:
        """Whether a file holds several chunks and an index of them."""
        return self.grid != self.chunk

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
            return parse(path, document, json.loads(document))
        except RecursionError:
            raise InputError(f"{path / name} is damaged or not understood: it is nested too deeply") from None
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise InputError(f"{path / name} is damaged or not understood: {reason}") from error
    if denied is not None:
        raise denied
    return None


def _node_v3(path: Place, document: bytes, meta: dict[str, Any]) -> ArrayNode | GroupNode:
    if meta["node_type"] == "group":
        return GroupNode(path, 3, dict(meta.get("attributes") or {}), document)
    return array_node(path, meta, document)


def array_node(path: Place, meta: dict[str, Any], document: bytes = b"") -> ArrayNode:
    """The version 3 array that the content `meta` of a ``zarr.json`` describes.

    Raises:
        ValueError, KeyError, TypeError, InputError: it is not understood.
    """
    _refuse_pickles(path, meta["codecs"])
    name = meta["data_type"]
    dtype = np.dtype(name) if isinstance(name, str) and name in _V3_DTYPES else np.dtype(object)
    shape = tuple(int(n) for n in meta["shape"])
    regular = meta["chunk_grid"]["name"] == "regular"
    grid = tuple(int(n) for n in meta["chunk_grid"]["configuration"]["chunk_shape"]) if regular else shape
    codecs, chunk, at_end, simple = meta["codecs"], grid, True, regular and not meta.get("storage_transformers")
    if codecs[0]["name"] == "sharding_indexed":
        shard = codecs[0]["configuration"]
        chunk = tuple(int(n) for n in shard["chunk_shape"])
        at_end = shard.get("index_location", "end") == "end"
        index = [codec["name"] for codec in shard["index_codecs"]]
        simple = simple and len(codecs) == 1 and index in (["bytes"], ["bytes", "crc32c"]) and index[-1] == "crc32c"
        simple = simple and shard["index_codecs"][0].get("configuration", {}).get("endian", "little") == "little"
        codecs = shard["codecs"]
    if len(shape) != len(grid) or len(shape) != len(chunk) or min(chunk, default=1) < 1 or min(grid, default=1) < 1:
        raise ValueError(f"chunks of {grid} and {chunk} for an array of {shape}")
    encoding = meta.get("chunk_key_encoding") or {"name": "default"}
    default = encoding["name"] == "default"
    separator = (encoding.get("configuration") or {}).get("separator", "/" if default else ".")
    names = meta.get("dimension_names")
    return ArrayNode(
        path=path,
        version=3,
        shape=shape,
        dtype=dtype,
        grid=grid,
        chunk=chunk,
        separator=separator,
        prefix=("c",) if default else (),
        fill=_fill(meta.get("fill_value"), dtype),
        codec=_codec_v3(codecs, dtype, len(shape)) if simple else None,
        index_at_end=at_end,
        names=tuple(map(str, names)) if names else None,
        attributes=dict(meta.get("attributes") or {}),
        document=document,
    )


def _codec_v3(codecs: list[dict[str, Any]], dtype: np.dtype[Any], axes: int) -> ChunkCodec | None:
    """The decoder for `codecs`: ``[transpose], bytes, [zstd | gzip | blosc]``; None for anything else."""
    order = tuple(range(axes))
    names = [codec["name"] for codec in codecs]
    if names[0] == "transpose":
        order = tuple(int(i) for i in codecs[0]["configuration"]["order"])
        codecs, names = codecs[1:], names[1:]
    if not names or names[0] != "bytes" or not set(names[1:]) <= _DECODERS or len(names) > 2 or dtype.kind == "O":
        return None
    endian = (codecs[0].get("configuration") or {}).get("endian", "little")
    stored = dtype.newbyteorder("<" if endian == "little" else ">")
    return ChunkCodec(stored, order, names[1] if names[1:] else None)


def _array_v2(path: Place, document: bytes, meta: dict[str, Any]) -> ArrayNode:
    shape, chunk = (tuple(int(n) for n in meta[key]) for key in ("shape", "chunks"))
    filters, compressor = meta.get("filters") or [], meta.get("compressor")
    _refuse_pickles(path, [*filters, compressor or {}])
    stored = np.dtype(meta["dtype"]) if isinstance(meta["dtype"], str) else np.dtype(object)
    if len(shape) != len(chunk) or min(chunk, default=1) < 1:
        raise ValueError(f"chunks of {chunk} for an array of {shape}")
    order = tuple(range(len(shape)))[:: -1 if meta.get("order", "C") == "F" else 1]
    name = None if compressor is None else str(compressor["id"])
    simple = not filters and (name is None or name in _DECODERS) and stored.kind in "biuf"
    attributes = _attributes_v2(path)
    return ArrayNode(
        path=path,
        version=2,
        shape=shape,
        dtype=stored.newbyteorder("=") if stored.kind in "biuf" else np.dtype(object),
        grid=chunk,
        chunk=chunk,
        separator=meta.get("dimension_separator", "."),
        prefix=(),
        fill=_fill(meta.get("fill_value"), stored),
        codec=ChunkCodec(stored, order, name) if simple else None,
        index_at_end=True,
        names=tuple(map(str, attributes.get("_ARRAY_DIMENSIONS") or ())) or None,
        attributes=attributes,
        document=document,
    )


def _group_v2(path: Place, document: bytes, meta: dict[str, Any]) -> GroupNode:
    attributes = _attributes_v2(path)
    return GroupNode(path, int(meta["zarr_format"]), attributes, document + json.dumps(attributes).encode())


def _attributes_v2(path: Place) -> dict[str, Any]:
    try:
        return dict(json.loads((path / ".zattrs").read_bytes()))
    except FileNotFoundError:
        return {}


def _fill(value: Any, dtype: np.dtype[Any]) -> Any:
    """The value of what is absent; 0 where none is given."""
    if dtype.kind not in "biuf":
        return None
    if isinstance(value, str) and value.startswith("0x"):
        bits = int(value, 16).to_bytes(dtype.itemsize, "little")
        return np.frombuffer(bits, dtype.newbyteorder("<"))[0]
    if isinstance(value, str):
        value = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}[value]
    return dtype.type(0 if value is None else value)


def _refuse_pickles(path: Place, codecs: list[dict[str, Any]]) -> None:
    """Unpickling runs code that the file brings along."""
    names = [str(codec.get("id", codec.get("name", ""))) for codec in codecs]
    if any("pickle" in name for name in names):
        raise InputError(f"{path} stores pickled Python objects, which could run code: they are not read")
