"""What is done about an image that is not of the kind that the model was trained on: said, or with ``--fit`` mended."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.volume import Volume, network_input
from tilelab.run.kind.home import MOST_PLACES, distance, knows, look
from tilelab.run.normalize import WHITE
from tilelab.run.opening import OpenedImage
from tilelab.run.options import Options
from tilelab.spec import ModelSpec

if TYPE_CHECKING:
    from tilelab.run.kind.fit import Constants

_ONE_IN = 25
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
    """Invert the image where that was asked for, compare it with what the model was trained on, and fit it if asked.

    Raises:
        ModelError: ``--fit`` was asked of a model that does not know what it was trained on.
    """
    spec, image = engine.spec, opened.image
    if mean.ndim > 1:
        if options.invert or options.fit:
            raise ModelError("--invert and --fit change the whole image alike: leave --statistics slice out")
        return Suited(opened, mean, gain, options.scale, {})
    given = _constants(Volume(image), options, spec, mean, gain)
    suited = Suited(opened, mean, gain, options.scale, {})
    if options.invert:
        inverted = given.inverted()
        suited = replace(suited, mean=inverted[0], gain=inverted[1], said={"inverted": True})
    home = spec.home
    if home is None or not knows(spec) or Volume(image).channels != 1:
        if options.fit:
            raise ModelError(
                "--fit needs a model that knows what it was trained on (tilelab describe MODEL --like IMAGES), and a "
                "grey image: say what to change with --scale and --invert"
            )
        return suited
    volume = network_input(Volume(image), spec)
    try:
        far = distance(home, look(volume, engine, suited.mean, suited.gain, _worth(volume, engine)))
    except InputError:
        return suited  # the run will name what cannot be read
    if far <= home.limit:
        return suited
    from tilelab.run.kind.fit import fit_home, raw_intensities, scaled

    best = fit_home(image, engine, replace(given, mean=suited.mean, gain=suited.gain), home)
    what = f"the kind of image that {image.uri} is"
    unlike = f"it is unlike the {home.images} images of the training (distance {far:.3g}, known ones {home.limit:.3g})"
    if not options.fit or not best.changes:
        alike = best.changes and best.distance <= home.limit
        taken = "the model's" if alike else "the model's, though it may be of another material or instrument"
        because = f"{unlike}, most like them {best} ({best.distance:.3g})" if best.changes else unlike
        said = Assumption(what=what, taken=taken, because=because, flag="--fit" if best.changes else "")
        return replace(suited, assumptions=(said,))
    mean, gain = best.constants(replace(given, mean=suited.mean, gain=suited.gain), home, raw_intensities(image))
    said = Assumption(
        what=what,
        taken=f"that of the training images, {best}",
        because=f"{unlike}, and so changed {best.distance:.3g} from them",
        flag="--scale and --invert",
    )
    scale = None if best.scale == 1 else best.scale * (options.scale or 1)
    changed = replace(opened, image=scaled(image, best.scale))
    return Suited(changed, mean, gain, scale or options.scale, {"fitted": str(best)}, (said,))


def _worth(volume: Volume, engine: Engine) -> int:
    """How many tiles of an image it is worth looking at."""
    return max(1, min(MOST_PLACES, math.prod(volume.shape) // (math.prod(engine.tile) * _ONE_IN)))


def _constants(volume: Volume, options: Options, spec: ModelSpec, mean: Float32, gain: Float32) -> Constants:
    """The normalisation with the intensities that change places when the image is inverted."""
    from tilelab.run.kind.fit import Constants

    if options.intensity_range is not None:
        black, white = options.intensity_range
    elif spec.normalization.kind == "constants":
        black, white = 0.0, WHITE.get(str(volume.dtype), 1.0)
    elif spec.normalization.kind == "mean-std":
        black = white = float(mean[0])  # about the mean
    else:
        black, white = float(mean[0]), float(mean[0] + 1 / gain[0])
    return Constants(mean, gain, black, np.float64(white).item())
