"""Do the intensities suit the model, once they are normalised?  A glance at a few places, before a run is begun."""

from __future__ import annotations

import contextlib
import math

import numpy as np

from tilelab.arrays import Array, Float32
from tilelab.assumptions import Assumption
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.run.normalize import WHITE
from tilelab.spec import ModelSpec

_PLACES = 4
_SIDE = 128  # pixels of a place
_FAR = 10.0  # from 0, where networks have their inputs: in spreads of the training images
_FLAT = 0.02  # spread of an image that a network sees as good as nothing of
_FLAGS = "--mean and --std, or --intensity-dtype"


def glance(volume: Volume, spec: ModelSpec, mean: Float32, gain: Float32) -> tuple[Assumption, ...]:
    """What has to be assumed where the normalised intensities of a few places are far from what networks are fed.

    Args:
        volume: the image.
        spec: of the model; one that takes intensities as they are (mean 0, std 1) takes any.
        mean, gain: what they are normalised by, ``(spec.channels,)``.
    """
    normalization = spec.normalization
    raw = normalization.kind != "constants" or {*normalization.mean, *normalization.std} <= {0.0, 1.0}
    if raw or spec.architecture == "identity":
        return ()
    seen = _sample(volume)
    if seen is None:
        return ()
    values = (seen.astype(np.float64) - mean[: len(seen), None]) * gain[: len(seen), None]
    centres, spreads = values.mean(axis=1), values.std(axis=1)
    centre, spread = float(centres[np.abs(centres).argmax()]), float(spreads.max())
    if abs(centre) <= _FAR and (spread == 0 or _FLAT <= spread <= _FAR):
        return ()
    return (
        Assumption(
            what=f"the intensities of {volume.image.uri}",
            taken=f"as they are, normalised to a mean of {centre:.3g} and a spread of {spread:.3g}",
            because=f"--mean and --std say so; networks take about 0 and 1, for which {_sensible(volume, spec, seen)}",
            flag=_FLAGS,
        ),
    )


def _sensible(volume: Volume, spec: ModelSpec, seen: Array) -> str:
    """Constants that would do: those given, in the image's units, or else the image's own."""
    normalization, white = spec.normalization, WHITE.get(str(volume.dtype), 1.0)
    fractions = all(0 <= m <= 1 for m in normalization.mean) and all(s <= 1 for s in normalization.std)
    if fractions and white > 1:
        means, stds = ([white * v for v in values] for values in (normalization.mean, normalization.std))
        return f"--mean {_list(means)} --std {_list(stds)} would be right if they are meant for intensities of 0 to 1"
    means, stds = ([float(f(channel)) for channel in seen.astype(np.float64)] for f in (np.mean, np.std))
    return f"--mean {_list(means)} --std {_list(stds)} are the image's own"


def _list(values: list[float]) -> str:
    if len(set(values)) == 1:
        values = values[:1]
    return ",".join(f"{v:.4g}" for v in values)


def _sample(volume: Volume) -> Array | None:
    """Pixels ``(channels, n)`` of a few places along the diagonal; None where reading them would cost too much."""
    if math.prod(volume.chunks) * volume.channels * volume.dtype.itemsize > LARGE_BYTES:
        return None
    found = []
    with contextlib.suppress(InputError):  # the run will name what cannot be read, and keep what can
        for i in range(_PLACES):
            extent = [min(n, side) for n, side in zip(volume.shape, (1, _SIDE, _SIDE), strict=True)]
            start = tuple((n - e) * (2 * i + 1) // (2 * _PLACES) for n, e in zip(volume.shape, extent, strict=True))
            box = Box(start, tuple(a + e for a, e in zip(start, extent, strict=True)))
            found.append(volume.read(box).reshape(volume.channels, -1))
    if not found:
        return None
    pixels = np.concatenate(found, axis=1)
    if pixels.dtype.kind == "f":
        pixels = pixels[:, np.isfinite(pixels).all(axis=0)]
    return pixels if pixels.size else None
