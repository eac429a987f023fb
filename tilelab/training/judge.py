"""How good a network is on planes, and whether it still says what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tilelab.arrays import Float64, UInt8
from tilelab.evaluation.metrics.confusion import Counts, count_confusion
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.spec import ModelSpec, Normalization
from tilelab.training.crops import CropSource, Square, fit_start
from tilelab.training.pairs import MaskedPlane
from tilelab.training.sections import IGNORE, Augmentation

_SURE = 0.9  # the probability of an old answer that counts
_CROPS = 32  # that a set is judged by
_SURELY = 0.95
_DRAWS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Planes to learn from, to be held to, or to be judged by.

    Attributes:
        name: in messages.
        planes: with their masks.
        normalizations: of each.
        tolerance: mean IoU, or share of the old answers, that may be lost on them; None where nothing must be kept.
        told: there is no truth: what the old network was sure of stands for it.
        real: micrographs, or drawn like them; not what only has their texture.
    """

    name: str
    planes: Sequence[MaskedPlane]
    normalizations: Sequence[Normalization]
    tolerance: float | None = None
    told: bool = False
    real: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """The score on one set before and after: the mean IoU; without a truth, the share of the old answers.

    Attributes:
        surely: the least that it changed by, with a confidence of 95 %; NaN where nothing can be said.
        tolerance: that may be lost; None where nothing must be kept.
        told: there is no truth.
    """

    name: str
    before: float
    after: float
    surely: float
    tolerance: float | None = None
    told: bool = False

    def __str__(self) -> str:
        if self.told:
            return f"{self.name}: {self.after:.2%} of what it was sure of is as before{self._sure('.2%')}"
        return f"{self.name}: mean IoU {self.before:.4f} -> {self.after:.4f}{self._sure('.4f')}"

    def _sure(self, form: str) -> str:
        if self.tolerance is None:
            return ""
        lost = format(max(0.0, -self.surely), form)
        return f" (with 95 % confidence no more than {lost} lost; {format(self.tolerance, form)} may be)"

    @property
    def gain(self) -> float:
        """What was won."""
        return self.after - self.before

    @property
    def resolution(self) -> float:
        """The least loss that is told from none: from what was found to the end of what it may be."""
        return self.gain - self.surely

    @property
    def kept(self) -> bool:
        """Whether it is sure that no more was lost than may be; where nothing can be said, nothing was."""
        return self.tolerance is None or not self.surely < -self.tolerance


class Judge:
    """Crops with their truth."""

    def __init__(self, planes: Planes, spec: ModelSpec, crop: int, old: nn.Module) -> None:
        self.name, self.tolerance, self.told = planes.name, planes.tolerance, planes.told
        self._spec = spec
        still = Augmentation(flips=False)
        rng = np.random.default_rng(0)  # nothing is drawn
        cut: list[tuple[torch.Tensor, UInt8]] = []
        each = max(1, _CROPS // max(1, len(planes.planes)))
        for plane, normalization in zip(planes.planes, planes.normalizations, strict=True):
            source = CropSource(Volume(plane.image), normalization, spec.channels)
            starts = _places(source.shape, crop)
            if not planes.told:  # a few outlines of a large micrograph lie in few of its crops
                known = plane.mask.read(Box.whole(plane.shape)) != IGNORE
                starts = [(y, x) for y, x in starts if known[max(0, y) : y + crop, max(0, x) : x + crop].any()]
            for start in _spread(starts, each):
                image, mask = source.cut(Square(start, crop), crop, still, rng, plane.mask)
                assert mask is not None  # noqa: S101  # asked for
                cut.append((image.expand(spec.channels, -1, -1), mask.numpy().astype(np.uint8)))
        self._images = [image for image, _ in cut]
        self._truth = _labels(old, self._images, spec, _SURE) if planes.told else [mask for _, mask in cut]

    def count(self, network: nn.Module) -> Counts:
        """Pixels of each crop by true and given class, int64 ``(crops, classes, classes)``."""
        classes = len(self._spec.classes)
        labels = _labels(network, self._images, self._spec)
        each = [count_confusion(got, truth, ignore=IGNORE) for got, truth in zip(labels, self._truth, strict=True)]
        return np.array([one[:classes, :classes] for one in each]).reshape(-1, classes, classes)

    def compare(self, before: Counts, after: Counts) -> Judged:
        """What `count` gave of two networks, all crops together."""
        return compare(self.name, before, after, self.tolerance, told=self.told)


def compare(name: str, before: Counts, after: Counts, tolerance: float | None, *, told: bool = False) -> Judged:
    """Two networks on the same crops ``(crops, classes, classes)``.

    How sure the difference is, is told by drawing the crops anew, the same for both (the paired bootstrap: Efron and
    Tibshirani, 1993): 95 % of the differences are larger than `Judged.surely`.  Crops count as independent.
    """
    crops = len(before)
    drawn = np.random.default_rng(0).multinomial(crops, np.full(crops, 1 / max(1, crops)), size=_DRAWS)
    differences = _score(np.tensordot(drawn, after, 1), told) - _score(np.tensordot(drawn, before, 1), told)
    known = differences[~np.isnan(differences)]
    surely = float(np.quantile(known, 1 - _SURELY)) if len(known) else float("nan")
    return Judged(name, float(_score(before.sum(0), told)), float(_score(after.sum(0), told)), surely, tolerance, told)


def _score(counts: Counts, told: bool) -> Float64:
    """The mean IoU of the classes that occur, or the share of pixels that are as they were, of ``(..., K, K)``."""
    right = np.einsum("...kk->...k", counts)
    with np.errstate(invalid="ignore"):
        if told:
            same: Float64 = right.sum(-1) / counts.sum((-2, -1))
            return same
        union = counts.sum(-1) + counts.sum(-2) - right
        there = union > 0
        iou = np.divide(right, union, out=np.zeros(union.shape), where=there)
        mean: Float64 = iou.sum(-1) / there.sum(-1)
        return mean


def _places(shape: tuple[int, int], side: int) -> list[tuple[int, int]]:
    """First rows and columns of squares that cover a plane; the last of an axis ends with it."""
    rows, columns = (range(0, n, side) for n in shape)
    return [fit_start((y, x), side, shape) for y in rows for x in columns]


def _spread(every: list[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """At most so many, spread evenly."""
    return every if len(every) <= most else [every[i * len(every) // most] for i in range(most)]


@torch.no_grad()
def _labels(network: nn.Module, images: Sequence[torch.Tensor], spec: ModelSpec, sure: float = 0.0) -> list[UInt8]:
    """The class of every pixel of each image; `IGNORE` where its probability is below `sure`."""
    found: list[UInt8] = []
    for image in images:
        with torch.autocast("cpu", enabled=False):  # in bf16 a difference is rounded by more than what is looked for
            out = network(image[None].contiguous(memory_format=torch.channels_last)).float()[0]
        highest, yes = out.argmax(dim=0), out.amax(dim=0).sigmoid()
        if spec.activation == "sigmoid":
            highest, chance = torch.where(yes > 0.5, highest + 1, 0), torch.maximum(yes, 1 - yes)
        else:
            chance = out.softmax(dim=0).amax(dim=0)
        highest = torch.where(chance >= sure, highest, IGNORE)
        found.append(highest.numpy().astype(np.uint8))
    return found
