"""Compressed chunks that wait for the rest of their shard, on the disk instead of in memory."""

from __future__ import annotations

import tempfile
import threading
import weakref
from dataclasses import dataclass
from typing import IO

from tilelab.io.storage.place import Place
from tilelab.io.zarr.sharded_array import output_error


@dataclass(frozen=True, slots=True)
class Parked:
    """A chunk in the file: where it begins, and its bytes."""

    parking: Parking
    offset: int
    size: int

    def take(self) -> bytes:
        """The chunk; see `Parking.take`."""
        return self.parking.take(self)


class Parking:
    """A file without a name, which is gone with its process; safe to use from several threads.

    It is made when the first chunk comes, in `folder` where that is on a disk, else where temporary files are.
    """

    def __init__(self, folder: Place) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._end = self._count = 0

    def put(self, chunk: bytes) -> Parked:
        """Write a chunk.

        Raises:
            OutputError: the disk is full or the folder is unwritable.
        """
        with self._lock:
            try:
                if self._file is None:
                    folder = None if self._folder.waits else str(self._folder)
                    self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open for as long as this lives
                    weakref.finalize(self, self._file.close)
                self._file.seek(self._end)
                self._file.write(chunk)
            except OSError as error:
                raise output_error(self._folder, error) from error
            parked = Parked(self, self._end, len(chunk))
            self._end += len(chunk)
            self._count += 1
            return parked

    def take(self, parked: Parked) -> bytes:
        """The chunk, once; the file is empty again when all have been taken.

        Raises:
            OutputError: it cannot be read.
        """
        with self._lock:
            assert self._file is not None  # noqa: S101 - something was put there
            try:
                self._file.seek(parked.offset)
                chunk = self._file.read(parked.size)
                self._count -= 1
                if self._count == 0:
                    self._file.truncate(0)
                    self._end = 0
            except OSError as error:
                raise output_error(self._folder, error) from error
            return chunk

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
