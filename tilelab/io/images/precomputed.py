"""Neuroglancer precomputed volumes in local folders, through TensorStore: raw, JPEG, PNG, compressed segmentation."""

from __future__ import annotations

import hashlib
import math
import re
from typing import Annotated

import msgspec
import numpy as np

from tilelab.errors import InputError
from tilelab.io.images.optional import read_json
from tilelab.io.images.source import check_level
from tilelab.io.images.tensorstore import StoredVolume
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.outside import leaves
from tilelab.io.zarr.presence import Presence, check_presence, count_files, look_around

_MOST_STATS = 1024
_PACKED = (".gz", ".br", ".zstd")
_SHARD = re.compile(r"[0-9a-f]+\.shard")
_CROWDED = 64
"""So many groups of chunks for each shard leave none empty, whatever their numbers are hashed to."""
_Triple = tuple[int, int, int]
_Size = tuple[Annotated[int, msgspec.Meta(ge=1, lt=2**62)], ...]
_Bits = Annotated[int, msgspec.Meta(ge=0, le=64)]


class _Sharding(msgspec.Struct):
    """How chunks are put together into shards."""

    preshift_bits: _Bits
    minishard_bits: _Bits
    shard_bits: _Bits
    hash: str = "identity"

    def count(self, grid: list[int]) -> int | None:
        """How many shards chunks of `grid` (x, y, z) take; None where their numbers are hashed and too few to tell.

        A chunk's number is the bits of x, y and z in turn, of each as many as it takes; the lowest count inside of a
        shard, so that shards are a grid of their own.
        """
        bits = [(n - 1).bit_length() for n in grid]
        if self.hash != "identity":
            groups = math.prod(grid) >> self.preshift_bits
            return 1 << self.shard_bits if groups >= _CROWDED << self.shard_bits else None
        order = [axis for level in range(max(bits, default=0)) for axis in range(len(grid)) if level < bits[axis]]
        low = self.preshift_bits + self.minishard_bits
        inner, outer = order[:low], order[low : low + self.shard_bits]
        cells = [-(-n // (1 << inner.count(axis))) for axis, n in enumerate(grid)]
        return math.prod(min(n, 1 << outer.count(axis)) for axis, n in enumerate(cells))


class _Scale(msgspec.Struct):
    """One resolution of a volume; numbers go from x to z."""

    key: str
    size: Annotated[_Size, msgspec.Meta(min_length=3, max_length=3)]
    resolution: tuple[float, float, float]
    encoding: str
    chunk_sizes: Annotated[list[Annotated[_Size, msgspec.Meta(min_length=3, max_length=3)]], msgspec.Meta(min_length=1)]
    voxel_offset: _Triple = (0, 0, 0)
    sharding: _Sharding | None = None


class _Info(msgspec.Struct):
    """The ``info`` of a volume."""

    num_channels: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    scales: Annotated[list[_Scale], msgspec.Meta(min_length=1)]
    type: str = ""


msgspec.json.Decoder(_Info)  # known once, here: two threads that ask first crash msgspec


class PrecomputedSource(StoredVolume):
    """One scale of a precomputed volume; scales are levels, the finest first.

    Axes are ``czyx``.  A volume may begin anywhere (``voxel_offset``): regions count from its first pixel, and where
    that lies is kept.

    Raises:
        InputError: the metadata are damaged, it is no volume (a mesh, annotations), or its encoding is unknown.
    """

    format = "neuroglancer precomputed"

    def __init__(self, path: str, level: int = 0) -> None:
        self.uri = path
        folder = LocalPath(path)
        document = read_json(folder / "info")
        if "scales" not in document:
            raise InputError(f"{path} is no volume but {document.get('@type', 'of an unknown type')}: it has no scales")
        try:
            info = msgspec.convert(document, _Info)
        except (ValueError, OverflowError) as error:
            raise InputError(f"{folder / 'info'} is damaged: {error}") from error
        scales = sorted(enumerate(info.scales), key=lambda entry: math.prod(entry[1].resolution))
        check_level(path, level, len(scales))
        self.levels = tuple((info.num_channels, *scale.size[::-1]) for _, scale in scales)
        number, scale = scales[level]
        self.scale_nm = dict(zip("xyz", scale.resolution, strict=True))
        begins = list(scale.voxel_offset)
        self.offset_px = {a: float(v) for a, v in zip("xyz", begins, strict=True) if v}
        self._scale = folder / scale.key
        self.outside = tuple(f"{folder}/{s.key}" for _, s in scales if leaves(s.key))
        self.axes = "czyx"
        self.open_store(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
                "scale_index": number,
            }
        )
        self._begins = begins
        self._sharding = scale.sharding
        presence = self._count()
        self.warnings += check_presence(path, presence, "shards" if self._sharding else "chunks")
        if self._sharding is None:
            self.warnings += look_around(path, presence, self._grid, self._chunk)
        self.details = {
            "compression": scale.encoding,
            "layout": info.type or None,
            "stored": str(presence),
            "offset": dict(zip("xyz", begins, strict=True)) if any(begins) else None,
        }

    def _count(self) -> Presence:
        """How many files there are; of shards whose number nobody knows, whether there is one."""
        if self._sharding is not None:
            expected = self._sharding.count(self._grid)
            found = count_files(str(self._scale), lambda name: bool(_SHARD.fullmatch(name)), expected or 1)
            return found if expected is not None else Presence(1, min(1, found.found or 0), found.complete)
        expected = math.prod(self._grid)
        presence = count_files(str(self._scale), self._is_chunk, expected)
        if presence.found != expected:
            packed = count_files(str(self._scale), self._is_packed, expected)
            if packed.found:
                raise InputError(
                    f"{self.uri} has {packed} chunks as packed files (of the ends {', '.join(_PACKED)}), as "
                    "cloud-volume writes them to a disk, which would read as 0: unpack them, as with "
                    f"`gunzip -r '{self._scale}'`"
                )
        return presence

    def _is_packed(self, name: str) -> bool:
        """Whether a file is named as a chunk that was compressed as a whole."""
        return name.endswith(_PACKED) and self._is_chunk(name.rpartition(".")[0])

    def _is_chunk(self, name: str) -> bool:
        """Whether a file is named as a chunk of this scale, by the range that it covers."""
        ranges = re.fullmatch("_".join([r"(-?\d+)-(-?\d+)"] * 3), name)
        if ranges is None:
            return False
        pairs = zip(*(iter(ranges.groups()),) * 2, strict=True)
        shape, chunk = self.shape[:0:-1], self.chunks[:0:-1]
        for (first, last), size, step, begin in zip(pairs, shape, chunk, self._begins, strict=True):
            at = int(first) - begin
            if not 0 <= at < size or at % step or int(last) - begin != min(size, at + step):
                return False
        return True

    def fingerprint(self) -> dict[str, str]:
        """Hash of the metadata, and of size and modification time of up to 1024 files spread over the scale."""
        metadata = hashlib.sha256((LocalPath(self.uri) / "info").read_bytes()).hexdigest()
        return {"metadata_sha256": metadata, "chunks_sha256": hash_stats(self._files())}

    def _files(self) -> list[LocalPath]:
        if self._sharding is not None:
            found = sorted(self._scale.glob("*.shard"))
            return found[:: max(1, len(found) // _MOST_STATS)]
        count = math.prod(self._grid)
        chosen = sorted({i * count // min(count, _MOST_STATS) for i in range(min(count, _MOST_STATS))})
        return [self._chunk(tuple(int(v) for v in np.unravel_index(i, self._grid))) for i in chosen]

    @property
    def _grid(self) -> list[int]:
        """Chunks on x, y and z."""
        return [-(-n // c) for n, c in zip(self.shape[:0:-1], self.chunks[:0:-1], strict=True)]

    def _chunk(self, cell: tuple[int, ...]) -> LocalPath:
        """The file of a chunk: its range on x, y and z."""
        ranges = zip(cell, self.shape[:0:-1], self.chunks[:0:-1], self._begins, strict=True)
        name = "_".join(f"{begin + i * c}-{begin + min(n, (i + 1) * c)}" for i, n, c, begin in ranges)
        return self._scale / name
