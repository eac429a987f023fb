"""An image at another pixel size, computed as it is read."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from tilelab.arrays import Array, Float32, Int64
from tilelab.geometry import Box
from tilelab.io.images.image import Image


class ResampledImage(Image):
    """`image` with pixels that are larger or smaller by a factor for each axis.

    Linear interpolation; where pixels become larger, a triangle filter of their width, which keeps fine structure from
    turning into patterns (as Pillow's BILINEAR).  A pixel's value does not depend on the region that it is read in.
    """

    def __init__(
        self, image: Image, steps: Mapping[str, float], pixel_size_nm: tuple[float, ...] | None = None
    ) -> None:
        """`steps`: pixels of `image` for each pixel, by axis (1 if not named); `pixel_size_nm`: what they give."""
        spatial = [a for a in image.axes if a != "c"]
        self._image = image
        self._steps = tuple(steps.get(a, 1.0) for a in image.axes)  # source pixels per pixel
        self.uri, self.axes, self.dtype = image.uri, image.axes, image.dtype
        self.warnings, self.assumptions = image.warnings, image.assumptions
        self.shape = tuple(max(1, round(n / s)) for n, s in zip(image.shape, self._steps, strict=True))
        self.chunks = tuple(max(1, round(n / s)) for n, s in zip(image.chunks, self._steps, strict=True))
        sizes = image.pixel_size_nm
        if sizes is not None and pixel_size_nm is None:
            pixel_size_nm = tuple(n * steps.get(a, 1) for a, n in zip(spatial, sizes, strict=True))
        self.pixel_size_nm = pixel_size_nm
        origin = image.origin_px or (0.0,) * len(spatial)
        # the centre of the first pixel lies between those of the pixels it is made of
        self.origin_px = tuple(
            (o + (s - 1) / 2) / s for o, s in zip(origin, (steps.get(a, 1) for a in spatial), strict=True)
        )

    def read(self, box: Box) -> Array:
        """Resample one region; see `Image.read`."""
        taps = [
            _taps(a, b, step, size)
            for a, b, step, size in zip(box.start, box.stop, self._steps, self._image.shape, strict=True)
        ]
        start = tuple(int(index.min()) for index, _ in taps)
        stop = tuple(int(index.max()) + 1 for index, _ in taps)
        values: Array = self._image.read(Box(start, stop))
        for axis, ((index, weights), step) in enumerate(zip(taps, self._steps, strict=True)):
            if step != 1:
                values = _weigh(values, axis, index - start[axis], weights)
        if self.dtype.kind != "u" or values.dtype == self.dtype:
            return values.astype(self.dtype, copy=False)
        return np.rint(values).clip(0, np.iinfo(self.dtype).max).astype(self.dtype)

    def fingerprint(self) -> dict[str, str]:
        """The source's, and the steps."""
        return self._image.fingerprint() | {"resampled_by": str(self._steps)}

    def close(self) -> None:
        """Close the source."""
        self._image.close()


def _taps(start: int, stop: int, step: float, size: int) -> tuple[Int64, Float32]:
    """For each pixel ``start:stop``, the source pixels that it is made of, and their weights; both ``(n, taps)``."""
    at = np.arange(start, stop, dtype=np.int64)
    if step == 1:
        return at[:, None], np.ones((len(at), 1), np.float32)
    centre = (at + 0.5) * step - 0.5
    reach = max(1.0, step)
    first = np.floor(centre - reach).astype(np.int64) + 1
    index = first[:, None] + np.arange(math.ceil(2 * reach))
    weights = np.maximum(0, 1 - np.abs(index - centre[:, None]) / reach) * ((index >= 0) & (index < size))
    weights /= weights.sum(axis=1, keepdims=True)
    return index.clip(0, size - 1), weights.astype(np.float32)


def _weigh(values: Array, axis: int, index: Int64, weights: Float32) -> Array:
    """The weighted sum of source pixels along one axis, in float32, tap by tap."""
    shape = [1] * values.ndim
    shape[axis] = len(index)
    total: Array | None = None
    for tap in range(index.shape[1]):
        part = values.take(index[:, tap], axis=axis) * weights[:, tap].reshape(shape)
        total = part if total is None else total + part
    assert total is not None  # noqa: S101 - there is always a tap
    return total
