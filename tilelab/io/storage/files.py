"""Positional reads of files, of the arrays that lie in them as they are, and fingerprints."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import weakref
from collections.abc import Iterable
from itertools import product
from typing import TypeAlias

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_file import RemoteFile
from tilelab.io.storage.remote_path import RemotePath
from tilelab.io.storage.remote_store import Stat

_ENDS = 64 * 2**10
_RUN_BYTES = 4 * 2**20  # read from a remote store in one piece
_MOST_PER_CALL = 2**30  # Linux reads at most 2 GiB - 4 KiB at once


class ReadOnlyFile:
    """A file that any number of threads read at once, each at its own position.

    Regions are read, not mapped: mapped pages count as the process's memory, and a file that another process cuts short
    would end ours with a signal.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            self._descriptor = os.open(self.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise unreadable(self.path, error) from error
        except ValueError as error:
            raise InputError(f"{self.path!r} is no path: {error}") from error
        self.size = os.fstat(self._descriptor).st_size
        self._closing = weakref.finalize(self, os.close, self._descriptor)
        self._seeking = None if hasattr(os, "preadv") else threading.Lock()

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


OpenFile: TypeAlias = ReadOnlyFile | RemoteFile
"""What is read at positions: a local file or an object in a remote store."""


def read_region(file: OpenFile, offset: int, shape: tuple[int, ...], box: Box, out: Array) -> None:
    """Read a region of a C-ordered array that lies uncompressed in `file`.

    Args:
        file: where.
        offset: position of the array's first byte.
        shape: extent of the whole array.
        box: the region.
        out: receives it, as stored; C-contiguous, of the array's dtype and any shape of as many elements as `box`.
    """
    if not out.size:
        return
    # The axes after `split` are wanted whole, so that each index before it is one run of bytes.
    split = len(shape)
    while split > 0 and box.shape[split - 1] == shape[split - 1]:
        split -= 1
    split = max(0, split - 1)
    run = int(np.prod(box.shape[split:], dtype=np.int64)) * out.itemsize
    strides = [out.itemsize * int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]
    first = offset + sum(a * s for a, s in zip(box.start, strides, strict=True))
    target = out.reshape(-1).view(np.uint8).data
    outer = product(*(range(0, n * s, s) for n, s in zip(box.shape[:split], strides[:split], strict=True)))
    if isinstance(file, RemoteFile):
        starts = [first + sum(position) for position in outer]
        _read_runs(file, starts, run, target)
        return
    for i, position in enumerate(outer):
        file.read_into(first + sum(position), target[i * run : (i + 1) * run])


def _read_runs(file: RemoteFile, starts: list[int], run: int, target: memoryview) -> None:
    """Read runs of `run` bytes from a remote file into consecutive parts of `target`, many at a time."""
    each = max(1, _RUN_BYTES // run)

    def read(at: int) -> None:
        part = [(start, run) for start in starts[at : at + each]]
        file.fetch(part)
        for i, (start, count) in enumerate(part, start=at):
            target[i * run : (i + 1) * run] = file.read(start, count)

    for_each(read, range(0, len(starts), each), requests=True)


def hash_file(place: str | os.PathLike[str] | RemotePath) -> dict[str, str]:
    """What identifies a file's content cheaply: size, modification time (or tag), and a hash of its two ends."""
    if isinstance(place, RemotePath):
        remote = RemoteFile(place)
        ends = hashlib.sha256(remote.read(0, min(_ENDS, remote.size)))
        ends.update(remote.read(max(0, remote.size - _ENDS), min(_ENDS, remote.size)))
        return {"bytes": str(remote.size), "tag": _tag(remote.stat), "ends_sha256": ends.hexdigest()}
    path = place
    file = ReadOnlyFile(path)
    try:
        ends = hashlib.sha256(file.read(0, min(_ENDS, file.size)))
        ends.update(file.read(max(0, file.size - _ENDS), min(_ENDS, file.size)))
        return {
            "bytes": str(file.size),
            "modified_ns": str(os.stat(path).st_mtime_ns),  # noqa: PTH116 - path may be a plain string
            "ends_sha256": ends.hexdigest(),
        }
    finally:
        file.close()


def hash_stats(paths: Iterable[Place]) -> str:
    """Hash of name, size and modification time (or tag) of files; a missing one counts as such.

    Raises:
        InputError: a store does not say.
    """
    total = hashlib.sha256()
    listed = list(paths)
    told: dict[int, str] = {}

    def ask(i: int) -> None:
        told[i] = _stat_line(listed[i])

    for_each(ask, range(len(listed)), threads=False, requests=any(isinstance(path, RemotePath) for path in listed))
    for i in range(len(listed)):
        total.update(told[i].encode())
    return total.hexdigest()


def _stat_line(path: Place) -> str:
    if isinstance(path, RemotePath):
        try:
            found = path.store.stat(path.key)
        except FileNotFoundError:
            return f"{path.name} missing\n"
        except OSError as error:
            raise unreadable(str(path), error) from None
        return f"{path.name} {found.size} {_tag(found)}\n"
    try:
        stat = path.stat()
    except OSError:
        return f"{path.name} missing\n"
    return f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n"


def _tag(stat: Stat) -> str:
    """What changes with the content: the store's tag, or its time where there is none."""
    return stat.tag or f"{stat.modified:.0f}"


def unreadable(path: str, error: OSError) -> InputError:
    """What `error` means for the one who wants to read `path`."""
    if error.errno == errno.ENOENT:
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read: {error.strerror or error}")
