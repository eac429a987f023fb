"""How to tell, without reading much, that shards on a disk are those that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Self

import google_crc32c
import msgspec


class Census(msgspec.Struct, frozen=True):
    """Of some shards: how many files there are, their bytes, and a sum of hashes of their places and contents.

    Sums add, in any order: parts of a result may be counted apart and by different workers.

    Attributes:
        files: shards that are not all zeros, which have a file.
        bytes: of these files.
        digest: modulo 2**64; 0 where contents were not looked at.
    """

    files: int = 0
    bytes: int = 0
    digest: int = 0

    def __add__(self, other: Self) -> Census:
        return Census(self.files + other.files, self.bytes + other.bytes, (self.digest + other.digest) % 2**64)

    @property
    def sizes(self) -> tuple[int, int]:
        """What can be told without reading a file."""
        return self.files, self.bytes


def count_shard(place: str, pieces: Iterable[bytes]) -> Census:
    """One shard, from the pieces of its content; `place` is its path in the result."""
    size, checksum = 0, 0
    for piece in pieces:
        size += len(piece)
        checksum = google_crc32c.extend(checksum, piece)
    text = f"{place} {size} {checksum}".encode()
    return Census(1, size, int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big"))
