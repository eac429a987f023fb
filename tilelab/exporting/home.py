"""What a model's training images look like: learnt once, and kept in the model."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from tilelab.arrays import Float32, Float64
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume, network_input
from tilelab.run.kind.fit import scaled
from tilelab.run.kind.home import BLOCK, describe, distance, knows, look, normalized, places, towards
from tilelab.run.normalize import plane_constants
from tilelab.spec import Home, ModelSpec

_SHRINKAGE = 0.3  # of covariances to none: images are few, features are many
_MARGIN = 1.15  # beyond the farthest image that is known
_LEAST = 1e-3  # of a variance
_PLACES = 16
_FEW = 2  # of an image that is changed
_ENOUGH = 6  # images that tell what lies around them
_SCALES = (2.0, 0.5)
_NOISES = (0.5, 1.0)  # of an image's spread


def learn_home(
    engine: Engine, trained: Sequence[Image], known: Sequence[Image] = (), foreign: Sequence[Sequence[Image]] = ()
) -> Home:
    """What `trained` look like to the model of `engine`; `known` are others that it is at home with.

    An image is foreign when it is farther away than any of both, by a margin; where none is known beside those of the
    training, farther than any of these is from the others.  So is one that lies farther than they towards what the
    training images would be if they were changed, or towards a group of `foreign` ones.

    Raises:
        InputError: there is no image.
        ModelError: the model is not of a kind that can be asked.
    """
    if not trained:
        raise InputError("no training images to learn from: name some")
    if not knows(engine.spec):
        raise ModelError("only 2-D models that give classes of grey images can remember what they were trained on")
    seen = [_describe(engine, image) for image in trained]
    others = [_describe(engine, image) for image in known]
    home = _remember(seen)
    if known:
        far = [distance(home, part) for part in [*seen, *others]]
    else:  # each by what the others teach
        far = [distance(_remember(seen[:i] + seen[i + 1 :] or seen), part) for i, part in enumerate(seen)]
    home = msgspec.structs.replace(home, limit=float(f"{_MARGIN * max(far):.4g}"))
    if len(trained) < _ENOUGH:
        return home
    changed = [_change(engine, image) for image in trained]
    groups = [np.mean([_describe(engine, image, 1).mean(axis=0) for image in group], axis=0) for group in foreign]
    return _look_away(home, seen, others, changed, groups)


def _look_away(
    home: Home, seen: list[Float64], known: list[Float64], changed: list[Float64], groups: list[Float64]
) -> Home:
    """Home with what lies around it.

    Args:
        home: of `seen`.
        seen, known: blocks ``(n, features)`` of each image.
        changed: of each image in `seen`, its mean features in every change, ``(changes, features)``; NaN where it
            allows none.
        groups: mean features of each group of foreign images.
    """
    possible = (~np.isnan(changed).any(axis=2)).sum(axis=0) > 1

    def without(i: int | None) -> Home:
        means = np.array([one[possible] for k, one in enumerate(changed) if k != i])
        kept = [part for k, part in enumerate(seen) if k != i]
        others = (*np.nanmean(means, axis=0), *groups)
        return msgspec.structs.replace(
            home if i is None else _remember(kept), others=tuple(map(_short, others)), bounds=(1.0,) * len(others)
        )

    whole = without(None)
    far = [towards(without(i), part) for i, part in enumerate(seen)] + [towards(whole, part) for part in known]
    bounds = np.maximum(np.max(far, axis=0) + np.std(far, axis=0), 1)
    return msgspec.structs.replace(whole, bounds=_short(bounds))


def _change(engine: Engine, image: Image) -> Float64:
    """Mean features of an image in every change, ``(changes, features)``."""
    volume = network_input(Volume(image), engine.spec)
    mean, gain = _constants(Volume(image), engine.spec)
    chance, clip = np.random.default_rng(0), engine.spec.normalization.clip
    found: list[list[Float64]] = [[] for _ in range(1 + len(_NOISES))]
    for box in places(volume, engine.tile, _FEW):
        tile = normalized(volume.read(box)[:, 0], mean, gain, engine.tile, clip)
        noises = [tile + chance.normal(0, share * tile.std(), tile.shape) for share in _NOISES]
        for kept, made in zip(found, [2 * tile.mean() - tile, *noises], strict=True):
            seen = made if clip is None else np.clip(made, *clip)
            kept.append(describe(engine, seen.astype(np.float32)))
    rows = [np.concatenate(kept).mean(axis=0) for kept in found]
    for scale in _SCALES:
        if scale * min(volume.shape[1:]) < BLOCK:
            rows.append(np.full_like(rows[0], np.nan))
            continue
        resampled = network_input(Volume(scaled(image, scale)), engine.spec)
        rows.append(look(resampled, engine, mean, gain, _FEW).mean(axis=0))
    return np.array(rows)


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
    bounds = np.max([np.array(home.bounds), *(_MARGIN * towards(wide, part) for part in seen)], axis=0)
    limit = max(home.limit, float(f"{_MARGIN * far:.4g}"))
    return msgspec.structs.replace(wide, limit=limit, bounds=_short(bounds))


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


def _describe(engine: Engine, image: Image, most: int = _PLACES) -> Float64:
    volume = Volume(image)
    mean, gain = _constants(volume, engine.spec)
    return look(network_input(volume, engine.spec), engine, mean, gain, most)


def _constants(volume: Volume, spec: ModelSpec) -> tuple[Float32, Float32]:
    """How a training image is normalised, ``(channels,)`` each."""
    return plane_constants(volume, spec.normalization, spec.channels)


def _short(values: Float64) -> tuple[float, ...]:
    return tuple(float(f"{v:.5g}") for v in values)
