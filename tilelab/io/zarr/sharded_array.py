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

import errno
import io
import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from tilelab.arrays import Array, UInt64
from tilelab.errors import InputError, OutputError
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_file import RemoteFile
from tilelab.io.storage.remote_path import RemotePath

ZSTD_LEVEL = 1
"""Labels and probabilities that a network made of real micrographs take 0.9 and 1.2 to 2.6 ns per pixel and shrink to
1/27 and 1/12 to 1/4.  Level 3 takes a tenth longer and saves 0 to 2 %; -5 takes a quarter less and gives 1.4 times
as many bytes."""

_codecs: Any = imagecodecs  # its stubs know no arrays
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

    def metadata(self) -> dict[str, Any]:
        """The content of ``zarr.json``."""
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
            "fill_value": 0 if self.dtype.kind == "u" else 0.0,
            "codecs": inner if self.chunk == self.shard else [{"name": "sharding_indexed", "configuration": sharded}],
            "attributes": {},
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

    def write_shard(self, index: tuple[int, ...], chunks: Sequence[bytes | None], scratch: Place) -> None:
        """Write one shard; it appears whole or not at all.

        Args:
            index: position (c, z, y, x) in the grid of shards; 0 on an axis that the array lacks.
            chunks: its chunks in C order, encoded (`encode_chunk`); None where there is nothing but zeros.
            scratch: folder for the unfinished file, on the same file system; not used in a remote store.

        Raises:
            OutputError: the disk is full or the folder is unwritable.
        """
        if all(chunk is None for chunk in chunks):
            return
        pieces = [chunk for chunk in chunks if chunk is not None]
        if self.chunk != self.shard:
            pieces.append(_encode_index(chunks))
        stored = tuple(i for i, axis in zip(index, "czyx", strict=True) if axis in self.axes)
        replace_file(self._file(stored), pieces, scratch)

    def read(self, box: Box) -> Array:
        """Decode a region that lies inside the array; safe to call from several threads.

        Raises:
            InputError: a file is unreadable or corrupt.
        """
        out = np.zeros(box.shape, self.dtype)

        def read_shard(at: tuple[int, ...]) -> None:
            origin = tuple(i * s for i, s in zip(at, self.shard, strict=True))
            inside = box.intersect(Box(origin, tuple(o + s for o, s in zip(origin, self.shard, strict=True))))
            try:
                self._read_shard(at, origin, inside, out, box.start)
            except FileNotFoundError:
                return  # nothing but zeros
            except (OSError, ValueError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{self._file(at)} is corrupt or unreadable: {reason}") from error

        for_each(read_shard, _overlapping(box, self.shard), threads=False, requests=isinstance(self.path, RemotePath))
        return out

    def read_channel(self, channel: int, box: Box) -> Array:
        """Decode the spatial `box` (z, y, x) of one channel, ``(1, z, y, x)``; see `read`."""
        start, stop = ((channel, *box.start), (channel + 1, *box.stop))
        kept = [i for i, axis in enumerate("czyx") if axis in self.axes]
        return self.read(Box(tuple(start[i] for i in kept), tuple(stop[i] for i in kept))).reshape(1, *box.shape)

    def _read_shard(
        self, at: tuple[int, ...], origin: tuple[int, ...], inside: Box, out: Array, base: tuple[int, ...]
    ) -> None:
        """Decode the chunks of one shard that lie in `inside` into `out`, whose first pixel is `base`."""
        nd = len(self.shape)
        with _open_shard(
            self._file(at), 0 if self.chunk == self.shard else 16 * math.prod(self.shard_grid) + 4
        ) as file:
            ranges = None if self.chunk == self.shard else _read_index(file, self.shard_grid)
            local = Box(
                *(tuple(i - o for i, o in zip(end, origin, strict=True)) for end in (inside.start, inside.stop))
            )
            for c in _overlapping(local, self.chunk):
                if ranges is None:
                    encoded = file.read()
                else:
                    offset, length = (int(v) for v in ranges[c])
                    if offset == length == _ABSENT:
                        continue
                    file.seek(offset)
                    encoded = file.read(length)
                chunk = decode_chunk(encoded, self.chunk, self.dtype)
                first = tuple(origin[a] + c[a] * self.chunk[a] for a in range(nd))
                part = inside.intersect(Box(first, tuple(f + n for f, n in zip(first, self.chunk, strict=True))))
                target = tuple(slice(a - b, e - b) for a, e, b in zip(part.start, part.stop, base, strict=True))
                out[target] = chunk[
                    tuple(slice(a - f, e - f) for a, e, f in zip(part.start, part.stop, first, strict=True))
                ]

    def _file(self, index: tuple[int, ...]) -> Place:
        """Where a shard is."""
        return self.path.joinpath("c", *map(str, index))


def encode_chunk(chunk: Array) -> bytes:
    """Compress one C-contiguous chunk; releases the GIL."""
    encoded: bytes = _codecs.zstd_encode(chunk.reshape(-1).view(np.uint8), level=ZSTD_LEVEL)
    return encoded


def decode_chunk(encoded: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Undo `encode_chunk`; RuntimeError or ValueError when `encoded` is not such a chunk."""
    raw = _codecs.zstd_decode(encoded, out=math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype.newbyteorder("<")).reshape(shape)


def replace_file(path: Place, pieces: Iterable[bytes], scratch: Place) -> None:
    """Write a file so that it appears whole or not at all, replacing what was there.

    It survives the death of the process from then on (the page cache is the kernel's); a power failure may take it.
    In a remote store that is how every object is written.

    Raises:
        OutputError: the disk is full or a folder is unwritable.
    """
    if isinstance(path, RemotePath) or isinstance(scratch, RemotePath):
        try:
            path.write_bytes(b"".join(pieces))
        except OSError as error:
            raise output_error(path, error) from None
        return
    unfinished = scratch / uuid.uuid4().hex
    try:
        try:
            with _open_new(unfinished) as file:
                file.writelines(pieces)
            try:
                unfinished.replace(path)
            except FileNotFoundError:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Place, error: OSError) -> OutputError:
    """What `error` means for the one who writes to `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"cannot write {path}: the disk is full; free some space and run the same command again")
    return OutputError(f"cannot write {path}: {error.strerror or error}")


def _open_shard(path: Place, index_bytes: int) -> Any:
    """The file of a shard, opened for reading; a remote one comes with its index, or whole if it has none."""
    if not isinstance(path, RemotePath):
        return path.open("rb")
    if not index_bytes:
        return io.BytesIO(path.read_bytes())
    file = RemoteFile(path)
    file.fetch_tail(index_bytes)
    return file.stream()


def _open_new(path: Path) -> Any:
    """A new file, opened for writing; its folder is made if need be."""
    try:
        return path.open("xb")
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("xb")


def _overlapping(box: Box, extent: tuple[int, ...]) -> Iterable[tuple[int, ...]]:
    """Grid positions of the cells of `extent` that have a pixel in `box`."""
    return product(*(range(a // e, -(-b // e)) for a, b, e in zip(box.start, box.stop, extent, strict=True)))


def _encode_index(chunks: Sequence[bytes | None]) -> bytes:
    """The index of a shard whose chunks are stored one after the other, with its checksum."""
    index = np.full((len(chunks), 2), _ABSENT, "<u8")
    offset = 0
    for i, chunk in enumerate(chunks):
        if chunk is not None:
            index[i] = offset, len(chunk)
            offset += len(chunk)
    raw = index.tobytes()
    return raw + crc32c(raw).to_bytes(4, "little")


def _read_index(file: Any, grid: tuple[int, ...]) -> UInt64:
    """The index of a shard file, uint64 ``(*grid, 2)``."""
    size = 16 * math.prod(grid)
    file.seek(-size - 4, 2)
    raw = file.read(size + 4)
    if crc32c(raw[:size]) != int.from_bytes(raw[size:], "little"):
        raise ValueError("the checksum of its index is wrong")
    return np.frombuffer(raw[:size], "<u8").reshape(*grid, 2)


def _crc_table() -> list[int]:
    """CRC-32C (Castagnoli) of every byte."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C of a few kilobytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 255]
    return crc ^ 0xFFFFFFFF
