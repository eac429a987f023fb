"""A small image that is spread over all of a large one."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

import numpy as np

from tilelab.arrays import Array
from tilelab.geometry import Box
from tilelab.io.images.image import Image

MOST_PIXELS = 4 << 20
_LEAST_BLOCK = 64  # pixels that are kept together where the image has no chunks


class ThinnedImage(Image):
    """Every n-th block of `image` along each spatial axis, put side by side; a block is a chunk, or 64 pixels of rows.

    Attributes:
        bytes, seconds: what was read of `image` so far.
        blocks: how many of its blocks there are, and how many of those of `image`.
    """

    def __init__(
        self,
        image: Image,
        most_pixels: int = MOST_PIXELS,
        least: Mapping[str, int] | None = None,
        *,
        nan: float | None = None,
    ) -> None:
        """Keep about `most_pixels`; `least` is the smallest extent by axis letter, if the image has that much.

        What is not finite is `nan`, if that is given.
        """
        self._image, self._nan = image, nan
        self._extent, self._steps = [], []
        least = least or {}
        kept = [n if a == "c" else min(n, least.get(a, 1)) for a, n in zip(image.axes, image.shape, strict=True)]
        for axis, chunk in zip(image.axes, image.chunks, strict=True):
            self._extent.append(chunk if axis in "cz" else max(chunk, _LEAST_BLOCK))
        growing = True
        while growing:  # axes grow in turn, by doubling, as long as the whole stays small enough
            growing = False
            for i, (axis, n) in enumerate(zip(image.axes, image.shape, strict=True)):
                more = min(n, max(2 * kept[i], self._extent[i]))
                spatial = math.prod(kept) // kept[i] // (1 if "c" not in image.axes else image.shape[0])
                if axis != "c" and more > kept[i] and spatial * more <= most_pixels:
                    kept[i] = more
                    growing = True
        shape = []
        for n, extent, keep in zip(image.shape, self._extent, kept, strict=True):
            count, wanted = -(-n // extent), -(-keep // extent)
            step = max(1, count // max(1, wanted))
            chosen = range(0, count, step)
            self._steps.append(step)
            shape.append(sum(min(n, (i + 1) * extent) - i * extent for i in chosen))
        self.uri, self.axes, self.dtype = image.uri, image.axes, image.dtype
        self.shape = tuple(shape)
        self.chunks = tuple(min(e, n) for e, n in zip(self._extent, shape, strict=True))
        self.pixel_size_nm = image.pixel_size_nm
        self.blocks = (
            math.prod(-(-n // e) for n, e in zip(self.shape, self._extent, strict=True)),
            math.prod(-(-n // e) for n, e in zip(image.shape, self._extent, strict=True)),
        )
        self.bytes, self.seconds = 0, 0.0
        self._lock = threading.Lock()

    def read(self, box: Box) -> Array:
        """Put together from the blocks that lie in `box`; see `Image.read`."""
        out = np.empty(box.shape, self.dtype)
        ranges = [range(a // e, -(-b // e)) for a, b, e in zip(box.start, box.stop, self._extent, strict=True)]
        began = time.perf_counter()
        for at in np.ndindex(*(len(r) for r in ranges)):
            start, stop, into = [], [], []
            for i, r, e, step, a, b in zip(at, ranges, self._extent, self._steps, box.start, box.stop, strict=True):
                first, last = max(a, r[i] * e), min(b, (r[i] + 1) * e)
                shift = r[i] * (step - 1) * e
                start.append(first + shift)
                stop.append(last + shift)
                into.append(slice(first - a, last - a))
            out[tuple(into)] = self._image.read(Box(tuple(start), tuple(stop)))
        if self._nan is not None and self.dtype.kind == "f":
            np.nan_to_num(out, copy=False, nan=self._nan, posinf=self._nan, neginf=self._nan)
        with self._lock:
            self.bytes += out.nbytes
            self.seconds += time.perf_counter() - began
        return out

    def fingerprint(self) -> dict[str, str]:
        return self._image.fingerprint() | {"thinned": str(self._steps)}
