"""Buckets and web servers: `RemoteStore` sends the requests, `RemotePath` is used like a `pathlib.Path`.

The rest of tilelab asks of a place only what local folders can do, too: join names, read and write whole files, list,
and read at a position (`RemoteFile`).  Every request is tried several times; what fails in the end is an `OSError`,
whose ``strerror`` is one phrase for people.  Credentials never leave `remote_access`: a path prints without them.
"""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

from tilelab.errors import InputError, TilelabError
from tilelab.io.remote_access import Access, clean_uri, open_access
from tilelab.io.remote_errors import RemoteError, Trouble, diagnose

T = TypeVar("T")

SCHEMES = ("s3", "gs", "http", "https")
_FIRST_WAIT_SECONDS = 0.25
_FIRST_TRIES = 3  # while the host has never answered: a wrong name is said soon
_BLOCK_BYTES = 128 * 2**10
_BLOCKS = 64
_PAGE = 1000  # objects in one listing or deletion


@dataclass(frozen=True)
class Stat:
    """What a store says of an object: bytes, a tag of the content (or ""), seconds since 1970 on its clock."""

    size: int
    tag: str
    modified: float

    @classmethod
    def of(cls, meta: Any) -> Stat:
        """From obstore's dictionary."""
        return cls(int(meta["size"]), str(meta["e_tag"] or ""), meta["last_modified"].timestamp())


class RemoteStore:
    """One bucket or web server.  Safe to use from several threads.

    All methods raise FileNotFoundError for a missing object and `RemoteError` for everything else.
    """

    def __init__(self, root: str) -> None:
        """Reach ``s3://bucket``, ``gs://bucket`` or ``https://[user:password@]host[?query]``; sends nothing."""
        self._root = root
        try:
            self._access: Access = open_access(root)
        except ImportError:
            raise TilelabError("remote stores need obstore: pip install 'tilelab[remote]'") from None
        except ValueError as error:
            raise TilelabError(str(error)) from None
        except Exception as error:  # noqa: BLE001 - obstore's texts may quote settings
            raise TilelabError(f"{clean_uri(root)} cannot be used: {type(error).__name__} in its settings") from None
        self._answered = False
        self.lists = self._access.bucket != ""

    def get(self, key: str) -> bytes:
        """A whole object."""
        import obstore

        return self._try(lambda: bytes(obstore.get(self._access.store, key).bytes()))

    def get_range(self, key: str, start: int, count: int) -> bytes:
        """`count` bytes from `start`, fewer at the object's end."""
        import obstore

        if count == 0:
            return b""
        return self._try(lambda: bytes(obstore.get_range(self._access.store, key, start=start, length=count)))

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Several ``(start, count)`` at once; neighbouring ones in one request."""
        import obstore

        starts, ends = [a for a, _ in ranges], [a + n for a, n in ranges]
        return self._try(
            lambda: [bytes(b) for b in obstore.get_ranges(self._access.store, key, starts=starts, ends=ends)]
        )

    def get_tail(self, key: str, count: int | None = None) -> tuple[bytes, Stat]:
        """The last `count` bytes; all when there are fewer, or for None."""
        import obstore

        def tail() -> tuple[bytes, Stat]:
            options: Any = None if count is None else {"range": {"suffix": count}}
            result = obstore.get(self._access.store, key, options=options)
            stat = Stat.of(result.meta)
            return bytes(result.bytes()), stat

        return self._try(tail)

    def stat(self, key: str) -> Stat:
        """Size, tag and time of an object."""
        import obstore

        return self._try(lambda: Stat.of(obstore.head(self._access.store, key)))

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.stat(key)
        except FileNotFoundError:
            return False
        return True

    def put(self, key: str, data: bytes) -> str:
        """Write an object; it appears whole or not at all.  Returns its tag."""
        import obstore

        return self._try(lambda: str(obstore.put(self._access.store, key, data, use_multipart=False)["e_tag"] or ""))

    def put_if(self, key: str, data: bytes, tag: str | None) -> str | None:
        """Write an object if it has the tag `tag`, or with None if there is none yet.

        Returns:
            The new tag; None when it was not so.

        Stores that know no conditions write without; a check by reading back is left to the caller.
        """
        import obstore

        mode: Any = "create" if tag is None else {"e_tag": tag}

        def put() -> str | None:
            try:
                return str(obstore.put(self._access.store, key, data, mode=mode, use_multipart=False)["e_tag"] or "")
            except (obstore.exceptions.AlreadyExistsError, obstore.exceptions.PreconditionError):
                return None
            except obstore.exceptions.NotSupportedError:
                return self.put(key, data)

        return self._try(put)

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys below the folder `prefix`, a page at a time."""
        import obstore

        last: str | None = None
        while True:  # every page is a listing of its own: one that broke off would look like its end

            def page(after: str | None = last) -> Any:
                pages = obstore.list(self._access.store, prefix or None, offset=after, chunk_size=_PAGE)
                return next(iter(pages), [])

            found = self._try(page)
            yield from (str(meta["path"]) for meta in found)
            if len(found) < _PAGE:
                return
            last = str(found[-1]["path"])

    def children(self, prefix: str) -> list[str]:
        """The keys of folders and objects right below the folder `prefix`; none for a web server, which cannot say."""
        import obstore

        if not self.lists:
            return []
        found = self._try(lambda: obstore.list_with_delimiter(self._access.store, prefix or None))
        return sorted([*map(str, found["common_prefixes"]), *(str(meta["path"]) for meta in found["objects"])])

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; missing ones count as removed."""
        import obstore

        todo = list(keys)
        for at in range(0, len(todo), _PAGE):
            part = todo[at : at + _PAGE]
            try:
                self._try(lambda part=part: obstore.delete(self._access.store, part))  # type: ignore[misc]
            except FileNotFoundError:
                continue

    def zarr_store(self, prefix: str) -> Any:
        """A read-only store for zarr-python at the folder `prefix`."""
        from zarr.storage import ObjectStore

        return ObjectStore(open_access(self._root, prefix).store, read_only=True)

    def explain(self, error: BaseException) -> str:
        """What an exception that came through `zarr_store` means."""
        return self._diagnose(error).reason

    def _try(self, request: Callable[[], T]) -> T:
        """Send a request until it succeeds or there is no point in going on."""
        wait, tries = _FIRST_WAIT_SECONDS, 0
        while True:
            tries += 1
            try:
                result = request()
            except OSError as error:
                if isinstance(error, RemoteError):
                    raise
                trouble = self._diagnose(error)
            except Exception as error:  # noqa: BLE001 - obstore's exceptions share no narrower base
                trouble = self._diagnose(error)
            else:
                self._answered = True
                return result
            most = self._access.tries
            if trouble.unreachable and not self._answered:
                most = min(most, _FIRST_TRIES)
            if not trouble.transient or tries >= most:
                self._answered |= not trouble.unreachable
                raise trouble.error(tries) from None
            time.sleep(wait * random.uniform(0.5, 1.0))  # noqa: S311 - only so that workers do not come back at once
            wait = min(2 * wait, 16.0)

    def _diagnose(self, error: BaseException) -> Trouble:
        access = self._access
        return diagnose(
            error,
            bucket=access.bucket,
            host=access.host,
            anonymous=access.anonymous,
            advice=access.advice,
            seconds=access.seconds,
        )


@cache
def _cached_store(root: str, surroundings: int) -> RemoteStore:  # noqa: ARG001 - settings are read from there
    return RemoteStore(root)


def open_store(root: str) -> RemoteStore:
    """The store for `root`, one per process and set of environment variables."""
    names = ("AWS_", "GOOGLE_", "STORAGE_EMULATOR", "TILELAB_REMOTE")
    return _cached_store(root, hash(tuple(sorted(item for item in os.environ.items() if item[0].startswith(names)))))


class RemotePath:
    """A folder or object in a store, used as a `pathlib.Path`; prints as an address without secrets.

    key: its name in the store, with ``/`` between the parts.
    """

    __slots__ = ("_root", "_store", "key")

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

    def unlink(self, *, missing_ok: bool = False) -> None:  # noqa: ARG002 - a store does not say
        """Remove the object."""
        self.store.delete([self.key])

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


class RemoteFile:
    """An object that any number of threads read at once, each at its own position; see `_files.ReadOnlyFile`.

    path: for messages.
    """

    def __init__(self, place: RemotePath) -> None:
        self.place = place
        self.path = str(place)
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
                self._stat = self.place.store.stat(self.place.key)
            except OSError as error:
                raise unreadable_place(self.path, error) from None
        return self._stat

    @property
    def size(self) -> int:
        """Bytes; raises as `stat`."""
        return self.stat.size

    def fetch_tail(self, count: int | None = None) -> None:
        """Read the last `count` bytes (all for None) and the size in one request, and keep them for one `read`.

        Raises:
            FileNotFoundError: there is no such object.
            InputError: it is unreadable.
        """
        try:
            data, self._stat = self.place.store.get_tail(self.place.key, count)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise unreadable_place(self.path, error) from None
        self._ahead[self._stat.size - len(data), len(data)] = data

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Read several ``(offset, count)``, neighbours together, and keep each for one `read`."""
        if not ranges:
            return
        try:
            found = self.place.store.get_ranges(self.place.key, ranges)
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
                data = self.place.store.get_range(self.place.key, offset, count)
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


def unreadable_place(path: str, error: OSError) -> InputError:
    """What `error` means for the one who wants to read `path`."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path} does not exist")
    return InputError(f"{path} cannot be read: {error.strerror or error}")
