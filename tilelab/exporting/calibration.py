"""Tiles from which quantisation learns the ranges of a network's activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Float32
from tilelab.errors import InputError, ModelError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.run.normalize import plane_constants
from tilelab.spec import ModelSpec

TILES = 48
"""More changed nothing in what was measured."""

Tiles = list[Float32]
_WHITE = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True, slots=True)
class Variation:
    """How brightness and contrast of the tiles vary.

    A range that was measured on the images as they are clips whatever is a little brighter or darker.  What the network
    was trained with is right; the defaults suit images taken with one microscope.

    brightness  greatest shift, either way, in units of the full scale of the data type
    contrast    range of the factor about the tile's mean
    """

    brightness: float = 0.1
    contrast: tuple[float, float] = (0.8, 1.25)


def draw_tiles(
    images: Sequence[Image], spec: ModelSpec, *, count: int = TILES, variation: Variation | None = None, seed: int = 0
) -> Tiles:
    """Normalised tiles ``(1, channels, *tile)``, always the same for the same images.

    Args:
        images: planes, of any size; what lies beyond their edges is reflected.
        spec: of the network; 2-D.
        count: of tiles, dealt to the images in turn.
        variation: of brightness and contrast; None leaves the images as they are.
        seed: of places and variation.

    Raises:
        ModelError: the network is not 2-D, or an image does not suit it.
        InputError: an image holds pixels that are not finite.
    """
    if spec.axes != "yx":
        raise ModelError("quantisation is for 2-D networks")
    rng = np.random.default_rng(seed)
    constants = {}
    tiles: Tiles = []
    for index in range(count):
        which = index % len(images)
        volume = Volume(images[which])
        if which not in constants:
            mean, gain = plane_constants(volume, spec.normalization, spec.channels)
            constants[which] = mean[:, None, None], gain[:, None, None]
        mean, gain = constants[which]
        raw = _cut(volume, spec.tile, rng)
        if not np.isfinite(raw).all():
            raise InputError(
                f"{volume.image.uri} holds pixels that are not finite (NaN or infinite), of which no range can be "
                "learned: replace them, or leave the image out"
            )
        if variation is not None:
            white = _WHITE.get(str(volume.dtype), float(raw.max()) or 1.0)
            shift = rng.uniform(-variation.brightness, variation.brightness) * white
            contrast = np.exp(rng.uniform(*np.log(variation.contrast)))
            raw = np.clip((raw - raw.mean()) * contrast + raw.mean() + shift, min(0.0, raw.min()), white)
        tile = (raw - mean) * gain
        clip = spec.normalization.clip
        tiles.append(np.ascontiguousarray((tile if clip is None else np.clip(tile, *clip))[None], np.float32))
    return tiles


def _cut(volume: Volume, tile: tuple[int, ...], rng: np.random.Generator) -> Float32:
    """A tile ``(c, y, x)`` from anywhere, at most half of it beyond an edge."""
    start, stop, pads = [], [], []
    for size, side in zip(volume.shape[1:], tile, strict=True):
        at = int(rng.integers(-(side // 2), max(1, size - side // 2)))
        start.append(max(0, at))
        stop.append(min(size, at + side))
        pads.append((max(0, -at), max(0, at + side - size)))
    part = volume.read(Box((0, *start), (1, *stop)))[:, 0].astype(np.float32)
    return np.pad(part, ((0, 0), *pads), mode="symmetric")
