"""The sharded storage of neuroglancer precomputed volumes, ``neuroglancer_uint64_sharded_v1``.

A chunk's number is the compressed Morton code of its place in the grid: the bits of x, y and z in turn, of every axis
only as many as its extent takes.  Numbers that differ in their low bits alone lie near each other, so

    number  =  shard bits | minishard bits | preshift bits       (identity hash; high to low)

makes a minishard of chunks that form a box, and a shard of such boxes:

    shard file  =  shard index | chunk | chunk | ... | minishard index | ...
    shard index =  begin and end of each minishard's index, after the shard index          (uint64, little endian)
    minishard index = [numbers, begins, sizes] of its chunks, numbers and begins as differences (uint64), gzip
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilelab.geometry import Box

_MINISHARD = 6
_SHARD = 15
"""Bits of a minishard's and of a shard's chunks: 64 and 32,768 of them, which are 4 to 8 MiB and 2 to 4 GiB of pixels
before compression.  Both the indices that a viewer has to load and the number of files stay small."""


@dataclass(frozen=True)
class Sharding:
    """How the chunks of one scale are stored.

    grid: chunks on (x, y, z).
    """

    grid: tuple[int, int, int]

    @property
    def axis_bits(self) -> tuple[int, ...]:
        """Bits of the Morton code by axis."""
        return tuple((n - 1).bit_length() for n in self.grid)

    @property
    def preshift(self) -> int:
        """Bits within a minishard."""
        return min(_MINISHARD, sum(self.axis_bits))

    @property
    def minishard_bits(self) -> int:
        """Bits of a minishard within its shard."""
        return min(_SHARD, sum(self.axis_bits)) - self.preshift

    @property
    def shard_bits(self) -> int:
        """Bits of a shard."""
        return sum(self.axis_bits) - self.preshift - self.minishard_bits

    def document(self) -> dict[str, Any]:
        """As it stands in ``info``."""
        return {
            "@type": "neuroglancer_uint64_sharded_v1",
            "hash": "identity",
            "preshift_bits": self.preshift,
            "minishard_bits": self.minishard_bits,
            "shard_bits": self.shard_bits,
            "minishard_index_encoding": "gzip",
            "data_encoding": "gzip",
        }

    def shard_name(self, shard: int) -> str:
        """The file of a shard."""
        return f"{shard:0{-(-self.shard_bits // 4)}x}.shard"

    def locate(self, number: int) -> tuple[int, int, int]:
        """The place (x, y, z) of a chunk; it may lie beyond the grid, whose extents need be no powers of two."""
        at, bit = [0, 0, 0], 0
        for level in range(max(self.axis_bits, default=0)):
            for axis in range(3):
                if level < self.axis_bits[axis]:
                    at[axis] |= (number >> bit & 1) << level
                    bit += 1
        return at[0], at[1], at[2]

    def minishard_box(self, shard: int, minishard: int) -> Box:
        """The chunks (x, y, z) of a minishard, beyond the grid excluded; empty when all are."""
        first = (shard << self.minishard_bits | minishard) << self.preshift
        start, last = self.locate(first), self.locate(first + (1 << self.preshift) - 1)
        stop = tuple(min(b + 1, n) for b, n in zip(last, self.grid, strict=True))
        return Box(start, tuple(max(a, b) for a, b in zip(start, stop, strict=True)))

    def numbers(self, shard: int, minishard: int) -> Iterator[tuple[int, tuple[int, int, int]]]:
        """Number and place of each chunk of a minishard, in order."""
        first = (shard << self.minishard_bits | minishard) << self.preshift
        for number in range(first, first + (1 << self.preshift)):
            at = self.locate(number)
            if all(i < n for i, n in zip(at, self.grid, strict=True)):
                yield number, at


def encode_minishard_index(numbers: Sequence[int], begins: Sequence[int], sizes: Sequence[int]) -> bytes:
    """The index of a minishard, compressed; `begins` count from the end of the shard index."""
    index = np.zeros((3, len(numbers)), "<u8")
    index[0] = np.diff(numbers, prepend=0)
    index[1] = np.array(begins) - np.concatenate([[0], np.array(begins[:-1]) + np.array(sizes[:-1])])
    index[2] = sizes
    return compress(index.tobytes())


def compress(data: bytes) -> bytes:
    """Gzip without a time, so that the same data have the same bytes."""
    return gzip.compress(data, 4, mtime=0)
