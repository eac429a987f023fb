"""What a model's training images look like: learnt once, and kept in the model."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from tilelab.arrays import Float64
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume, network_input
from tilelab.run.kind.home import distance, knows, look
from tilelab.run.normalize import normalization_constants
from tilelab.spec import Home

_SHRINKAGE = 0.3  # of covariances to none: images are few, features are many
_MARGIN = 1.15  # beyond the farthest image that is known
_LEAST = 1e-3  # of a variance
_PLACES = 16


def learn_home(engine: Engine, trained: Sequence[Image], known: Sequence[Image] = ()) -> Home:
    """What `trained` look like to the model of `engine`; `known` are others that it is at home with.

    An image is foreign when it is farther away than any of both, by a margin; where none is known beside those of the
    training, farther than any of these is from the others.

    Raises:
        InputError: there is no image.
        ModelError: the model is not of a kind that can be asked.
    """
    if not trained:
        raise InputError("no training images to learn from: name some")
    if not knows(engine.spec):
        raise ModelError("only 2-D models that give classes of grey images can remember what they were trained on")
    seen = [_describe(engine, image) for image in trained]
    home = _remember(seen)
    if known:
        far = [distance(home, part) for part in [*seen, *(_describe(engine, image) for image in known)]]
    else:  # each by what the others teach
        far = [distance(_remember(seen[:i] + seen[i + 1 :] or seen), part) for i, part in enumerate(seen)]
    return msgspec.structs.replace(home, limit=float(f"{_MARGIN * max(far):.4g}"))


def widen_home(home: Home, engine: Engine, images: Sequence[Image]) -> Home:
    """The memory of a model that has learned from `images`, too: they are no longer foreign, and count as one each."""
    seen = [_describe(engine, image) for image in images]
    own, size = _remember(seen), len(home.mean)
    share = len(images) / (home.images + len(images))
    off = np.array(own.mean) - np.array(home.mean)
    between = np.outer(off, off)[np.tril_indices(size)]
    covariance = (1 - share) * np.array(home.covariance) + share * np.array(own.covariance)
    wide = msgspec.structs.replace(
        home,
        mean=_short((1 - share) * np.array(home.mean) + share * np.array(own.mean)),
        covariance=_short(covariance + share * (1 - share) * between),
        images=home.images + len(images),
    )
    far = max(distance(wide, part) for part in seen)
    return msgspec.structs.replace(wide, limit=max(home.limit, float(f"{_MARGIN * far:.4g}")))


def _remember(seen: list[Float64]) -> Home:
    """Mean and covariance of the blocks of some images."""
    blocks = np.concatenate(seen)
    spread = np.cov(blocks, rowvar=False) if len(blocks) > 1 else np.eye(blocks.shape[1])
    covariance = (1 - _SHRINKAGE) * spread + np.diag(_SHRINKAGE * np.diag(spread) + _LEAST)
    return Home(
        mean=_short(np.mean([part.mean(axis=0) for part in seen], axis=0)),
        covariance=_short(covariance[np.tril_indices(len(covariance))]),
        limit=0.0,
        images=len(seen),
    )


def _describe(engine: Engine, image: Image) -> Float64:
    volume = Volume(image)
    mean, gain, _ = normalization_constants(volume, engine.spec.normalization, engine.spec.channels)
    return look(network_input(volume, engine.spec), engine, mean, gain, _PLACES)


def _short(values: Float64) -> tuple[float, ...]:
    return tuple(float(f"{v:.5g}") for v in values)
