"""What is done about an image that is not of the kind that the model was trained on: said, or with ``--fit`` mended."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume, network_input
from tilelab.io.storage.decode import LARGE_BYTES
from tilelab.run.kind.home import BLOCK, MOST_PLACES, knows, look, strangeness, texture_distance
from tilelab.run.normalize import WHITE, normalization_constants
from tilelab.run.opening import OpenedImage
from tilelab.run.options import Options
from tilelab.spec import Home, ModelSpec

if TYPE_CHECKING:
    from tilelab.run.kind.fit import Constants, Fit

_LEAST = 3 * BLOCK // 4  # pixels a side
_WHAT = "the kind of image that {} is"
_GLANCE = 8 << 20  # pixels of an image from which on a glance at its texture costs little beside the run
_NEAR = 0.9  # of the distance up to which an image is at home: texture alone tells less than the network does
_DESCRIBE = 6e-8  # seconds per pixel of a tile whose texture and answers are described
_ONE_IN = 60
"""Of so many tiles of an image one is looked at: what it costs is a few percent of the run."""


@dataclass(frozen=True, slots=True)
class Suited:
    """An image and its normalisation as they suit the model best, and what was assumed for it.

    mean, gain: of the normalisation, ``(channels,)``; ``(slices, channels)`` where each slice has its own.
    scale: of height and width, what `Options.scale` said or ``--fit`` found; None for the image as it is.
    said: of the normalisation, for the report.
    """

    opened: OpenedImage
    mean: Float32
    gain: Float32
    scale: float | None
    said: dict[str, object]
    assumptions: tuple[Assumption, ...] = ()


def suit(opened: OpenedImage, engine: Engine, options: Options, mean: Float32, gain: Float32) -> Suited:
    """Invert the image where that was asked for, and fit it to the model if that was.

    Raises:
        ModelError: ``--fit`` was asked of a model that does not know what it was trained on, or beside a scale.
    """
    spec, image = engine.spec, opened.image
    if mean.ndim > 1:
        if options.invert or options.fit:
            raise ModelError("--invert and --fit change the whole image alike: leave --statistics slice out")
        return Suited(opened, mean, gain, options.scale, {})
    said: dict[str, object] = {}
    if options.invert:
        mean, gain = _constants(Volume(image), options, spec, mean, gain).inverted()
        said = {"inverted": True}
    suited = Suited(opened, mean, gain, options.scale, said)
    if not options.fit:
        return suited
    if options.scale is not None or options.rescale:  # who opens the image anew resamples it once
        raise ModelError("--fit finds the scale: leave --scale and --rescale out")
    home = _home_of(image, spec)
    if home is None:
        raise ModelError(
            "--fit needs a model that knows what it was trained on (tilelab describe MODEL --like IMAGES), and a grey "
            f"image of at least {_LEAST} px a side: say what to change with --scale and --invert"
        )
    found = _compare(image, engine, options, mean, gain, home)
    if found is None:
        return suited
    far, best, given = found
    if not best.changes:
        return replace(suited, assumptions=(_assume(image, home, far),))
    from tilelab.run.kind.fit import raw_intensities, scaled

    mean, gain = best.constants(given, home, raw_intensities(image))
    assumed = Assumption(
        what=_WHAT.format(image.uri),
        taken=f"that of the training images, {best}",
        because=f"{_unlike(home, far)}, and so changed {best.distance / home.limit:.2g} times",
        flag="--scale and --invert",
    )
    scale = None if best.scale == 1 else best.scale
    changed = replace(opened, image=scaled(image, best.scale))
    return Suited(changed, mean, gain, scale, {**said, "fitted": str(best)}, (assumed,))


def is_alike(volume: Volume, spec: ModelSpec, options: Options) -> bool:
    """Whether a large image looks like those that the model's curve was measured on, as far as a glance tells."""
    changed = options.invert or options.fit  # it will look otherwise
    if spec.home is None or not knows(spec) or spec.normalization.kind != "constants" or changed:
        return False
    large = math.prod(volume.shape) >= _GLANCE and min(volume.shape[1:]) >= BLOCK
    if not large or volume.channels != 1 or math.prod(volume.chunks) * volume.dtype.itemsize > LARGE_BYTES:
        return False
    try:
        mean, gain, _ = normalization_constants(volume, spec.normalization, spec.channels, options.intensity_range)
        return texture_distance(network_input(volume, spec), spec, mean, gain) <= _NEAR * spec.home.limit
    except (InputError, ModelError):  # the run will name what cannot be read, or does not suit the model
        return False


def look_at_kind(
    image: Image,
    engine: Engine,
    options: Options,
    mean: Float32,
    gain: Float32,
    hint: Callable[[str], None] | None = None,
) -> tuple[Assumption, ...]:
    """What has to be assumed of an image that is unlike those of the training; one that was fitted has said so.

    Args:
        image, engine, options: of the run.
        mean, gain: of its normalisation.
        hint: told what would make it alike, which takes longer to find than a small image does, or that nothing would.
            It is no part of the assumption, which results keep: their bytes do not depend on who looked for what.
    """
    home = _home_of(image, engine.spec)
    if options.fit or mean.ndim > 1 or home is None:
        return ()
    found = _compare(image, engine, options, mean, gain, home, search=hint is not None)
    if found is None:
        return ()
    far, best, _ = found
    if hint is not None:
        hint(_suggest(image, home, best))
    return (_assume(image, home, far),)


def look_seconds(image: Image, engine: Engine, per_tile: float) -> float:
    """What `look_at_kind` takes of an image that is at home, when the engine takes `per_tile` with all streams busy."""
    if _home_of(image, engine.spec) is None:
        return 0.0
    return _worth(Volume(image), engine) * (per_tile * engine.streams + _DESCRIBE * math.prod(engine.tile))


def _home_of(image: Image, spec: ModelSpec) -> Home | None:
    """The model's, for an image that can be compared: one that is not much smaller than what was described."""
    volume = Volume(image)
    return spec.home if knows(spec) and volume.channels == 1 and min(volume.shape[1:]) >= _LEAST else None


def _compare(
    image: Image, engine: Engine, options: Options, mean: Float32, gain: Float32, home: Home, search: bool = True
) -> tuple[float, Fit, Constants] | None:
    """How strange an image is, and what would bring it closest; None for one that is at home, or unreadable."""
    volume = network_input(Volume(image), engine.spec)
    try:
        for places in sorted({_worth(volume, engine), MOST_PLACES}):  # one strange place is no strange image
            far = strangeness(home, look(volume, engine, mean, gain, places))
            if far <= 1:
                return None
        from tilelab.run.kind.fit import Fit, fit_home

        given = _constants(Volume(image), options, engine.spec, mean, gain)
        best = fit_home(image, engine, given, home, thorough=options.fit) if search else Fit()
        return far, best, given
    except InputError:
        return None  # the run will name what cannot be read


def _assume(image: Image, home: Home, far: float) -> Assumption:
    return Assumption(
        what=_WHAT.format(image.uri),
        taken="the model's, though it may be of another material or instrument",
        because=_unlike(home, far),
        flag="--fit",
    )


def _suggest(image: Image, home: Home, best: Fit) -> str:
    """What would make an image most like those of the training."""
    if not best.changes:
        return f"{image.uri}: no scale, polarity or contrast makes it more like the images of the training"
    alike = "" if best.distance <= home.limit else ", still unlike them"
    return (
        f"{image.uri}: most like the images of the training {best} ({best.distance / home.limit:.2g} times as far off "
        f"as known ones may be{alike})"
    )


def _unlike(home: Home, far: float) -> str:
    return f"it is unlike the {home.images} images of the training ({far:.2g} times as far off as known ones may be)"


def _worth(volume: Volume, engine: Engine) -> int:
    """How many tiles of an image it is worth looking at."""
    return max(1, min(MOST_PLACES, math.prod(volume.shape) // (math.prod(engine.tile) * _ONE_IN)))


def _constants(volume: Volume, options: Options, spec: ModelSpec, mean: Float32, gain: Float32) -> Constants:
    """The normalisation with the intensities that change places when the image is inverted."""
    from tilelab.run.kind.fit import Constants

    black: Any
    white: Any
    if options.intensity_range is not None:
        black, white = options.intensity_range
    elif spec.normalization.kind == "constants":
        black, white = 0.0, WHITE.get(str(volume.dtype), 1.0)
    elif spec.normalization.kind == "mean-std":  # each channel about its own mean
        black = white = mean
    else:
        black, white = mean, mean + 1 / gain
    return Constants(mean, gain, np.asarray(black, np.float64), np.asarray(white, np.float64))
