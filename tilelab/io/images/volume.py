"""Any image as ``(c, z, y, x)``: the one shape in which the sweep sees it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.errors import ModelError
from tilelab.geometry import Box, reflect
from tilelab.io.images.image import Image
from tilelab.spec import ModelSpec


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

    def read(self, box: Box) -> Array:
        """Region ``(z, y, x)`` with all channels, ``(c, z, y, x)``."""
        start = dict(zip("zyx", box.start, strict=True)) | {"c": 0}
        stop = dict(zip("zyx", box.stop, strict=True)) | {"c": self.channels}
        axes = self.image.axes
        region = Box(tuple(start[a] for a in axes), tuple(stop[a] for a in axes))
        return self.image.read(region).reshape(self.channels, *box.shape)


class Neighbourhood(Volume):
    """A grey stack in which every slice has its neighbours as channels: slice ``z + c - n`` is channel `c` of slice z.

    Beyond the first and the last slice the stack is reflected.  A region and the slices around it are read once,
    however many slices each of them is a neighbour of.
    """

    def __init__(self, volume: Volume, neighbours: int) -> None:
        super().__init__(volume.image)
        self._volume = volume
        self.neighbours = neighbours
        self.channels = 2 * neighbours + 1

    def read(self, box: Box) -> Array:
        """Region ``(z, y, x)`` with neighbours, ``(c, z, y, x)``."""
        around = np.arange(-self.neighbours, self.neighbours + 1)[:, None]
        index = reflect(np.arange(box.start[0], box.stop[0], dtype=np.int64) + around, self.shape[0])  # (c, z)
        if not index.size:
            return np.empty((self.channels, *box.shape), self.dtype)
        first, last = int(index.min()), int(index.max())
        slices = self._volume.read(Box((first, *box.start[1:]), (last + 1, *box.stop[1:])))[0]
        stacked: Array = slices[index - first]
        return stacked


def network_input(volume: Volume, spec: ModelSpec) -> Volume:
    """`volume` with the channels that the network takes: itself, or with neighbouring slices as channels.

    Raises:
        ModelError: the network takes neighbours and the image has channels already.
    """
    if volume.image.neighbours == spec.neighbours:
        return volume
    if volume.channels > 1:
        raise ModelError(
            f"the model takes neighbouring slices as channels, {volume.image.uri} has {volume.channels} channels "
            "of its own: choose one with --channel, or say with --axes what they are (z: slices)"
        )
    return Neighbourhood(volume, spec.neighbours)
