"""What is done with files wherever they lie: regions of bare arrays, and fingerprints."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Mapping
from itertools import product

import numpy as np

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.storage.decode import for_each
from tilelab.io.storage.place import Place
from tilelab.io.storage.stored_file import StoredFile, unreadable

_ENDS = 64 * 2**10
_RUN_BYTES = 4 * 2**20  # read from a remote store in one piece


def read_region(file: StoredFile, offset: int, shape: tuple[int, ...], box: Box, out: Array) -> None:
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
    if file.waits:
        starts = [first + sum(position) for position in outer]
        _read_runs(file, starts, run, target)
        return
    for i, position in enumerate(outer):
        file.read_into(first + sum(position), target[i * run : (i + 1) * run])


def _read_runs(file: StoredFile, starts: list[int], run: int, target: memoryview) -> None:
    """Read runs of `run` bytes of a file in a store into consecutive parts of `target`, many at a time."""
    each = max(1, _RUN_BYTES // run)

    def read(at: int) -> None:
        part = [(start, run) for start in starts[at : at + each]]
        file.fetch(part)
        for i, (start, count) in enumerate(part, start=at):
            target[i * run : (i + 1) * run] = file.read(start, count)

    for_each(read, range(0, len(starts), each), requests=True)


def hash_file(file: StoredFile) -> dict[str, str]:
    """What identifies a file's content cheaply: size, modification time (or tag), and a hash of its two ends."""
    size, kind, mark = file.version()
    ends = hashlib.sha256(file.read(0, min(_ENDS, size)))
    ends.update(file.read(max(0, size - _ENDS), min(_ENDS, size)))
    return {"bytes": str(size), kind: mark, "ends_sha256": ends.hexdigest()}


def identity_of(fingerprint: Mapping[str, str]) -> str:
    """What a file that is made of an image keeps of the image's fingerprint."""
    return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, repr(sorted(fingerprint.items())))}"


def hash_stats(places: Iterable[Place]) -> str:
    """Hash of name, size and modification time (or tag) of files; a missing one counts as such.

    Raises:
        InputError: a disk or store does not say.
    """
    listed = list(places)
    told = [""] * len(listed)

    def ask(i: int) -> None:
        told[i] = _stat_line(listed[i])

    for_each(ask, range(len(listed)), threads=False, requests=any(place.waits for place in listed))
    return hashlib.sha256("".join(told).encode()).hexdigest()


def _stat_line(place: Place) -> str:
    try:
        size, _, mark = place.version()
    except (FileNotFoundError, NotADirectoryError):
        return f"{place.name} missing\n"
    except OSError as error:
        raise unreadable(place, error) from None
    return f"{place.name} {size} {mark}\n"
