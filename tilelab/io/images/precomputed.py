"""Neuroglancer precomputed volumes in local folders, through TensorStore: raw, JPEG, PNG, compressed segmentation."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np

from tilelab.errors import InputError
from tilelab.io.images.optional import read_json
from tilelab.io.images.source import check_level
from tilelab.io.images.tensorstore import StoredVolume
from tilelab.io.storage.files import hash_stats
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.outside import leaves

_MOST_STATS = 1024


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
        info = read_json(folder / "info")
        if "scales" not in info:
            raise InputError(f"{path} is no volume but {info.get('@type', 'of an unknown type')}: it has no scales")
        try:
            scales = sorted(enumerate(info["scales"]), key=lambda entry: math.prod(map(float, entry[1]["resolution"])))
            check_level(path, level, len(scales))
            channels = int(info["num_channels"])
            self.levels = tuple((channels, *(int(n) for n in scale["size"][::-1])) for _, scale in scales)
            number, scale = scales[level]
            self.scale_nm = {a: float(v) for a, v in zip("xyz", scale["resolution"], strict=True)}
            begins = [int(v) for v in scale.get("voxel_offset", (0, 0, 0))]
            self.offset_px = {a: float(v) for a, v in zip("xyz", begins, strict=True) if v}
            self._scale = folder / str(scale["key"])
            self.outside = tuple(f"{folder}/{s['key']}" for _, s in scales if leaves(str(s["key"])))
            encoding = str(scale["encoding"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{folder / 'info'} is damaged: {type(error).__name__} {error}") from error
        self.axes = "czyx"
        self.open_store(
            {
                "driver": "neuroglancer_precomputed",
                "kvstore": {"driver": "file", "path": f"{folder.absolute()}/"},
                "scale_index": number,
            }
        )
        self._info, self._begins = info, begins
        self._sharded = scale.get("sharding") is not None
        self.details = {
            "compression": encoding,
            "layout": str(info.get("type", "")) or None,
            "offset": dict(zip("xyz", begins, strict=True)) if any(begins) else None,
        }

    def fingerprint(self) -> dict[str, str]:
        """Hash of the metadata, and of size and modification time of up to 1024 files spread over the scale."""
        metadata = hashlib.sha256((LocalPath(self.uri) / "info").read_bytes()).hexdigest()
        return {"metadata_sha256": metadata, "chunks_sha256": hash_stats(self._files())}

    def _files(self) -> list[LocalPath]:
        if self._sharded:
            found = sorted(self._scale.glob("*.shard"))
            return found[:: max(1, len(found) // _MOST_STATS)]
        shape, chunk = self.shape[:0:-1], self.chunks[:0:-1]
        grid = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
        count = math.prod(grid)
        chosen = sorted({i * count // min(count, _MOST_STATS) for i in range(min(count, _MOST_STATS))})
        return [self._scale / self._name([int(v) for v in np.unravel_index(i, grid)], shape, chunk) for i in chosen]

    def _name(self, cell: list[int], shape: Any, chunk: Any) -> str:
        """The file of a chunk: its range on x, y and z."""
        ranges = zip(cell, shape, chunk, self._begins, strict=True)
        return "_".join(f"{begin + i * c}-{begin + min(n, (i + 1) * c)}" for i, n, c, begin in ranges)
