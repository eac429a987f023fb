"""Images that remind a network of what it knew, where those that it was trained on are not at hand.

A model remembers the texture of its training images in a few kilobytes (`tilelab.run.kind.home`).  Given back to any
micrograph, band by band of its pyramid, that texture makes images on which the old network says what it would say at
home; the new one is held to that (distillation: Li and Hoiem, 2016, arXiv 1606.09282, with images of our own making).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from tilelab.arrays import Float32
from tilelab.run.kind.home import BANDS, TEXTURE, blur, covariance_of, describe_texture, distance
from tilelab.spec import Home

_SPREAD = 0.7  # of the covariance at home: what is drawn is nearer its middle
_TRIES = 3  # images for each that is kept: those that came nearest
_SCALE = 0.7  # of the logarithm of a magnification, either way
_EVEN = 1e-3


def make_reminders(grounds: Sequence[Float32], home: Home, count: int, side: int, seed: int) -> list[Float32]:
    """Normalised images ``(side, side)`` with the texture of home.

    Args:
        grounds: normalised micrographs ``(y, x)`` whose shapes they take.
        home: what the model remembers.
        count: how many.
        side: in pixels.
        seed: of everything drawn.
    """
    rng = np.random.default_rng((seed, 0x686F6D65))
    made = [_make(grounds[i % len(grounds)], home, side, rng) for i in range(_TRIES * count)]
    texture = list(range(TEXTURE))
    off = [distance(home, describe_texture(image)[None], texture) for image in made]
    return [made[i] for i in np.argsort(off, kind="stable")[:count]]


def _make(ground: Float32, home: Home, side: int, rng: np.random.Generator) -> Float32:
    """A part of a micrograph, magnified, perhaps with its polarity reversed, with bands as strong as at home."""
    extent = max(16, min(round(side * np.exp(rng.uniform(-_SCALE, _SCALE))), *ground.shape))
    y, x = (int(rng.integers(n - extent + 1)) for n in ground.shape)
    values = _resize(ground[y : y + extent, x : x + extent], side)
    values = np.ascontiguousarray(np.rot90(values, int(rng.integers(4)))) * np.float32(rng.choice([-1, 1]))
    values = (values - values.mean()) / (values.std() + _EVEN)
    wanted = rng.multivariate_normal(
        home.mean[:TEXTURE], _SPREAD**2 * covariance_of(home)[:TEXTURE, :TEXTURE], method="cholesky"
    )
    bands: list[Float32] = []
    for number in range(BANDS):
        if min(values.shape) < 8:
            break
        low = blur(blur(values, 0), 1)
        band = values - low
        bands.append(band * np.float32(np.exp(wanted[4 + 3 * number]) / (band.std() + _EVEN)))
        values = low[::2, ::2]
    for band in reversed(bands):
        values = band + _resize(values, *band.shape)
    values = (values - values.mean()) / (values.std() + _EVEN)
    # clipped as a detector does: what no image can hold is not asked about
    made: Float32 = np.clip(values, -4, 4) * np.exp(wanted[1]) + wanted[0]
    return made.astype(np.float32)


def _resize(values: Float32, height: int, width: int | None = None) -> Float32:
    """With linear interpolation; what is made smaller is averaged."""
    size = (height, width or height)
    given = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    shrinks = size[0] < values.shape[0]
    return functional.interpolate(given, size=size, mode="bilinear", antialias=shrinks)[0, 0].numpy()
