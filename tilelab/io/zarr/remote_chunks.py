"""Reading regions of a Zarr array in a remote store: few requests, many of them at a time.

chunks that are objects      one request each
shards                       the index once (one request, which also says whether there is a shard), then all wanted
                             chunks of the shard at once, neighbours in one request
"""

from __future__ import annotations

import math

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.stored_file import StoredFile
from tilelab.io.zarr.chunks import ChunkReader, ForeignReader, Piece, cell_box, overlapping
from tilelab.io.zarr.metadata import ArrayNode, ChunkCodec

_MOST_KNOWN = 2**16


class RemoteChunkReader(ChunkReader):
    """Reads regions of a remote array whose codec is known."""

    def __init__(self, node: ArrayNode, codec: ChunkCodec) -> None:
        super().__init__(node, codec)
        self._files: dict[tuple[int, ...], StoredFile | None] = {}  # what is known to be there, or to be absent

    def read(self, box: Box) -> Array:
        """Decode a region that lies inside; raises InputError where an object is unreadable or corrupt."""
        out = self._blank(box)
        read = self._read_shard if self._node.sharded else self._read_chunk
        for_each(lambda cell: read(cell, box, out), overlapping(box, self._node.grid), requests=True)
        return out

    def _read_chunk(self, cell: tuple[int, ...], box: Box, out: Array) -> None:
        """A chunk that is an object of its own."""
        extent = cell_box(cell, self._node.chunk)
        wanted = box.intersect(extent)
        if (decoded := self._kept.find(cell)) is not None:
            self._copy(decoded, extent, wanted, box, out)
            return
        file = self._find(cell, None)
        if file is None:
            self._lack(cell)
            return
        self._put(Piece(cell, file, 0, file.size, wanted), box, out)
        file.close()

    def _read_shard(self, cell: tuple[int, ...], box: Box, out: Array) -> None:
        """The wanted chunks of one shard."""
        file = self._find(cell, 16 * math.prod(self._shard_grid) + 4)
        if file is None:
            self._lack(cell)
            return
        pieces = self._shard_pieces(cell, file, box)
        ranges = [(piece.offset, piece.count) for piece in pieces if self._kept.find(piece.chunk) is None]
        file.fetch(ranges)
        try:
            for piece in pieces:
                self._put(piece, box, out)
        finally:
            file.forget(ranges)

    def _find(self, cell: tuple[int, ...], tail: int | None) -> StoredFile | None:
        """The object of a cell with its last bytes (None: all), None when there is none; remembers what it learnt."""
        if len(self._files) >= _MOST_KNOWN:
            self._files.clear()
        if cell in self._files:
            return self._files[cell]
        file = self._node.file(cell).open_file()
        try:
            file.fetch_tail(tail)
        except FileNotFoundError:
            self._files[cell] = None
            return None
        if self._node.sharded:
            self._files[cell] = file
        return file


def open_reader(node: ArrayNode) -> ChunkReader | ForeignReader:
    """The reader that suits an array's codec and place."""
    if node.codec is None:
        return ForeignReader(node)
    return (RemoteChunkReader if node.path.waits else ChunkReader)(node, node.codec)
