"""How an image differs from those that a model was trained on: texture and answers of a few places, against memory.

A place is a tile that the engine infers; it is described in blocks of 256 pixels.  Half of a block's description is its
texture: spread, skewness and kurtosis of its intensities as the network gets them, and of each band of a Laplacian
pyramid (Burt and Adelson, 1983), which tell scale, contrast, polarity and noise.  The other half is what the network
says of it: how much it sees of each class, and how sure it is.  An image's distance from home is the median of its
blocks' Mahalanobis distances from the training images' (Lee et al., 2018, arXiv 1807.03888, with these features).

That is blind where the training images differ much among themselves.  So a model also remembers what it would look like
were they inverted, at another scale, noisy or of another kind: an image that lies towards one of these (on Fisher's
line from home) as no image of home does is foreign, too, however near it is otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from tilelab.arrays import Array, Float32, Float64
from tilelab.engines.base import Engine
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.kernels.reference import ACTIVATIONS, to_probabilities
from tilelab.spec import Home, ModelSpec

BLOCK = 256  # pixels
BANDS = 6
MOST_PLACES = 4
CONTRAST = 2  # numbers of a block's texture that its contrast changes: the first ones
TEXTURE = 4 + 3 * BANDS  # numbers of a block's texture; what the network says of it follows
_BLOCKS = 16  # whose texture alone is looked at
_LEAST_BAND = 8  # pixels: below, a band says nothing
_FLOOR = 1e-4
_TAPS = np.array([1, 4, 6, 4, 1], np.float32) / 16


def describe_texture(block: Float32) -> Float64:
    """The texture of normalised intensities ``(h, w)``: `TEXTURE` numbers."""
    spread = float(block.std()) + 1e-3
    values = (block - block.mean()) / spread
    found = [float(block.mean()), math.log(spread), *_shape(values)]
    for _ in range(BANDS):
        if min(values.shape) < _LEAST_BAND:
            found += [math.log(_FLOOR), 0.0, 0.0]
            continue
        low = blur(blur(values, 0), 1)
        band = values - low
        energy = float(band.std()) + _FLOOR
        found += [math.log(energy), *_shape(band / energy)]
        values = low[::2, ::2]
    return np.array(found)


def describe_answer(probabilities: Float32) -> Float64:
    """What a network says of a block: the logarithms of each class's share and of the mean entropy; ``(K + 1,)``.

    `probabilities` are ``(K, h, w)``; K outputs of sigmoids are K questions of yes and no.
    """
    p = np.clip(probabilities, 1e-9, 1)
    shares = (p.argmax(axis=0)[None] == np.arange(len(p))[:, None, None]).mean(axis=(1, 2))
    return np.append(np.log(shares + 3e-3), math.log(float(-(p * np.log(p)).sum(axis=0).mean()) + _FLOOR))


def _shape(values: Float32) -> tuple[float, float]:
    """Skewness, cut off, and the logarithm of the kurtosis of values with mean 0 and spread 1."""
    squares = values * values
    return float(np.clip((squares * values).mean(), -5, 5)), math.log(float((squares * squares).mean()) + _FLOOR)


def blur(values: Float32, axis: int) -> Float32:
    """A binomial filter of five taps along one axis, reflected at the ends."""
    pad = [(0, 0), (0, 0)]
    pad[axis] = (2, 2)
    wide = np.pad(values, pad, mode="reflect")
    n = values.shape[axis]
    cut = [slice(None), slice(None)]
    total = np.zeros_like(values)
    for i, weight in enumerate(_TAPS):
        cut[axis] = slice(i, i + n)
        total += weight * wide[tuple(cut)]
    return total


def describe(engine: Engine, tile: Float32) -> Float64:
    """The blocks of a tile of normalised intensities ``(C, h, w)``, as the engine takes them: ``(n, features)``."""
    return np.array([np.append(describe_texture(block), describe_answer(p)) for block, p in _blocks(engine, tile)])


def _blocks(engine: Engine, tile: Float32) -> Iterator[tuple[Float32, Float32]]:
    """At most 16 blocks of a tile, overlapping where it is not a multiple of them, with the network's probabilities."""
    logits = np.empty((engine.batch, engine.spec.values, *engine.tile), np.float32)
    engine.run(np.ascontiguousarray(np.broadcast_to(tile, (engine.batch, *tile.shape))), logits)
    answers = to_probabilities(logits[0], ACTIVATIONS[engine.spec.activation])
    grey = tile.mean(axis=0) if engine.spec.neighbours == 0 else tile[engine.spec.neighbours]
    for y in _starts(grey.shape[0]):
        for x in _starts(grey.shape[1]):
            rows, columns = slice(y, y + BLOCK), slice(x, x + BLOCK)
            yield grey[rows, columns], answers[:, rows, columns]


def _starts(size: int) -> list[int]:
    extra = size - min(size, BLOCK)
    count = 1 + min(3, -(-2 * extra // BLOCK))
    return sorted({round(extra * i / max(1, count - 1)) for i in range(count)})


def distance(home: Home, described: Float64, features: Sequence[int] | None = None) -> float:
    """How far described blocks ``(n, features)`` are from home by these features, in spreads of what was trained on."""
    kept = np.arange(len(home.mean)) if features is None else np.asarray(features)
    off = described[:, kept] - np.array(home.mean)[kept]
    inverse = np.linalg.inv(covariance_of(home)[np.ix_(kept, kept)])
    return float(np.sqrt(np.median((off @ inverse * off).sum(axis=1))))


def texture_distance(volume: Volume, spec: ModelSpec, mean: Float32, gain: Float32) -> float:
    """How far an image's texture alone is from home: of a block of each of a few places, without the engine.

    Args:
        volume: as the network takes it, of at least a block a side.
        spec: of a model that `knows`, with a home.
        mean, gain: normalisation, ``(channels,)``.

    Raises:
        InputError: a block cannot be read.
    """
    assert spec.home is not None  # noqa: S101 - see above
    grey = slice(None) if spec.neighbours == 0 else slice(spec.neighbours, spec.neighbours + 1)
    tile = (BLOCK, BLOCK)
    clip = spec.normalization.clip
    blocks = [
        normalized(volume.read(box)[:, 0], mean, gain, tile, clip)[grey].mean(axis=0)
        for box in places(volume, tile, _BLOCKS)
    ]
    return distance(spec.home, np.array([describe_texture(block) for block in blocks]), range(TEXTURE))


def towards(home: Home, described: Float64) -> Float64:
    """How far blocks ``(n, features)`` are from home towards each of the others, on the mean, in spreads of home."""
    off = np.array(home.others).reshape(-1, len(home.mean)) - np.array(home.mean)
    lines = off @ np.linalg.inv(covariance_of(home))
    far = lines @ (described.mean(axis=0) - np.array(home.mean))
    return np.asarray(far / np.sqrt((lines * off).sum(axis=1)))


def strangeness(home: Home, described: Float64) -> float:
    """How unlike home described blocks are: beyond 1 they are foreign."""
    return float(max([distance(home, described) / home.limit, *(towards(home, described) / np.array(home.bounds))]))


def covariance_of(home: Home) -> Float64:
    """Of all features, ``(n, n)``; kept is its lower triangle."""
    n = len(home.mean)
    covariance = np.zeros((n, n))
    covariance[np.tril_indices(n)] = home.covariance
    return covariance + np.tril(covariance, -1).T


def knows(spec: ModelSpec) -> bool:
    """Whether a model of this kind can be asked: a 2-D one that gives classes, of grey images."""
    return spec.axes == "yx" and spec.plain and spec.channels in (1, 2 * spec.neighbours + 1)


def normalized(
    pixels: Array, mean: Float32, gain: Float32, tile: tuple[int, ...], clip: tuple[float, float] | None = None
) -> Float32:
    """Pixels ``(c, h, w)`` as the network gets them, reflected where the image is smaller than a tile."""
    channels = len(mean)
    raw = np.nan_to_num(pixels.astype(np.float32), copy=False, posinf=0, neginf=0)
    values = (raw - mean[:, None, None]) * gain[:, None, None]
    values = values if clip is None else np.clip(values, np.float32(clip[0]), np.float32(clip[1]))
    pad = [(0, 0), *((0, max(0, t - n)) for t, n in zip(tile, values.shape[1:], strict=True))]
    return np.pad(np.broadcast_to(values, (channels, *values.shape[1:])), pad, mode="symmetric")


def look(volume: Volume, engine: Engine, mean: Float32, gain: Float32, most: int = MOST_PLACES) -> Float64:
    """The blocks of at most `most` places of an image, ``(n, features)``.

    Args:
        volume: as the network takes it, with neighbours as channels where it has them.
        engine: of a model that `knows`.
        mean, gain: normalisation, ``(channels,)``.
        most: tiles to infer.
    """
    clip = engine.spec.normalization.clip
    found = [
        describe(engine, normalized(volume.read(box)[:, 0], mean, gain, engine.tile, clip))
        for box in places(volume, engine.tile, most)
    ]
    return np.concatenate(found)


def places(volume: Volume, tile: tuple[int, ...], most: int) -> list[Box]:
    """At most `most` tiles of a volume, as far apart as it allows."""
    _, height, width = volume.shape
    side = math.isqrt(most)
    rows, columns = (min(max(2, side), -(-n // t)) for n, t in zip((height, width), tile, strict=True))
    corners = [(i, j) for i in range(rows) for j in range(columns)]
    corners = [corners[k * len(corners) // most] for k in range(most)] if most < len(corners) else corners
    found = []
    for k, (i, j) in enumerate(corners):
        z = volume.shape[0] * (2 * k + 1) // (2 * len(corners))
        start = [z]
        for at, count, size, extent in ((i, rows, height, tile[0]), (j, columns, width, tile[1])):
            room = max(0, size - extent)
            start.append(round(room * (2 * at + 1) / (2 * count)))
        stop = (z + 1, min(height, start[1] + tile[0]), min(width, start[2] + tile[1]))
        found.append(Box((start[0], start[1], start[2]), stop))
    return found
