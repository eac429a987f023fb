"""Places in buckets and on web servers: `remote_store` sends the requests, a `RemotePath` is used like a local one.

Every request is tried several times; what fails in the end is an `OSError`,
whose ``strerror`` is one phrase for people.  Credentials never leave `remote_access`: a path prints without them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tilelab.errors import InputError
from tilelab.io.storage.remote_access import clean_uri
from tilelab.io.storage.remote_file import RemoteFile
from tilelab.io.storage.remote_store import RemoteStore, open_store
from tilelab.io.storage.stored_file import Version

SCHEMES = ("s3", "gs", "http", "https")


class RemotePath:
    """A folder or object in a store; a `Place`.  Prints as an address without secrets.

    key: its name in the store, with ``/`` between the parts.
    """

    __slots__ = ("_root", "_store", "key")

    waits = True
    renames = False

    def __init__(self, root: str, key: str) -> None:
        self._root = root
        self.key = key.strip("/")
        self._store: RemoteStore | None = None

    @classmethod
    def parse(cls, uri: str) -> RemotePath:
        """The path that ``s3://bucket/key``, ``gs://...``, ``http(s)://...`` means.

        Raises:
            InputError: it is of another kind, or names no bucket.
        """
        try:
            parts = urlsplit(uri)
        except ValueError:
            raise InputError(f"{clean_uri(uri)} is no address that can be understood") from None
        if parts.scheme not in SCHEMES:
            raise InputError(f"{clean_uri(uri)} is of an unknown kind: known are file, {', '.join(SCHEMES)}")
        if not parts.netloc:
            what = "host" if parts.scheme.startswith("http") else "bucket"
            raise InputError(f"{parts.scheme}://{parts.path} names no {what}: write {parts.scheme}://{what}/...")
        if parts.scheme.startswith("http"):
            return cls(urlunsplit((parts.scheme, parts.netloc, "", parts.query, "")), unquote(parts.path))
        return cls(f"{parts.scheme}://{parts.netloc}", uri[len(parts.scheme) + 3 + len(parts.netloc) :])

    @property
    def store(self) -> RemoteStore:
        """Where it is."""
        if self._store is None:
            self._store = open_store(self._root)
        return self._store

    @property
    def writable(self) -> bool:
        """Whether it is in a store that takes writes; web servers are read only."""
        return not self._root.startswith("http")

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """See `pathlib.PurePath.suffix`."""
        return PurePosixPath(self.name).suffix

    @property
    def suffixes(self) -> list[str]:
        """See `pathlib.PurePath.suffixes`."""
        return PurePosixPath(self.name).suffixes

    @property
    def parent(self) -> RemotePath:
        """The folder it is in."""
        return self._at(self.key.rpartition("/")[0])

    @property
    def parents(self) -> list[RemotePath]:
        """All folders it is in, the nearest first; the store itself is not among them."""
        parts = self.key.split("/")
        return [self._at("/".join(parts[:n])) for n in range(len(parts) - 1, 0, -1)]

    def joinpath(self, *parts: str) -> RemotePath:
        """What is below."""
        return self._at("/".join([self.key, *(part.strip("/") for part in parts if part.strip("/"))]))

    def __truediv__(self, part: str) -> RemotePath:
        return self.joinpath(part)

    def with_name(self, name: str) -> RemotePath:
        """A sibling."""
        return self.parent / name

    @property
    def lists(self) -> bool:
        """Whether a folder says what is in it; web servers do not."""
        return self.store.lists

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        """The way from `other` to here."""
        return PurePosixPath(self.key).relative_to(other.key)

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def resolve(self) -> RemotePath:
        """Itself."""
        return self

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self.store.exists(self.key)

    def is_dir(self) -> bool:
        """Whether there is anything below."""
        return self.store.lists and next(self.store.keys(self.key), None) is not None

    def exists(self) -> bool:
        """Whether there is an object of this name, or anything below."""
        return self.is_file() or self.is_dir()

    def iterdir(self) -> Iterator[RemotePath]:
        """What is right below."""
        return (self._at(key) for key in self.store.children(self.key))

    def read_bytes(self) -> bytes:
        """The whole object."""
        return self.store.get(self.key)

    def write_bytes(self, data: bytes) -> None:
        """Write the object; it appears whole or not at all."""
        self.store.put(self.key, data)

    def delete_file(self) -> None:
        """Remove the object, if it is there."""
        self.store.delete([self.key])

    def mkdir(self, **_: bool) -> None:
        """Nothing: a store has no folders of its own."""

    def write_whole(self, pieces: Iterable[bytes], scratch: RemotePath) -> None:  # noqa: ARG002 - see `Place`
        """Write the object: whole is how every object appears."""
        self.write_bytes(b"".join(pieces))

    def open_file(self) -> RemoteFile:
        """The object, for reading at positions; it is not asked for yet."""
        return RemoteFile(self.store, self.key, str(self))

    def version(self) -> Version:
        """What tells its content from another."""
        return self.store.stat(self.key).version

    def file_sizes(self) -> None:
        """None: every object would have to be asked for."""

    def free_bytes(self) -> None:
        """None, after a try: stores have no limit, but not everyone may write."""
        probe = self / ".tilelab" / f"probe-{uuid.uuid4().hex}"
        probe.write_bytes(b"may I?")
        probe.delete_file()

    def zarr_store(self) -> Any:
        """A read-only store for zarr-python."""
        return self.store.zarr_store(self.key)

    def explain(self, error: Exception) -> str:
        """What an exception that came through `zarr_store` means; a store's own text may hold secrets."""
        return self.store.explain(error) if type(error).__module__.startswith("obstore") else str(error)

    def remove_tree(self) -> None:
        """Remove everything below, and the object of this name."""
        self.store.delete([self.key, *self.store.keys(self.key)])

    def _at(self, key: str) -> RemotePath:
        other = RemotePath(self._root, key)
        other._store = self._store
        return other

    def __str__(self) -> str:
        return f"{clean_uri(self._root).rstrip('/')}/{self.key}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and (self._root, self.key) == (other._root, other.key)

    def __hash__(self) -> int:
        return hash((self._root, self.key))

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str, str]]:
        return RemotePath, (self._root, self.key)
