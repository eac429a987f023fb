"""What is asked of a run, in whole numbers: everything that decides how the work is cut and what it takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tilelab.engines.base import GpuRoom
from tilelab.errors import ModelError, PlanError
from tilelab.geometry import Frame, Lattice
from tilelab.io.images.volume import Volume
from tilelab.io.zarr.layout import Layout
from tilelab.kernels.symmetries import check_square
from tilelab.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What planning needs to know of an image.

    shape, chunks: in pixels on (z, y, x).
    channels: as the network takes them, neighbouring slices included.
    dtype: of a pixel.
    pixel_size_nm: on (z, y, x); None when unknown.
    """

    shape: tuple[int, int, int]
    chunks: tuple[int, int, int]
    channels: int
    dtype: np.dtype[np.generic]
    pixel_size_nm: tuple[float, ...] | None = None

    @classmethod
    def of(cls, volume: Volume) -> ImageFacts:
        """Those of what the network is given."""
        return cls(volume.shape, volume.chunks, volume.channels, volume.dtype, volume.pixel_size_nm)

    @property
    def bytes(self) -> int:
        """Of all decoded pixels."""
        return math.prod(self.shape) * self.channels * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Written:
    """What is written for each pixel.

    labels: the class (1 byte).
    probabilities: the classes that get a channel (1 byte each).
    logits: number of logits (4 bytes each), 0 for none.
    maps: names and channels (4 bytes each) of the outputs that are kept as numbers.
    """

    labels: bool
    probabilities: tuple[int, ...] = ()
    logits: int = 0
    maps: tuple[tuple[str, int], ...] = ()

    @property
    def floats(self) -> int:
        """Numbers of 4 bytes."""
        return self.logits + sum(count for _, count in self.maps)

    @property
    def bytes_per_pixel(self) -> int:
        """Uncompressed, at level 0."""
        return self.labels + len(self.probabilities) + 4 * self.floats


def written_maps(spec: ModelSpec) -> tuple[tuple[str, int], ...]:
    """The maps that are kept of a model: all of them."""
    return tuple((output.name, output.channels) for output in spec.maps)


@dataclass(frozen=True)
class Request:
    """An image, a model and what is wanted of them.

    image, spec: with tile, overlap and window as they will be used.
    written: per pixel.
    lattice, frame: where the tiles lie on (z, y, x), and which axis is swept.
    batch: tiles per run of the engine.
    streams: runs of the engine that are under way at once.
    symmetries: 1, or 8 for test-time augmentation over the symmetries of the square.
    masked: whether a mask says where the result is wanted.
    gpu: what the engine leaves of its GPU, where tiles, logits and the canvas will be; None without one.
    """

    image: ImageFacts
    spec: ModelSpec
    written: Written
    lattice: Lattice
    frame: Frame
    batch: int = 1
    streams: int = 1
    symmetries: int = 1
    masked: bool = False
    gpu: GpuRoom | None = None

    @classmethod
    def of(
        cls,
        image: ImageFacts,
        spec: ModelSpec,
        written: Written,
        *,
        batch: int = 1,
        streams: int = 1,
        symmetries: int = 1,
        masked: bool = False,
        gpu: GpuRoom | None = None,
    ) -> Request:
        """With the tiles where the model's description puts them.

        Raises:
            ModelError: symmetries are asked of a tile that is no square.
            PlanError: the image does not suit the model.
        """
        if symmetries > 1:
            check_square(spec.tile)
        if symmetries > 1 and (spec.maps or spec.outputs[0].kind == "labels"):
            raise ModelError(
                "the 8 symmetries are averaged, which labels and maps (of directions, say) cannot be: leave --tta out"
            )
        flat = spec.axes == "yx"
        if not flat and image.shape[0] == 1:
            raise PlanError("the model is 3-D (zyx) but the image is a single plane: give a volume")
        lattice = Lattice.fit(
            image.shape,
            (1, *spec.core) if flat else spec.core,
            (0, *spec.core_overlap) if flat else spec.core_overlap,
            stride=(1, spec.stride, spec.stride) if flat else spec.stride,
            window=spec.window,
            halo=(0, *spec.halo) if flat else spec.halo,
        )
        return cls(image, spec, written, lattice, Frame(1 if flat else 0), batch, streams, symmetries, masked, gpu)

    @property
    def layout(self) -> Layout:
        """How the result is cut into levels, shards and chunks; its grain is what units are cut at."""
        return Layout.fit(
            self.image.shape,
            self.image.pixel_size_nm,
            "2d" if self.spec.axes == "yx" else "3d",
            self.written.bytes_per_pixel,
        )
