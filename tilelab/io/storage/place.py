"""A place to read from or write to, on a disk or in a remote store: what the rest of tilelab asks of either."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Protocol, Self, TypeAlias
from urllib.parse import unquote, urlsplit

from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.remote_path import SCHEMES, RemotePath
from tilelab.io.storage.stored_file import StoredFile, Version
from tilelab.io.storage.zip_path import ZipPath


class Place(Protocol):
    """A file or folder, used like a `pathlib.Path`: a `LocalPath`, `RemotePath` or `ZipPath`.

    What is not described here is as in `pathlib`.  Methods raise FileNotFoundError for what is missing and OSError for
    everything else, with a ``strerror`` for people.
    """

    @property
    def waits(self) -> bool:
        """Whether every access is a request to another machine, so that many should be under way at once."""
        ...

    @property
    def renames(self) -> bool:
        """Whether files can be renamed, appended to and locked; where not, all has its final name from the start."""
        ...

    @property
    def writable(self) -> bool:
        """Whether this kind of place takes writes at all."""
        ...

    @property
    def lists(self) -> bool:
        """Whether a folder says what is in it."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def suffix(self) -> str: ...
    @property
    def suffixes(self) -> list[str]: ...
    @property
    def parent(self) -> Self: ...
    @property
    def parents(self) -> Sequence[Self]: ...
    def __truediv__(self, part: str, /) -> Self: ...
    def joinpath(self, *parts: str) -> Self: ...
    def with_name(self, name: str) -> Self: ...
    def relative_to(self, other: Self, /) -> PurePath: ...
    def absolute(self) -> Self: ...
    def resolve(self) -> Self: ...
    def is_file(self) -> bool: ...
    def is_dir(self) -> bool: ...
    def exists(self) -> bool: ...
    def iterdir(self) -> Iterator[Self]: ...
    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None: ...
    def read_bytes(self) -> bytes: ...
    def write_bytes(self, data: bytes, /) -> object: ...

    def delete_file(self) -> None:
        """Remove a file, if it is there."""
        ...

    def write_whole(self, pieces: Iterable[bytes], scratch: Self) -> None:
        """Write a file so that it appears whole or not at all, replacing what was there.

        Args:
            pieces: of its content.
            scratch: folder for the unfinished file, on the same disk; made if missing, not used in a store.
        """
        ...

    def open_file(self) -> StoredFile:
        """The file, for reading at positions; raises InputError."""
        ...

    def version(self) -> Version:
        """What tells the content of the file from another."""
        ...

    def file_sizes(self) -> list[int] | None:
        """Bytes of every file below; None where telling would take a request each."""
        ...

    def free_bytes(self) -> int | None:
        """Bytes that can still be written; None where there is no limit.  OSError when none may be written."""
        ...

    def remove_tree(self) -> None:
        """Remove it with everything below."""
        ...

    def zarr_store(self) -> Any:
        """A read-only store for zarr-python."""
        ...

    def explain(self, error: Exception) -> str:
        """What an exception that came through `zarr_store` means, without secrets."""
        ...


Address: TypeAlias = str | os.PathLike[str] | Place
"""What names a place: a path, ``file://...``, an address in a store, or the place itself."""


def as_place(uri: Address) -> Place:
    """What `uri` means.

    Raises:
        InputError: it is an address of an unknown kind.
    """
    if isinstance(uri, LocalPath | RemotePath | ZipPath):
        return uri
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else str(uri)
    if "://" not in text:
        return LocalPath(text)
    return LocalPath(unquote(urlsplit(text).path)) if text.startswith("file://") else RemotePath.parse(text)


def remote_place(uri: Address) -> RemotePath | None:
    """The place that `uri` means if it is in a bucket or on a web server, else None."""
    if isinstance(uri, RemotePath):
        return uri
    text = os.fspath(uri) if isinstance(uri, os.PathLike) else str(uri)
    return RemotePath.parse(text) if text.partition("://")[0].lower() in SCHEMES and "://" in text else None
