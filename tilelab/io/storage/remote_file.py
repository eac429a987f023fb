"""Objects in a store, read at positions by many threads, or as a file object."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

from tilelab.errors import InputError
from tilelab.io.storage.remote_store import RemoteStore, Stat
from tilelab.io.storage.stored_file import Version, unreadable

_BLOCK_BYTES = 128 * 2**10
_BLOCKS = 64


class RemoteFile:
    """An object that any number of threads read at once, each at its own position; see `StoredFile`."""

    waits = True

    def __init__(self, store: RemoteStore, key: str, path: str) -> None:
        """The object `key` of `store`, called `path` in messages; sends nothing."""
        self.path = path
        self._store = store
        self._key = key
        self._stat: Stat | None = None
        self._ahead: dict[tuple[int, int], bytes] = {}

    @property
    def stat(self) -> Stat:
        """What the store says of it; asked once.

        Raises:
            InputError: it is missing or unreadable.
        """
        if self._stat is None:
            try:
                self._stat = self._store.stat(self._key)
            except OSError as error:
                raise unreadable(self.path, error) from None
        return self._stat

    @property
    def size(self) -> int:
        """Bytes; raises as `stat`."""
        return self.stat.size

    @property
    def _tag(self) -> str:
        """The store's tag of what was opened, which every answer must bear; empty before anything is known of it."""
        return "" if self._stat is None else self._stat.tag

    def version(self) -> Version:
        """Size, and the store's tag (or time where there is none); raises as `stat`."""
        return self.stat.version

    def fetch_tail(self, count: int | None = None) -> None:
        """Read the last `count` bytes (all for None) and the size in one request, and keep them for one `read`.

        Raises:
            FileNotFoundError: there is no such object.
            InputError: it is unreadable.
        """
        try:
            data, self._stat = self._store.get_tail(self._key, count)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreadable(self.path, error) from None
        self._ahead[self._stat.size - len(data), len(data)] = data

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read several ``(offset, count)``, neighbours together, and keep each for one `read`."""
        if not ranges:
            return
        try:
            found = self._store.get_ranges(self._key, ranges, self._tag)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read at byte {ranges[0][0]}: {error.strerror}") from None
        self._ahead.update(zip(ranges, found, strict=True))

    def forget(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Drop what `fetch` kept and nobody read."""
        for part in ranges:
            self._ahead.pop(part, None)

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`.

        Raises:
            InputError: the object ends before, or cannot be read.
        """
        data = self._ahead.pop((offset, count), None)
        if data is None:
            try:
                data = self._store.get_range(self._key, offset, count, self._tag)
            except OSError as error:
                raise InputError(f"{self.path} cannot be read at byte {offset}: {error.strerror}") from None
        if len(data) != count:
            raise InputError(
                f"{self.path} is truncated: bytes {offset} to {offset + count} were asked for, it has {self.size}"
            )
        return data

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with what begins at `offset`; raises as `read`."""
        out[:] = self.read(offset, len(out))

    def stream(self) -> io.BufferedIOBase:
        """A file object for libraries that want one."""
        return _Stream(self)

    def close(self) -> None:
        """Forget what was read ahead."""
        self._ahead.clear()


class _Stream(io.BufferedIOBase):
    """A seekable file object over a `RemoteFile`, which keeps the blocks that were read last."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._at = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        end = self._file.size if size is None or size < 0 else min(self._file.size, self._at + size)
        if end <= self._at:
            return b""
        if end - self._at > _BLOCK_BYTES * _BLOCKS // 4:
            data = self._file.read(self._at, end - self._at)
        else:
            first, last = self._at // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES
            joined = b"".join(self._block(i) for i in range(first, last + 1))
            data = joined[self._at - first * _BLOCK_BYTES : end - first * _BLOCK_BYTES]
        self._at = end
        return data

    def read1(self, size: int = -1, /) -> bytes:
        return self.read(size)

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        with self._lock:
            block = self._blocks.get(number)
            if block is None:
                start = number * _BLOCK_BYTES
                block = self._file.read(start, min(_BLOCK_BYTES, self._file.size - start))
                self._blocks[number] = block
                if len(self._blocks) > _BLOCKS:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(number)
            return block
