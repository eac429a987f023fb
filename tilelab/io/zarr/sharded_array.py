"""One Zarr v3 array, local or remote, of the kind that a result is made of: sharded, zstd, fill value 0.

Writing a shard through zarr-python costs several times what zstd does (asyncio per chunk, with the GIL held), beside an
engine that wants every core, and importing it costs more than writing a small result.  The format is simple, so shards
are put together here:

    shard file  =  chunk | chunk | ... | index | CRC-32C of the index         (uint32, little endian)
    index       =  offset and length of each chunk in C order                 (uint64, little endian; all ones: absent)

A chunk that holds nothing but zeros is absent, and so is the file of a shard without chunks.  Where shard and chunk are
the same, a file is a bare chunk.  Everything here is plain Zarr: the tests read it with zarr-python and tensorstore.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import google_crc32c
import msgspec
import numpy as np
import zstandard

from tilelab.arrays import Array
from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.zarr.census import Census, count_shard
from tilelab.io.zarr.documents import WRITTEN, Written
from tilelab.io.zarr.metadata import array_node
from tilelab.io.zarr.remote_chunks import open_reader
from tilelab.machine.disk import why_unwritten

ZSTD_LEVEL = 1
"""Labels and probabilities that a network made of real micrographs take 0.9 and 1.2 to 2.6 ns per pixel and shrink to
1/27 and 1/12 to 1/4.  Level 3 takes a tenth longer and saves 0 to 2 %; -5 takes a quarter less and gives 1.4 times
as many bytes."""

_ABSENT = 2**64 - 1
_INDEX = {"index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]}


@dataclass(frozen=True)
class ShardedArray:
    """A Zarr array: where it is and how it is cut.

    Attributes:
        path: folder with its ``zarr.json``, local or remote.
        shape: extent per axis.
        dtype: uint8 or float32.
        chunk: what is compressed as one piece, per axis.
        shard: what is one file, per axis, a multiple of `chunk`.
        axes: one letter per axis.
    """

    path: Place
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk: tuple[int, ...]
    shard: tuple[int, ...]
    axes: str

    def metadata(self, written: Written | None = None) -> dict[str, Any]:
        """The content of ``zarr.json``; of a finished array with what was `written`, so that a loss is seen later."""
        inner: list[dict[str, Any]] = [
            {"name": "bytes", **({"configuration": {"endian": "little"}} if self.dtype.itemsize > 1 else {})},
            {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
        ]
        sharded = {"chunk_shape": list(self.chunk), "codecs": inner, **_INDEX, "index_location": "end"}
        return {
            "zarr_format": 3,
            "node_type": "array",
            "shape": list(self.shape),
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0 if self.dtype.kind in "iu" else 0.0,
            "codecs": inner if self.chunk == self.shard else [{"name": "sharding_indexed", "configuration": sharded}],
            "attributes": {} if written is None else {WRITTEN: msgspec.to_builtins(written)},
            "dimension_names": list(self.axes),
            "storage_transformers": [],
        }

    @property
    def channels(self) -> int:
        """Extent of axis c, 1 without it."""
        return self.shape[0] if "c" in self.axes else 1

    @property
    def shape_zyx(self) -> tuple[int, int, int]:
        """Spatial extent."""
        z, y, x = (1, *self.shape[self.axes.count("c") :])[-3:]
        return (z, y, x)

    @property
    def shard_zyx(self) -> tuple[int, int, int]:
        """Spatial extent of a shard, which holds one channel."""
        z, y, x = (1, *self.shard)[-3:]
        return (z, y, x)

    @property
    def shard_grid(self) -> tuple[int, ...]:
        """Chunks per shard on each axis."""
        return tuple(s // c for s, c in zip(self.shard, self.chunk, strict=True))

    def write_shard(self, index: tuple[int, ...], chunks: Sequence[bytes | None], scratch: Place) -> Census:
        """Write one shard; it appears whole or not at all.  A shard of zeros has no file, and loses one that is there.

        Args:
            index: position (c, z, y, x) in the grid of shards; 0 on an axis that the array lacks.
            chunks: its chunks in C order, encoded (`encode_chunk`); None where there is nothing but zeros.
            scratch: folder for the unfinished file, on the same file system; not used in a remote store.

        Returns:
            What was written.

        Raises:
            OutputError: the disk is full or the folder is unwritable.
        """
        file = self._file(self._stored(index))
        if all(chunk is None for chunk in chunks):
            if not file.waits:  # of an earlier attempt, and damaged; stores keep what they took
                remove_file(file)
            return Census()
        pieces = [chunk for chunk in chunks if chunk is not None]
        if self.chunk != self.shard:
            pieces.append(_encode_index(chunks))
        replace_file(file, pieces, scratch)
        return count_shard(self._named(file), pieces)

    def census(self, box: Box, *, contents: bool) -> Census:
        """Count the shards of all channels that have a pixel in the spatial `box` (z, y, x), as they are now.

        Args:
            box: region.
            contents: read them, for the digest.

        Raises:
            InputError: one cannot be looked at.
        """
        grid = [range(a // s, -(-b // s)) for a, b, s in zip(box.start, box.stop, self.shard_zyx, strict=True)]
        found: list[Census] = []  # appending is atomic

        def look(index: tuple[int, ...]) -> None:
            file = self._file(self._stored(index))
            try:
                if contents:
                    found.append(count_shard(self._named(file), [file.read_bytes()]))
                else:
                    found.append(Census(1, file.version().size))
            except FileNotFoundError:
                return
            except OSError as error:
                raise InputError(f"{file} cannot be read: {error.strerror or error}") from error

        for_each(look, product(range(self.channels), *grid), threads=contents, requests=self.path.waits)
        return sum(found, Census())

    def read(self, box: Box, written: Written | None = None) -> Array:
        """Decode a region that lies inside the array; safe to call from several threads.

        Args:
            box: the region.
            written: of a finished array, which shards were; None for whatever is there, what is absent being 0.

        Raises:
            InputError: a file is unreadable or corrupt, or absent though it was written.
        """
        return open_reader(replace(array_node(self.path, self.metadata()), written=written)).read(box)

    def read_channel(self, channel: int, box: Box) -> Array:
        """Decode the spatial `box` (z, y, x) of one channel, ``(1, z, y, x)``; see `read`."""
        start, stop = ((channel, *box.start), (channel + 1, *box.stop))
        kept = [i for i, axis in enumerate("czyx") if axis in self.axes]
        return self.read(Box(tuple(start[i] for i in kept), tuple(stop[i] for i in kept))).reshape(1, *box.shape)

    def _stored(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """A position (c, z, y, x) on the axes that the array has."""
        return tuple(i for i, axis in zip(index, "czyx", strict=True) if axis in self.axes)

    def _named(self, file: Place) -> str:
        """What tells a shard from all others of the result, wherever that is."""
        return f"{self.dtype} {self.axes} {self.path.name}/{file.relative_to(self.path).as_posix()}"

    def _file(self, index: tuple[int, ...]) -> Place:
        """Where a shard is."""
        return self.path.joinpath("c", *map(str, index))


class _Own(threading.local):
    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(ZSTD_LEVEL)


_own = _Own()


def encode_chunk(chunk: Array) -> bytes:
    """Compress one C-contiguous chunk; releases the GIL.

    Each thread keeps its compressor: making one takes as long as compressing a quarter of a chunk.
    """
    encoded = _own.compressor.compress(chunk.reshape(-1).view(np.uint8).data)
    return bytes(memoryview(encoded))  # which keeps all the room that noise would have needed


def encode_document(document: dict[str, Any]) -> bytes:
    """A ``zarr.json``."""
    return json.dumps(document, indent=1).encode()


def replace_file(path: Place, pieces: Iterable[bytes], scratch: Place) -> None:
    """Write a file so that it appears whole or not at all; see `Place.write_whole`.

    Raises:
        OutputError: the disk is full or a folder is unwritable.
    """
    try:
        path.write_whole(pieces, scratch)
    except OSError as error:
        raise output_error(path, error) from error


def remove_file(path: Place) -> None:
    """Remove a file that may be there.

    Raises:
        OutputError: it cannot be removed.
    """
    try:
        path.delete_file()
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: object, error: OSError) -> OutputError:
    """What `error` means for the one who writes to `path`."""
    return OutputError(f"cannot write {path}: {why_unwritten(error)}")


def _encode_index(chunks: Sequence[bytes | None]) -> bytes:
    """The index of a shard whose chunks are stored one after the other, with its checksum."""
    index = np.full((len(chunks), 2), _ABSENT, "<u8")
    offset = 0
    for i, chunk in enumerate(chunks):
        if chunk is not None:
            index[i] = offset, len(chunk)
            offset += len(chunk)
    raw = index.tobytes()
    checksum: int = google_crc32c.value(raw)
    return raw + checksum.to_bytes(4, "little")
