"""Files on a disk, read at positions."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from tilelab.errors import InputError
from tilelab.io.storage.stored_file import Version, unreadable

_MOST_PER_CALL = 2**30  # Linux reads at most 2 GiB - 4 KiB at once


def refuse_streams(path: str | os.PathLike[str]) -> None:
    """Refuse what has no positions, or would be waited for: devices, pipes, sockets.

    Raises:
        OSError: it is one, or is missing.
        ValueError: it is no path.
    """
    if not stat.S_ISREG(kind := os.stat(path).st_mode) and not stat.S_ISDIR(kind):  # noqa: PTH116
        raise OSError(
            errno.ENODEV, "it is a device, a pipe or a socket: copy what it gives into a file", os.fspath(path)
        )


def refuse_loose_link(path: str | os.PathLike[str]) -> None:
    """Refuse a link that leads nowhere: what it stands for was not fetched, which is not the same as never written.

    Raises:
        InputError: it is one.
    """
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 - may be no path at all
        raise InputError(f"{path} is a link to what is not there: fetch that first (as with `datalad get`)")


class LocalFile:
    """A file that any number of threads read at once, each at its own position.

    Regions are read, not mapped: mapped pages count as the process's memory, and a file that another process cuts short
    would end ours with a signal.
    """

    waits = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            refuse_streams(self.path)
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(self.path, error) from error
        except ValueError as error:
            raise InputError(f"{self.path!r} is no path: {error}") from error
        self.size = os.fstat(self._descriptor).st_size
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        self._seeking = None if hasattr(os, "preadv") else threading.Lock()

    def version(self) -> Version:
        """Size and time of the last change."""
        try:
            found = os.fstat(self._descriptor)
        except OSError as error:
            raise unreadable(self.path, error) from error
        return Version(found.st_size, "modified_ns", str(found.st_mtime_ns))

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) with what begins at `offset`.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        done = 0
        while done < len(out):
            part = out[done : done + _MOST_PER_CALL]
            try:
                count = self._read_some(offset + done, part)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read at byte {offset + done}: {error.strerror}") from error
            if count == 0:
                raise InputError(
                    f"{self.path} is truncated: bytes {offset} to {offset + len(out)} were asked for, "
                    f"it has {os.fstat(self._descriptor).st_size}"
                )
            done += count

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`; raises as `read_into`."""
        if self._seeking is None:
            try:
                data = os.pread(self._descriptor, count, offset)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read at byte {offset}: {error.strerror}") from error
            if len(data) == count:
                return data
        buffer = bytearray(count)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Nothing: the system reads ahead."""

    def fetch_tail(self, count: int | None = None) -> None:
        """Nothing: the system reads ahead."""

    def forget(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing was kept."""

    def stream(self) -> IO[bytes]:
        """The file, opened once more as a file object."""
        return Path(self.path).open("rb")

    def close(self) -> None:
        """Close the file; one that is forgotten closes itself."""
        self._descriptor = -1  # never read from a number that another file may get
        self._closing()

    def _read_some(self, offset: int, out: memoryview) -> int:
        if self._seeking is None:
            return os.preadv(self._descriptor, [out], offset)
        with self._seeking:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, len(out))
        out[: len(data)] = data
        return len(data)
