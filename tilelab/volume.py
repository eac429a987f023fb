"""Any image as ``(c, z, y, x)``: the one shape in which the sweep sees it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tilelab.geometry import Box
from tilelab.io.base import Image


class Volume:
    """An image with its missing axes added.

    Attributes:
        image: what is read.
        channels: 1 for an image without a channel axis.
        shape, chunks, chunk_phase: in pixels on (z, y, x); see `Image`.
        dtype: of the image.
        pixel_size_nm: on (z, y, x), z = 0 for a plane; None when unknown.
    """

    def __init__(self, image: Image) -> None:
        self.image = image
        sizes = dict(zip(image.axes, image.shape, strict=True))
        chunks = dict(zip(image.axes, image.chunks, strict=True))
        self.channels = sizes.get("c", 1)
        self.shape = (sizes.get("z", 1), sizes["y"], sizes["x"])
        self.chunks = (max(1, chunks.get("z", 1)), max(1, chunks["y"]), max(1, chunks["x"]))
        phase = dict(zip(image.axes, image.chunk_phase, strict=True)) if image.chunk_phase else {}
        self.chunk_phase = (phase.get("z", 0), phase.get("y", 0), phase.get("x", 0))
        self.dtype: np.dtype[Any] = image.dtype
        size = image.pixel_size_nm
        self.pixel_size_nm = None if size is None else ((0.0, *size) if "z" not in image.axes else tuple(size))

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Region ``(z, y, x)`` with all channels, ``(c, z, y, x)``."""
        start = dict(zip("zyx", box.start, strict=True)) | {"c": 0}
        stop = dict(zip("zyx", box.stop, strict=True)) | {"c": self.channels}
        axes = self.image.axes
        region = Box(tuple(start[a] for a in axes), tuple(stop[a] for a in axes))
        return self.image.read(region).reshape(self.channels, *box.shape)
