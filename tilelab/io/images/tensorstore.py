"""What the formats read through TensorStore share: regions decoded in its threads, pieces used in part kept."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.optional import one_line, require
from tilelab.io.images.source import Source, whole_piece_warning
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.machine.cpu import core_count


@cache
def _context(tensorstore: Any) -> Any:
    return tensorstore.Context(
        {
            "cache_pool": {"total_bytes_limit": LARGE_BYTES},
            "data_copy_concurrency": {"limit": core_count()},
        }
    )


class StoredVolume(Source):
    """An image that TensorStore opens; `open_store` sets what reading needs."""

    _store: Any

    def open_store(self, spec: dict[str, Any]) -> None:
        """Open what `spec` describes; sets shape, dtype and chunks, axes in reverse order (x last) and from 0.

        Raises:
            InputError: TensorStore cannot; the message is its own.
        """
        tensorstore = require("tensorstore", self.format)
        try:
            store = tensorstore.open(
                spec, context=_context(tensorstore), open=True, read=True, recheck_cached_data="open"
            ).result()
        except Exception as error:
            raise InputError(f"{self.uri} cannot be opened as {self.format}: {one_line(error)}") from error
        chunk = store.chunk_layout.read_chunk.shape
        self._store = store[tensorstore.d[:].translate_to[0]].T
        self.shape = tuple(int(n) for n in self._store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype).newbyteorder("=")
        self.chunks = tuple(int(n) for n in chunk[::-1])
        nbytes = math.prod(self.chunks) * self.dtype.itemsize
        if nbytes > LARGE_BYTES:
            self.warnings += (whole_piece_warning(self.uri, nbytes),)

    def read(self, box: Box) -> Array:
        try:
            pixels: Array = self._store[box.slices].read(order="C").result()
        except Exception as error:
            raise InputError(f"{self.uri} cannot be read in region {box}: {one_line(error)}") from error
        return pixels

    def close(self) -> None:
        self._store = None
