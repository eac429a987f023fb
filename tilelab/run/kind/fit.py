"""Bring an image to the scale, polarity and contrast at which it is most like what the model was trained on.

Texture alone is asked first, for every scale and both polarities, for it costs milliseconds; the model itself judges
the few that are left (`tilelab.run.kind.home`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tilelab.arrays import Float32, Float64
from tilelab.engines.base import Engine
from tilelab.io.images.image import Image
from tilelab.io.images.resample import ResampledImage
from tilelab.io.images.volume import Volume, network_input
from tilelab.run.kind.home import BLOCK, CONTRAST, TEXTURE, describe_texture, distance, look, places
from tilelab.spec import Home

SCALES = tuple(2 ** (k / 2) for k in range(-5, 5))
"""Factors that are tried: from a sixth of the image's size to four times it."""
_FINER = 2**0.25
_SIDE = 1024  # pixels of a place, as stored
_PLACES = 4
_JUDGED = 3  # candidates that the model itself is asked of
_BETTER = 0.8  # of the distance as it is: less is no improvement
_NEARLY = 1.15  # a change of scale that is this small has to be worth it
_FINEST = 2  # bands of the pyramid that any change of scale blurs: they say nothing of what would suit
_COARSE = range(4 + 3 * _FINEST, TEXTURE)
_SHAPE = range(CONTRAST, 4)
_LEAST_BLOCK = 96  # pixels: what is smaller says too little of its texture


@dataclass(frozen=True, slots=True)
class Fit:
    """How an image is changed to be like the training images.

    scale: of its height and width.
    invert: dark becomes bright.
    matched: mean and spread of its intensities become those of the training images.
    distance: from home, changed so.
    """

    scale: float = 1.0
    invert: bool = False
    matched: bool = False
    distance: float = math.inf

    @property
    def changes(self) -> bool:
        """Whether anything is changed."""
        return self.scale != 1 or self.invert or self.matched

    def __str__(self) -> str:
        said = [f"at {self.scale:.2g} times its size"] * (self.scale != 1) + ["inverted"] * self.invert
        return ", ".join(said + ["with its contrast matched"] * self.matched) or "as it is"

    def constants(self, given: Constants, home: Home, seen: Float32) -> tuple[Float32, Float32]:
        """`mean` and `gain` that do it to an image whose raw intensities are like `seen`, ``(n,)``."""
        mean, gain = given.inverted() if self.invert else (given.mean, given.gain)
        if not self.matched:
            return mean, gain
        spread = float(seen.std()) or 1.0
        gain = np.full_like(gain, math.exp(home.mean[1]) / spread * (-1 if self.invert else 1))
        return (float(seen.mean()) - home.mean[0] / gain).astype(np.float32), gain


@dataclass(frozen=True, slots=True)
class Constants:
    """A normalisation, ``(value - mean) * gain``, and the intensities that change places when it is inverted.

    black, white: of all channels, or of each, ``(channels,)``.
    """

    mean: Float32
    gain: Float32
    black: Float64 | float
    white: Float64 | float

    def inverted(self) -> tuple[Float32, Float32]:
        """Mean and gain that do the same to ``black + white - value``."""
        return np.asarray(self.black + self.white, np.float32) - self.mean, -self.gain


def fit_home(image: Image, engine: Engine, given: Constants, home: Home, *, thorough: bool = True) -> Fit:
    """How `image` comes closest to home; as it is, where nothing brings it clearly closer.

    Args:
        image: 2-D or a stack, grey.
        engine: of a model whose `home` this is.
        given: how its intensities are normalised as it is.
        home: of the model.
        thorough: ask the model of several candidates, not of the likeliest alone.
    """
    seen = _see(Volume(image))
    raw = raw_intensities(image)
    ranked = sorted(_rank(seen, home), key=lambda one: one.distance)
    finer = {scale for one in ranked[:1] for scale in (one.scale / _FINER, one.scale * _FINER)}
    ranked = sorted(ranked + _rank(seen, home, tuple(finer)), key=lambda one: one.distance)
    plain = [Fit(), Fit(matched=True)]
    tried = plain + [replace(one, matched=m) for one in ranked[: _JUDGED if thorough else 1] for m in (False, True)]
    judged = [_judge(one, image, engine, given, home, raw) for one in tried]
    best = min(
        judged, key=lambda one: one.distance * (_NEARLY if one.scale != 1 and abs(math.log2(one.scale)) < 0.3 else 1)
    )
    return best if best.distance < _BETTER * judged[0].distance else judged[0]


def raw_intensities(image: Image) -> Float32:
    """Those of a few places of an image, ``(n,)``, as stored."""
    return np.concatenate([place.ravel() for place in _see(Volume(image))])


def _see(volume: Volume) -> list[Float32]:
    """A few places of the image, ``(h, w)``, as stored."""
    found = [volume.read(box)[0, 0].astype(np.float32) for box in places(volume, (_SIDE, _SIDE), _PLACES)]
    return [np.nan_to_num(place, copy=False, posinf=0, neginf=0) for place in found]


def _rank(seen: list[Float32], home: Home, scales: tuple[float, ...] = SCALES) -> list[Fit]:
    """Each scale and polarity, by texture alone, whatever the contrast."""
    found = []
    for scale in scales:
        blocks = [block for place in seen for block in _blocks(place, scale)]
        for sign in (1, -1) if blocks else ():
            described: Float64 = np.array([describe_texture(sign * block) for block in blocks])
            far = distance(home, described, (*_SHAPE, *_COARSE))
            found.append(Fit(scale=scale, invert=sign < 0, distance=far))
    return found


def _blocks(place: Float32, scale: float) -> list[Float32]:
    """Two corners of a place at a scale, or all that there is of it."""
    from PIL import Image as Picture

    side = min(*place.shape, math.ceil(BLOCK / scale))
    size = round(side * scale)
    if size < min(_LEAST_BLOCK, *place.shape):
        return []
    parts = [place[:side, :side], place[-side:, -side:]]
    return [
        np.asarray(Picture.fromarray(np.ascontiguousarray(part)).resize((size, size), Picture.Resampling.BILINEAR))
        for part in (parts if place.size > side * side else parts[:1])
    ]


def _judge(one: Fit, image: Image, engine: Engine, given: Constants, home: Home, raw: Float32) -> Fit:
    """The same with the distance that the model itself says."""
    mean, gain = one.constants(given, home, raw)
    volume = network_input(Volume(scaled(image, one.scale)), engine.spec)
    described = look(volume, engine, mean, gain, 1)
    answers = range(TEXTURE, described.shape[1])
    return replace(one, distance=distance(home, described, (*range(4), *_COARSE, *answers)))


def scaled(image: Image, scale: float) -> Image:
    """`image` at another height and width; a stack keeps its slices."""
    return image if scale == 1 else ResampledImage(image, {"y": 1 / scale, "x": 1 / scale})
