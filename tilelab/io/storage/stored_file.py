"""What is read at positions, wherever it lies: a file on a disk or an object in a store."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from tilelab.errors import InputError


class Version(NamedTuple):
    """What tells one content of a file from another without reading it.

    size: bytes.
    kind: what `mark` is: ``modified_ns`` on a disk, ``tag`` in a store.
    mark: the time of the last change, or the store's tag.
    """

    size: int
    kind: str
    mark: str


class StoredFile(Protocol):
    """A file that any number of threads read at once, each at its own position.

    path: for messages.
    waits: every read is a request to another machine, so that many should be under way at once.
    """

    path: str

    @property
    def waits(self) -> bool: ...

    @property
    def size(self) -> int:
        """Bytes.

        Raises:
            InputError: it is missing or unreadable.
        """
        ...

    def version(self) -> Version:
        """What tells its content from another; raises as `size`."""
        ...

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`.

        Raises:
            InputError: the file ends before, or cannot be read.
        """
        ...

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` (bytes) with what begins at `offset`; raises as `read`."""
        ...

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Have several ``(offset, count)`` ready for one `read` each; where reads wait, neighbours come together."""
        ...

    def fetch_tail(self, count: int | None = None) -> None:
        """Have the last `count` bytes (None: all) ready for one `read`, and the size.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is unreadable.
        """
        ...

    def forget(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Drop what was fetched and nobody read."""
        ...

    def stream(self) -> Any:
        """A file object for libraries that want one."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


def unreadable(path: object, error: OSError) -> InputError:
    """What `error` means for the one who wants to read `path`."""
    if error.errno == errno.ENOENT:
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read: {error.strerror or error}")
