"""Reading regions of a Zarr array.

The codecs in common use are undone here, in threads: zarr-python takes several times as long per chunk, much of it with
the GIL held, and importing it takes longer than opening an image.  Anything else is left to it.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import google_crc32c
import imagecodecs
import numpy as np
import zstandard

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.storage.decode import DecodedPieces, for_each
from tilelab.io.storage.local_file import refuse_loose_link
from tilelab.io.storage.place import Place
from tilelab.io.storage.stored_file import StoredFile, unreadable
from tilelab.io.zarr.documents import LOST
from tilelab.io.zarr.metadata import ArrayNode, ChunkCodec

_ABSENT = 2**64 - 1
_INDEX_BYTES = 16 * 2**20
_MOST_OPEN = 256  # files that one read has open at a time, where the process may have so many
_SHARE = 16
"""One read takes at most this part of the files that a process may have open: several read at once."""


class _Own(threading.local):
    def __init__(self) -> None:
        self.decompressor = zstandard.ZstdDecompressor()


_own = _Own()


def decode_zstd(data: bytes, out: int) -> bytes | bytearray:
    """One frame of so many bytes with this thread's decompressor, which is half the time; all else as others do it."""
    with contextlib.suppress(zstandard.ZstdError):
        if zstandard.frame_content_size(data) == out:
            return _own.decompressor.decompress(data, allow_extra_data=False)
    whole: bytes | bytearray = imagecodecs.zstd_decode(data, out=out)
    return whole


_DECODE: dict[str, Callable[..., Any]] = {
    "zstd": decode_zstd,
    "gzip": imagecodecs.gzip_decode,
    "zlib": imagecodecs.zlib_decode,
    "blosc": imagecodecs.blosc_decode,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk, where its bytes are, and the region of it that is wanted."""

    chunk: tuple[int, ...]
    file: StoredFile
    offset: int
    count: int
    wanted: Box


def most_open() -> int:
    """Files that one read may have open at a time."""
    try:
        import resource
    except ImportError:  # Windows
        return _MOST_OPEN
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return _MOST_OPEN if soft == resource.RLIM_INFINITY else max(2, min(_MOST_OPEN, soft // _SHARE))


class ChunkReader:
    """Reads regions of an array whose codec is known here."""

    def __init__(self, node: ArrayNode, codec: ChunkCodec) -> None:
        self._node = node
        self._codec = codec
        self._kept = DecodedPieces()
        self._indexes: OrderedDict[tuple[int, ...], Array] = OrderedDict()
        self._lock = threading.Lock()
        self._shard_grid = tuple(-(-g // c) for g, c in zip(node.grid, node.chunk, strict=True))
        self._chunk_bytes = math.prod(node.chunk) * codec.dtype.itemsize

    def read(self, box: Box) -> Array:
        """Decode a region that lies inside; raises InputError where a file is unreadable or corrupt."""
        node = self._node
        out = self._blank(box)
        cells = overlapping(box, node.grid)
        most = most_open()
        while some := list(islice(cells, most)):
            pieces: list[Piece] = []
            files: list[StoredFile] = []
            try:
                for cell in some:
                    path = node.file(cell)
                    if _is_absent(path):
                        self._lack(cell)
                        continue
                    file = path.open_file()
                    files.append(file)
                    pieces += self._shard_pieces(cell, file, box) if node.sharded else [self._piece(cell, file, box)]
                compressed = self._codec.compressor is not None
                for_each(lambda piece: self._put(piece, box, out), pieces, threads=compressed)
            finally:
                for file in files:
                    file.close()
        return out

    def _blank(self, box: Box) -> Array:
        """A region of which no chunk is there."""
        node = self._node
        return np.full(box.shape, node.dtype.type(0) if node.fill is None else node.fill, node.dtype)

    def _fill(self, cell: tuple[int, ...]) -> None:
        """A shard or chunk that is absent has the fill value, where there is one.

        Raises:
            InputError: there is none.
        """
        if self._node.fill is None:
            raise InputError(
                f"{self._node.path} has no chunk {cell}, and its fill_value {str(self._node.told_fill)[:40]!r} is no "
                f"{self._node.dtype}: correct it in its metadata"
            )

    def _lack(self, cell: tuple[int, ...]) -> None:
        """A file that is absent: it was never written, and what it would hold has the fill value.

        Raises:
            InputError: it was written, or there is no fill value.
        """
        node = self._node
        if node.written is not None and node.written.has_file(int(np.ravel_multi_index(cell, node.files_grid))):
            raise InputError(
                f"{node.file(cell)} is missing: it was written, and not copied with the rest or removed since: {LOST}"
            )
        self._fill(cell)

    def clear(self) -> None:
        """Forget what was kept."""
        self._kept.clear()

    def _piece(self, cell: tuple[int, ...], file: StoredFile, box: Box) -> Piece:
        """The chunk `cell`, which is a file of its own."""
        return Piece(cell, file, 0, file.size, box.intersect(cell_box(cell, self._node.chunk)))

    def _shard_pieces(self, shard: tuple[int, ...], file: StoredFile, box: Box) -> list[Piece]:
        """The chunks of one shard that have a pixel in `box`."""
        index = self._index(shard, file)
        first = tuple(s * n for s, n in zip(shard, self._shard_grid, strict=True))
        pieces = []
        for chunk in overlapping(box.intersect(cell_box(shard, self._node.grid)), self._node.chunk):
            offset, count = (int(v) for v in index[tuple(c - f for c, f in zip(chunk, first, strict=True))])
            if offset == count == _ABSENT:
                self._fill(chunk)
                continue
            if offset + count > file.size:
                raise InputError(
                    f"{file.path} is truncated: chunk {chunk} ends at byte {offset + count} of {file.size}"
                )
            pieces.append(Piece(chunk, file, offset, count, box.intersect(cell_box(chunk, self._node.chunk))))
        return pieces

    def _index(self, shard: tuple[int, ...], file: StoredFile) -> Array:
        """The index of a shard, uint64 ``(*chunks per axis, 2)``; the last few are kept."""
        with self._lock:
            index = self._indexes.get(shard)
        if index is not None:
            return index
        size = 16 * math.prod(self._shard_grid)
        if file.size < size + 4:
            raise InputError(f"{file.path} is truncated: it has {file.size} bytes, its index alone has {size + 4}")
        raw = file.read(file.size - size - 4 if self._node.index_at_end else 0, size + 4)
        if google_crc32c.value(raw[:size]) != int.from_bytes(raw[size:], "little"):
            raise InputError(f"{file.path} is corrupt: the checksum of its index is wrong")
        index = np.frombuffer(raw[:size], "<u8").reshape(*self._shard_grid, 2)
        with self._lock:
            self._indexes[shard] = index
            while len(self._indexes) * size > _INDEX_BYTES and len(self._indexes) > 1:
                self._indexes.popitem(last=False)
        return index

    def _put(self, piece: Piece, box: Box, out: Array) -> None:
        """Decode one chunk and copy the wanted part of it into place."""
        node = self._node
        cell = cell_box(piece.chunk, node.chunk)
        whole = piece.wanted.shape == cell.intersect(Box.whole(node.shape)).shape
        decoded = self._kept.get(piece.chunk, self._chunk_bytes, lambda: self._decode(piece), keep=not whole)
        self._copy(decoded, cell, piece.wanted, box, out)

    @staticmethod
    def _copy(decoded: Array, cell: Box, wanted: Box, box: Box, out: Array) -> None:
        """Copy the part `wanted` of a decoded chunk, which is at `cell`, into the region `box`."""
        target = out[tuple(slice(a - o, b - o) for a, b, o in zip(*_ends(wanted), box.start, strict=True))]
        target[...] = decoded[tuple(slice(a - o, b - o) for a, b, o in zip(*_ends(wanted), cell.start, strict=True))]

    def _decode(self, piece: Piece) -> Array:
        """The pixels of one chunk, ``chunk`` shape, as stored."""
        data = piece.file.read(piece.offset, piece.count)
        try:
            if self._codec.compressor == "blosc" and int.from_bytes(data[12:16], "little") > len(data):
                raise ValueError("it is shorter than it states")  # Blosc itself would read beyond it
            if self._codec.compressor is not None:
                data = _DECODE[self._codec.compressor](data, out=self._chunk_bytes)
            order = self._codec.order
            stored = np.frombuffer(data, self._codec.dtype).reshape([self._node.chunk[i] for i in order])
        except (RuntimeError, ValueError, OverflowError, MemoryError) as error:
            region = cell_box(piece.chunk, self._node.chunk).intersect(Box.whole(self._node.shape))
            reason = str(error) or type(error).__name__
            raise InputError(
                f"{piece.file.path} is corrupt: its region {region} cannot be decoded: {reason}"
            ) from error
        return stored.transpose(np.argsort(order))


def _is_absent(path: Place) -> bool:
    """Whether a file was never written; one that cannot be looked at is not absent, nor is a link that leads nowhere.

    Raises:
        InputError: it is one of these.
    """
    try:
        path.version()
    except (FileNotFoundError, NotADirectoryError):
        refuse_loose_link(str(path))
        return True
    except OSError as error:
        raise unreadable(path, error) from None
    return False


class ForeignReader:
    """Reads regions of any other array through zarr-python."""

    def __init__(self, node: ArrayNode) -> None:
        import warnings

        import zarr

        self._path = node.path
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                self._array: Any = zarr.open_array(node.path.zarr_store(), mode="r", zarr_format=node.version)
            except Exception as error:  # noqa: BLE001 - zarr-python and stores raise many kinds
                raise self._refusal("cannot be opened", error) from None

    def read(self, box: Box) -> Array:
        """Decode a region that lies inside; raises InputError where it cannot be decoded."""
        try:
            pixels = np.asarray(self._array[box.slices])
        except Exception as error:  # noqa: BLE001 - codecs and stores raise many kinds
            raise self._refusal(f"is corrupt: its region {box} cannot be decoded", error) from None
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)

    def clear(self) -> None:
        """Nothing is kept."""

    def _refusal(self, what: str, error: Exception) -> InputError:
        return InputError(f"{self._path} {what}: {self._path.explain(error)}")


def overlapping(box: Box, extent: tuple[int, ...]) -> product[tuple[int, ...]]:
    """Grid positions of the cells of `extent` that have a pixel in `box`."""
    return product(*(range(a // e, -(-b // e)) for a, b, e in zip(box.start, box.stop, extent, strict=True)))


def cell_box(cell: tuple[int, ...], extent: tuple[int, ...]) -> Box:
    """The region of a grid cell, which may reach beyond the array."""
    return Box(
        tuple(i * e for i, e in zip(cell, extent, strict=True)),
        tuple((i + 1) * e for i, e in zip(cell, extent, strict=True)),
    )


def _ends(box: Box) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return box.start, box.stop
