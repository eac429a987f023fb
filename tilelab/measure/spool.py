"""Records of objects, on the disk when they are many."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np

from tilelab.arrays import Array, Int64
from tilelab.kernels.objects.sums import COLUMNS

RECORD = np.dtype([("sums", np.int64, COLUMNS), ("intensity", np.float64, 3), ("shape", np.float64, 3)])
"""What is kept of an object: `tilelab.kernels.objects.sums`, and Feret diameters and pixels of the hull."""
SPOOL_BYTES = 2**26
"""Of records in memory: more wait in a file."""


class Spool:
    """Records in the order in which they came, in memory while they are few and in a temporary file from then on."""

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._file: Any = None
        self._bytes = 0

    def append(self, records: Array) -> None:
        """Add records."""
        self._parts.append(records)
        self._bytes += records.nbytes
        if self._bytes > SPOOL_BYTES:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - gone with this
            for part in self._parts:
                self._file.write(part.tobytes())
            self._parts, self._bytes = [], 0

    def take(self, at: Int64) -> Array:
        """Those at some places, in that order."""
        if self._file is None:
            self._parts = [np.concatenate(self._parts)] if len(self._parts) > 1 else self._parts
            chosen: Array = self._parts[0][at] if self._parts else np.empty(0, RECORD)
            return chosen
        if self._parts:
            self._bytes = SPOOL_BYTES + 1
            self.append(np.empty(0, RECORD))
        self._file.flush()
        taken: Array = np.memmap(self._file, RECORD, "r")[at]
        return taken
