"""The numbers that turn raw intensities into the network's input, the same for every tile of an image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tilelab.arrays import Array, Float32, Float64
from tilelab.errors import ModelError
from tilelab.geometry import Box, boxes, reflect
from tilelab.io.images.volume import Volume
from tilelab.run.statistics import find_statistics
from tilelab.spec import Normalization

SAMPLE_PIXELS = 16 << 20  # more would not change a mean or a percentile visibly
EXACT_PIXELS = 1 << 32  # of a stack whose every pixel is looked at
SAMPLE_BLOCK = 512
WHITE = {"uint8": 255.0, "uint16": 65535.0, "float32": 1.0}


def normalization_constants(
    volume: Volume,
    normalization: Normalization,
    channels: int,
    intensity_range: tuple[float, float] | None = None,
    *,
    neighbours: int = 0,
    sampled: bool = False,
) -> tuple[Float32, Float32, dict[str, Any]]:
    """`mean` and `gain` such that the network's input is ``(raw - mean) * gain``.

    Statistics are those of all pixels where there are at most `EXACT_PIXELS` of them, else of blocks spread evenly.

    Args:
        volume: the image.
        normalization: what the model asks for.
        channels: input channels of the model.
        intensity_range: raw intensities that are black and white for the model's constants, for an image of another
            dtype than the training images.
        neighbours: of a 2.5-D model, whose channels are slices of the image.
        sampled: look at `sample_boxes` alone.

    Returns:
        float32 ``(channels,)`` twice, ``(slices, channels)`` where each slice has its own, and a record for the report.

    Raises:
        ModelError: the image's channels or dtype do not suit the model.
    """
    if volume.channels not in (1, channels):
        raise ModelError(
            f"{volume.image.uri} has {volume.channels} channels, the model takes {channels}: choose one with "
            "--channel, or say with --axes what they are (z: slices)"
        )
    if normalization.kind == "constants":
        mean, std = _constants(volume, normalization, intensity_range)
        record: dict[str, Any] = {"kind": "constants"}
    else:
        low, spread, count = _statistics_of(volume, normalization, sampled)
        mean, std = low, np.where(spread > 0, spread, 1.0)  # a constant image is all zeros, not all NaN
        record = {"kind": normalization.kind, "sampled_pixels": count}
        if normalization.kind == "percentile" and (normalization.low, normalization.high) != (0.5, 99.5):
            record["percentiles"] = [normalization.low, normalization.high]
        if normalization.per == "slice":
            record["per"] = "slice"
            slices = reflect(np.arange(len(mean))[:, None] + np.arange(-neighbours, neighbours + 1), len(mean))
            around = neighbours and volume.channels == 1  # else its channels are neighbours already, each its own slice
            mean, std = (table[slices, 0] if around else table for table in (mean, std))
    shape = (*mean.shape[:-1], channels)
    mean = np.broadcast_to(mean, shape).astype(np.float32)
    gain = np.broadcast_to(1 / std, shape).astype(np.float32)
    record |= {"mean": mean.astype(float).tolist(), "std": (1 / gain).astype(float).tolist()}
    if normalization.clip is not None:
        record["clip"] = list(normalization.clip)
    if intensity_range is not None:
        record["range"] = list(intensity_range)
    return np.ascontiguousarray(mean), np.ascontiguousarray(gain), record


def _constants(
    volume: Volume, normalization: Normalization, intensity_range: tuple[float, float] | None
) -> tuple[Float64, Float64]:
    mean = np.array(normalization.mean, np.float64)
    std = np.array(normalization.std, np.float64)
    if intensity_range is None:
        if str(volume.dtype) != normalization.dtype:
            raise ModelError(
                f"the model was trained on {normalization.dtype} intensities, {volume.image.uri} is {volume.dtype}: "
                "say which intensities are black and white with --range LOW:HIGH, or use --normalization percentile"
            )
        return mean, std
    low, high = intensity_range
    if not low < high or not math.isfinite(high - low):
        raise ModelError(f"range {low:g}:{high:g} is empty: give LOW:HIGH with LOW below HIGH")
    scale = (high - low) / WHITE[normalization.dtype]
    return low + mean * scale, std * scale


def plane_constants(
    volume: Volume,
    normalization: Normalization,
    channels: int,
    intensity_range: tuple[float, float] | None = None,
) -> tuple[Float32, Float32]:
    """`mean` and `gain` of a plane, ``(channels,)`` each; see `normalization_constants`."""
    mean, gain, _ = normalization_constants(volume, normalization, channels, intensity_range)
    return (mean, gain) if mean.ndim == 1 else (mean[0], gain[0])


def _statistics_of(volume: Volume, normalization: Normalization, sampled: bool) -> tuple[Float64, Float64, int]:
    """Those of a volume, or of the stack that it is a plane of, which are looked for once."""
    stack = volume.image.stack
    if stack is None or normalization.per == "slice":
        return _statistics(volume, normalization, sampled)
    known: dict[Any, tuple[Float64, Float64, int]] = vars(stack).setdefault("_known_statistics", {})
    if (normalization, sampled) not in known:
        known[normalization, sampled] = _statistics(Volume(stack), normalization, sampled)
    return known[normalization, sampled]


def _statistics(volume: Volume, normalization: Normalization, sampled: bool) -> tuple[Float64, Float64, int]:
    """Offset and spread per channel (and slice), and how many pixels were looked at."""
    count = math.prod(volume.shape)
    one_pass = normalization.per == "slice" or normalization.kind == "min-max" or count > SAMPLE_PIXELS
    if one_pass and not sampled and (normalization.per == "slice" or count <= EXACT_PIXELS):
        found = find_statistics(volume, normalization)
        return found.low, found.spread, count
    return _sampled_statistics(volume, normalization)


def _sampled_statistics(volume: Volume, normalization: Normalization) -> tuple[Float64, Float64, int]:
    """Offset and spread per channel, from blocks spread evenly over the image; in a fixed order, so always the same."""
    samples: list[Array] = []
    taken = 0
    for box in sample_boxes(volume):
        block = volume.read(box).reshape(volume.channels, -1)
        if block.dtype.kind == "f":
            block = block[:, np.isfinite(block).all(axis=0)]  # the sweep will name what is not
        samples.append(block)
        taken += box.size
    values = np.concatenate(samples, axis=1)
    if not values.shape[1]:
        return np.zeros(volume.channels), np.zeros(volume.channels), 0
    if normalization.kind == "min-max":
        least, greatest = (end(values, axis=1).astype(np.float64) for end in (np.min, np.max))
        return least, greatest - least, taken
    if normalization.kind == "percentile":
        low, high = np.percentile(values, (normalization.low, normalization.high), axis=1)
        return low.astype(np.float64), (high - low).astype(np.float64), taken
    return values.mean(axis=1, dtype=np.float64), values.std(axis=1, dtype=np.float64), taken


def sample_boxes(volume: Volume) -> list[Box]:
    """All of a small image; of a large one, blocks on a regular grid."""
    extent = (1, SAMPLE_BLOCK, SAMPLE_BLOCK)
    counts = [math.ceil(n / e) for n, e in zip(volume.shape, extent, strict=True)]
    wanted = SAMPLE_PIXELS // (SAMPLE_BLOCK * SAMPLE_BLOCK)
    if math.prod(counts) <= wanted:
        return list(boxes(volume.shape, extent))
    # at most 8 slices; as many blocks in each as the total allows
    deep = min(counts[0], 8)
    side = max(1, math.isqrt(wanted // deep))
    high = min(counts[1], side)
    wide = min(counts[2], max(1, wanted // (deep * high)))
    picks = [[(2 * i + 1) * n // (2 * k) for i in range(k)] for n, k in zip(counts, (deep, high, wide), strict=True)]
    found = []
    for z in picks[0]:
        for y in picks[1]:
            for x in picks[2]:
                start = tuple(i * e for i, e in zip((z, y, x), extent, strict=True))
                stop = tuple(min(n, a + e) for n, a, e in zip(volume.shape, start, extent, strict=True))
                found.append(Box(start, stop))
    return found
