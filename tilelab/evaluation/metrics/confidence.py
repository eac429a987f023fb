"""How far a model's probabilities can be believed, and the temperature with which they can (Guo et al., 2017).

Logits are looked at on a lattice of pixels that is as fine as `MOST` allows: neighbours say the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tilelab.arrays import Float32, Int64, UInt8
from tilelab.kernels.reference import SIGMOID, to_probabilities
from tilelab.spec import Confidence

MOST = 1 << 16  # pixels of an image
_BINS = 15
_WIDEST = 1.5  # of a temperature's logarithm, either way: what is never wrong would want none at all
_STEPS = 24
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Answers:
    """What a network said of some pixels: logits float32 ``(K, n)``, and their true classes ``(n,)``."""

    logits: Float32
    truth: UInt8

    @classmethod
    def of(cls, logits: Float32, truth: UInt8, *, ignore: int | None = None, step: int | None = None) -> Answers:
        """Those of a plane ``(K, y, x)``, every `step` pixels each way; by default `MOST` of them."""
        step = step or lattice_step(truth.shape)
        said, true = logits[:, ::step, ::step].reshape(len(logits), -1), truth[::step, ::step].ravel()
        known = np.ones(true.shape, bool) if ignore is None else true != ignore
        return cls(np.ascontiguousarray(said[:, known]), true[known])

    @classmethod
    def all(cls, parts: Sequence[Answers]) -> Answers:
        """Those of several together."""
        return cls(np.concatenate([p.logits for p in parts], axis=1), np.concatenate([p.truth for p in parts]))


def lattice_step(shape: tuple[int, ...]) -> int:
    """Pixels between those that are looked at of a plane."""
    return max(1, math.ceil(math.sqrt(math.prod(shape) / MOST)))


def calibration_error(answers: Answers, activation: int, temperature: float = 1.0) -> float:
    """Expected calibration error: how far the share of right labels is from what their probabilities say, on the mean.

    Probabilities of labels are gathered in fifteen bins of equal width; each bin counts as its pixels.
    """
    hits, said, count = _bins(answers, activation, temperature)
    return float(np.abs(hits - said).sum() / max(1, count.sum()))


def _bins(answers: Answers, activation: int, temperature: float) -> tuple[Int64, Int64, Int64]:
    """Right labels, the sum of their probabilities, and pixels, of each bin."""
    chances = to_probabilities(answers.logits, activation, 1 / temperature)
    labels, sure = chances.argmax(axis=0), chances.max(axis=0)
    where = np.minimum((sure * _BINS).astype(np.int64), _BINS - 1)
    weights = ((labels == answers.truth).astype(float), sure.astype(float), None)
    hits, said, count = (np.bincount(where, weights=w, minlength=_BINS) for w in weights)
    return hits, said, count


def fit_temperature(answers: Answers, activation: int) -> float:
    """The temperature that makes the truth least surprising: the cross-entropy is convex in its inverse."""
    low, high = -_WIDEST, _WIDEST
    at = [high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)]
    loss = [_surprise(answers, activation, math.exp(one)) for one in at]
    for _ in range(_STEPS):
        if loss[0] < loss[1]:
            high, at[1], loss[1] = at[1], at[0], loss[0]
            at[0] = high - _GOLDEN * (high - low)
            loss[0] = _surprise(answers, activation, math.exp(at[0]))
        else:
            low, at[0], loss[0] = at[0], at[1], loss[1]
            at[1] = low + _GOLDEN * (high - low)
            loss[1] = _surprise(answers, activation, math.exp(at[1]))
    return float(f"{math.exp((low + high) / 2):.3g}")


def _surprise(answers: Answers, activation: int, temperature: float) -> float:
    """Mean cross-entropy; of sigmoids, of each one's question."""
    values = answers.logits * np.float32(1 / temperature)
    if activation == SIGMOID:
        yes = np.arange(1, len(values) + 1)[:, None] == answers.truth[None]
        return float(np.logaddexp(np.float32(0), np.where(yes, -values, values)).sum(axis=0).mean())
    true = np.take_along_axis(values, answers.truth[None].astype(np.int64), axis=0)[0]
    highest = values.max(axis=0)
    return float((np.log(np.exp(values - highest).sum(axis=0)) + highest - true).mean())


def calibrate(images: Sequence[Answers], activation: int) -> Confidence | None:
    """The temperature of all images; its error by what the others teach of each. None where no pixel is known."""
    known = [image for image in images if image.truth.size]
    if not known:
        return None
    pairs = list(_held_out(known, activation))
    pixels = sum(image.truth.size for image in known)
    before, after = (
        float(np.abs(sum(bins[0] for bins in side) - sum(bins[1] for bins in side)).sum() / pixels)
        for side in zip(*pairs, strict=True)
    )
    temperature = fit_temperature(Answers.all(known), activation)
    return Confidence(temperature=temperature, images=len(known), ece=(float(f"{before:.3g}"), float(f"{after:.3g}")))


def _held_out(known: Sequence[Answers], activation: int) -> Iterator[tuple[tuple[Int64, ...], tuple[Int64, ...]]]:
    """The bins of each image, with a temperature of 1 and with that of the others (its own where there is no other)."""
    for i, image in enumerate(known):
        others = [*known[:i], *known[i + 1 :]] or [image]
        temperature = fit_temperature(Answers.all(others), activation)
        yield _bins(image, activation, 1.0), _bins(image, activation, temperature)
