"""Requests to one bucket or web server, each tried several times."""

from __future__ import annotations

import errno
import os
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from tilelab.errors import TilelabError
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.remote_access import Access, clean_uri, open_access
from tilelab.io.storage.remote_errors import RemoteError, Trouble, diagnose
from tilelab.io.storage.stored_file import Version
from tilelab.text import install_hint

T = TypeVar("T")

_FIRST_WAIT_SECONDS = 0.25
_FIRST_TRIES = 3  # while the host has never answered: a wrong name is said soon
_APART = 2**20  # bytes between two ranges that come in one request, as obstore has it
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

    @property
    def version(self) -> Version:
        """What changes with the content: the tag, or the time where there is none."""
        return Version(self.size, "tag", self.tag or f"{self.modified:.0f}")


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
            raise TilelabError(f"remote stores need obstore: {install_hint('remote')}") from None
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

    def get_range(self, key: str, start: int, count: int, tag: str = "") -> bytes:
        """`count` bytes from `start`, fewer at the object's end; with a `tag`, of the object that has it.

        Raises:
            RemoteError: the object has changed.
        """
        import obstore

        if count == 0:
            return b""

        def part() -> bytes:
            result = obstore.get(self._access.store, key, options={"range": (start, start + count)})
            found = Stat.of(result.meta)
            if tag and found.tag != tag:
                raise RemoteError(errno.ESTALE, "it has changed since it was opened")
            return bytes(result.bytes())

        return self._try(part)

    def get_ranges(self, key: str, ranges: Sequence[tuple[int, int]], tag: str = "") -> list[bytes]:
        """Several ``(start, count)`` at once; neighbouring ones in one request; raises as `get_range`."""
        spans: list[list[int]] = []  # first byte, and the one after the last
        for start, count in sorted(ranges):
            if spans and start <= spans[-1][1] + _APART:
                spans[-1][1] = max(spans[-1][1], start + count)
            else:
                spans.append([start, start + count])
        data: dict[int, bytes] = {}

        def fetch(span: list[int]) -> None:
            data[span[0]] = self.get_range(key, span[0], span[1] - span[0], tag)

        for_each(fetch, spans, requests=True)
        firsts = [first for first, _ in spans]

        def cut(start: int, count: int) -> bytes:
            first = firsts[bisect_right(firsts, start) - 1]
            return data[first][start - first : start - first + count]

        return [cut(*part) for part in ranges]

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
        return (key for key, _ in self.sizes(prefix))

    def sizes(self, prefix: str) -> Iterator[tuple[str, int]]:
        """The keys below the folder `prefix` with the bytes of their objects, a page at a time."""
        import obstore

        last: str | None = None
        while True:  # every page is a listing of its own: one that broke off would look like its end

            def page(after: str | None = last) -> Any:
                pages = obstore.list(self._access.store, prefix or None, offset=after, chunk_size=_PAGE)
                return next(iter(pages), [])

            found = self._try(page)
            yield from ((str(meta["path"]), int(meta["size"])) for meta in found)
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
            except FileNotFoundError:  # some stores say so of one key, and leave what comes after it
                if len(part) > 1:
                    for_each(lambda key: self.delete([key]), part, requests=True)

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
