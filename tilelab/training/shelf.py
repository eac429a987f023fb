"""Files that are read again and again without all of them being open, and keeping what they decoded, at once.

Planes that are too large to be kept in memory are read where they lie, crop by crop.  Of their files, images and masks
of all sets together, those that were used last stay open: at most `MOST_OPEN`, and at most so many that what they keep
decoded fits a quarter of the memory that was free when the first was opened (of each process, its share of it).  The
others are opened again when their turn comes, so what is read does not depend on it.
"""

from __future__ import annotations

import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tilelab.arrays import Array
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.bar import leave_out_bar, match_rows
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.machine.memory import available_memory

MOST_OPEN = 32
_SHARE = 4  # of the memory that is free: one part of so many
_SAME = (
    "uri",
    "axes",
    "shape",
    "dtype",
    "chunks",
    "chunk_phase",
    "pixel_size_nm",
    "origin_px",
    "neighbours",
    "rgb",
    "warnings",
    "assumptions",
)


class Closable(Protocol):
    """What holds a file."""

    def close(self) -> None:
        """Release it."""
        ...


T = TypeVar("T", bound=Closable)


class Shelf:
    """What is open.

    Args:
        most: how many at once; more only while more are in use.
        room: bytes that they may keep decoded together; None is that of the module.
    """

    def __init__(self, most: int = MOST_OPEN, room: int | None = None) -> None:
        self.most = most
        self._room = room
        self._lock = threading.Lock()
        self._turn = 0
        self._open: weakref.WeakKeyDictionary[Lasting[Closable], int] = weakref.WeakKeyDictionary()

    @property
    def opened(self) -> int:
        """How many are open."""
        return len(self._open)

    def touch(self, lasting: Lasting[Closable]) -> None:
        """Note that one is in use, and make room for it."""
        with self._lock:
            self._turn += 1
            self._open[lasting] = self._turn
        self.trim()

    def trim(self) -> None:
        """Close those that are not in use where there is no room for them, but the one that was used last."""
        with self._lock:
            if self._room is None:
                self._room = available_memory() // _SHARE // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            kept = sum(one.weight for one in self._open)
            for one, _ in sorted(self._open.items(), key=lambda item: item[1])[:-1]:
                if len(self._open) <= self.most and kept <= self._room:
                    break
                if one.drop():
                    kept -= one.weight
                    del self._open[one]


SHELF = Shelf()
"""That of this process."""


class Lasting(Generic[T]):
    """Something that is open while it is used, and afterwards as long as there is room; safe among threads.

    Args:
        thing: open now.
        again: opens it again.
        weight: bytes that it keeps.
        shelf: it lies on.
    """

    def __init__(self, thing: T, again: Callable[[], T], weight: int, shelf: Shelf | None = None) -> None:
        self._thing: T | None = thing
        self._again, self.weight, self._shelf = again, weight, shelf or SHELF
        self._users = 0
        self._lock = threading.Lock()
        self._shelf.touch(self)  # type: ignore[arg-type]

    @contextmanager
    def use(self) -> Iterator[T]:
        """The thing, open."""
        with self._lock:
            if self._thing is None:
                self._thing = self._again()
            thing = self._thing
            self._users += 1
        try:
            self._shelf.touch(self)  # type: ignore[arg-type]
            yield thing
        finally:
            with self._lock:
                self._users -= 1
            self._shelf.trim()

    def drop(self) -> bool:
        """Close it; False where somebody uses it."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._users:
                return False
            thing, self._thing = self._thing, None
        finally:
            self._lock.release()
        if thing is not None:
            thing.close()
        return True


class LastingImage(Image):
    """An image that is open only as long as there is room.

    Args:
        image: open now.
        again: opens it again.
        shelf: it lies on.
    """

    def __init__(self, image: Image, again: Callable[[], Image], shelf: Shelf | None = None) -> None:
        for name in _SAME:
            setattr(self, name, getattr(image, name))
        opening = partial(_open_same, again, image.uri, image.shape, image.dtype)
        self._lasting = Lasting(image, opening, kept_bytes(image), shelf)

    def read(self, box: Box) -> Array:
        with self._lasting.use() as image:
            return image.read(box)

    def fingerprint(self) -> dict[str, str]:
        with self._lasting.use() as image:
            return image.fingerprint()

    def close(self) -> None:
        self._lasting.drop()


def open_lasting(path: Path, rows: int | None = None, **chosen: Any) -> LastingImage:
    """An image of a file, without its info bar, or of as many `rows` as its partner has.

    Raises:
        InputError: as `open_image`, which takes `chosen`.
    """
    image = open_image(path, bar=None, **chosen)
    image = image if rows is None else match_rows(image, rows)
    return LastingImage(image, partial(_open_again, path, image.shape[-2], chosen))


def _open_again(path: Path, rows: int, chosen: dict[str, Any]) -> Image:
    whole = open_image(path, **chosen)  # what looks like an info bar was looked for once
    return leave_out_bar(whole, max(0, whole.shape[-2] - rows))


def _open_same(again: Callable[[], Image], uri: str, shape: tuple[int, ...], dtype: Any) -> Image:
    """What is opened again is what it was.

    Raises:
        InputError: it is another image by now.
    """
    image = again()
    if (image.shape, image.dtype) != (shape, dtype):
        image.close()
        raise InputError(f"{uri} was changed while it was read: begin anew (--restart)")
    return image


def kept_bytes(image: Image) -> int:
    """What an open image may keep decoded."""
    chunk = math.prod(image.chunks) * image.dtype.itemsize
    return min(image.nbytes, 2 * max(LARGE_BYTES, chunk))
