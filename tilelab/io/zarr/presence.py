"""How many files of an array are there: absent ones read as the fill value, which nobody should be left to discover."""

from __future__ import annotations

import errno
import math
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from tilelab.errors import InputError
from tilelab.io.storage.local_file import refuse_loose_link
from tilelab.io.storage.place import Place
from tilelab.io.storage.remote_path import RemotePath
from tilelab.io.storage.zip_path import ZipPath
from tilelab.io.zarr.documents import LOST, Written
from tilelab.io.zarr.metadata import ArrayNode

MOST_LISTED = 2**16
MOST_TOLD = 2**22
"""Files of an array that is told apart: their numbers take 32 MiB."""
MOST_RUNS = 2**16
"""Of absent files; an index of them has about 20 bytes for each."""
_MOST_REMOTE = 999  # one request
_LOOKED = 256
_GOLDEN = 0.6180339887498949  # spreads them evenly along every axis
_MANY, _SPARSE = 10**7, 10**5
"""So many pieces, of which less than one in so many is there, are a mistake in the metadata."""
_KEY = re.compile(r"(c[/.])?\d+([/.]\d+)*")


@dataclass(frozen=True)
class Presence:
    """Files of chunks or shards.

    Attributes:
        expected: how many the shape takes.
        found: how many of them were seen; None where the place does not list.
        complete: all that is there was looked at.
        other: a chunk's key that is there but is none of this array's, by its form; empty without one.
    """

    expected: int
    found: int | None
    complete: bool
    other: str = ""

    @property
    def absent(self) -> bool:
        """Whether some are known to be absent."""
        return self.complete and self.found is not None and self.found < self.expected

    def __str__(self) -> str:
        if self.found is None:
            return f"unknown of {self.expected} (the place does not list)"
        return f"{'' if self.complete else 'at least '}{self.found} of {self.expected}"


def count_chunks(node: ArrayNode) -> Presence:
    """Count the files of an array, by listing: no more than 65,536 of them, in a store what one request lists."""
    grid = node.files_grid
    expected = math.prod(grid)
    if not node.path.lists:
        return Presence(expected, None, complete=False)
    most = _MOST_REMOTE if node.path.waits else MOST_LISTED
    found, other, complete = 0, "", True
    try:
        for seen, file in enumerate(_files(node.path)):
            if seen == most:
                complete = False
                break
            if _is_key(node, grid, file.key):
                refuse_loose_link(file.link)
                found += 1
            elif not other and _KEY.fullmatch(file.key) and len(re.findall(r"\d+", file.key)) == len(grid):
                other = file.key
    except OSError as error:
        if node.path.waits and error.errno != errno.EACCES:
            raise
        # a bucket whose objects are for all, but not their names; of a disk it is said when it is read
        return Presence(expected, None, complete=False)
    return Presence(expected, found, complete, other)


def check_keys(node: ArrayNode, presence: Presence) -> None:
    """Refuse an array none of whose chunks is where its metadata say, though there are some.

    Raises:
        InputError: it says where they are.
    """
    if presence.complete and presence.found == 0 and presence.other:
        wanted = str(node.file((0,) * len(node.shape)).relative_to(node.path))
        raise InputError(
            f"{node.path} has no chunk where its metadata say (as {wanted}), but has {presence.other}: correct the "
            f'separator of its chunk keys, "{"/" if node.separator == "." else "."}" instead of "{node.separator}"'
        )


def find_written(node: ArrayNode) -> Written | None:
    """Which files of a finished array there are; see `check_written`.  None where a store does not let us list.

    Those that are absent are not told apart where the array takes more than 4 million, of shards more than a terabyte,
    or where they are in more than 65,536 runs.

    Raises:
        OSError: they cannot be listed.
    """
    grid = node.files_grid
    count, head = math.prod(grid), len(node.prefix)
    files = size = 0
    cells = array("q")
    try:
        for file in _files(node.path):
            if _is_key(node, grid, file.key):
                try:
                    size += file.size()
                except FileNotFoundError:  # a link that leads nowhere
                    continue
                files += 1
                if count <= MOST_TOLD:
                    cells.extend(map(int, file.key.split(node.separator)[head:]))
    except OSError as error:
        if not node.path.waits or error.errno != errno.EACCES:
            raise
        return None  # as in `count_chunks`
    if count > MOST_TOLD:
        return Written(files, size, None)
    numbers = np.ravel_multi_index(tuple(np.array(cells).reshape(-1, len(grid)).T), grid)
    ends = np.concatenate([[-1], np.sort(numbers), [count]])
    gaps = np.flatnonzero(np.diff(ends) > 1)
    zeros = None if len(gaps) > MOST_RUNS else [(int(ends[i]) + 1, int(ends[i + 1])) for i in gaps]
    return Written(files, size, zeros)


def check_written(uri: str, presence: Presence, written: Written, what: str) -> None:
    """Refuse an array that lacks what was written of it; where not all was looked at, whoever reads it finds out.

    Raises:
        InputError: so many are missing.
    """
    if presence.complete and presence.found is not None and presence.found < written.files:
        raise InputError(
            f"{uri} is not whole: {presence.found} of the {written.files} {what} that were written are there: {LOST}"
        )


def check_presence(uri: str, presence: Presence, what: str = "chunks", fill: str = "the fill value") -> tuple[str, ...]:
    """What to say of pieces that are absent, and read as `fill`.

    Raises:
        InputError: nothing is there, or next to nothing of what the metadata say.
    """
    if not presence.absent:
        return ()
    if not presence.found:
        raise InputError(f"{uri} is empty: none of its {presence.expected} {what} is stored, write or copy them")
    if presence.expected >= _MANY and presence.found * _SPARSE < presence.expected:
        raise InputError(
            f"{uri} is damaged, or not copied as a whole: its metadata say {presence.expected} {what}, "
            f"{presence.found} are stored"
        )
    return (f"{uri}: {presence} {what} are stored, the others read as {fill}",)


def look_around(
    uri: str, presence: Presence, grid: Sequence[int], file: Callable[[tuple[int, ...]], Place], what: str = "chunks"
) -> tuple[str, ...]:
    """What to say of pieces that are absent where there are too many to be listed, by a look at some of them.

    Args:
        uri: for messages.
        presence: of all, as far as they were listed.
        grid: pieces on each axis.
        file: where a piece is, on a disk.
        what: the pieces are.
    """
    count = math.prod(grid)
    if presence.complete or presence.found is None or count <= MOST_LISTED:
        return ()
    numbers = {int(i * _GOLDEN * count) % count for i in range(_LOOKED)}
    there = sum(file(tuple(int(n) for n in np.unravel_index(number, grid))).exists() for number in numbers)
    if there == len(numbers):
        return ()
    return (f"{uri}: of {len(numbers)} {what} looked at {there} are stored, the others read as the fill value",)


def count_files(folder: str, is_piece: Callable[[str], bool], expected: int, *, nested: bool = False) -> Presence:
    """Count the files below a local folder whose names are those of pieces."""
    found = 0
    try:
        for seen, file in enumerate(_local_files(folder, "", nested=nested)):
            if seen == MOST_LISTED:
                return Presence(expected, found, complete=False)
            if is_piece(file.key):
                refuse_loose_link(file.link)
                found += 1
    except OSError:  # as in `count_chunks`
        return Presence(expected, None, complete=False)
    return Presence(expected, found, complete=True)


def _is_key(node: ArrayNode, grid: tuple[int, ...], key: str) -> bool:
    """Whether `key` is that of a chunk of the array, inside of it."""
    parts = key.split(node.separator)
    head = len(node.prefix)
    if tuple(parts[:head]) != node.prefix or len(parts) != head + len(grid):
        return False
    return all(p.isdecimal() and int(p) < n and str(int(p)) == p for p, n in zip(parts[head:], grid, strict=True))


class _File(NamedTuple):
    """What lies below an array: its name from there, its bytes when asked for, and its path where it is a link."""

    key: str
    size: Callable[[], int]
    link: str = ""


def _files(path: Place) -> Iterator[_File]:
    """What lies below an array by names that could be of chunks; of a folder in no order."""
    if isinstance(path, RemotePath):
        listed = path.store.sizes(path.key)
        return (_File(key[len(path.key) :].strip("/"), partial(int, size)) for key, size in listed)
    if isinstance(path, ZipPath):
        return (_File(name, partial(_size, path / name)) for name in path.member_names())
    return _local_files(str(path), "", nested=True)


def _size(file: Place) -> int:
    return file.version().size


def _entry_size(entry: os.DirEntry[str]) -> int:
    return entry.stat().st_size


def _local_files(folder: str, before: str, *, nested: bool) -> Iterator[_File]:
    """The same of a folder on a disk; none of one that is not there."""
    try:
        entries = os.scandir(folder)
    except FileNotFoundError:
        return
    with entries:
        for entry in entries:
            name = before + entry.name
            if not entry.is_dir():
                yield _File(name, partial(_entry_size, entry), entry.path if entry.is_symlink() else "")
            elif nested and (entry.name == "c" or entry.name.isdecimal()):
                yield from _local_files(entry.path, f"{name}/", nested=True)
