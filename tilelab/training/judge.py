"""How good a network is on planes, and whether it still says what it said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from tilelab.arrays import UInt8
from tilelab.evaluation.metrics.confusion import count_confusion, mean_of_present, score_confusion
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.spec import ModelSpec, Normalization
from tilelab.training.crops import CropSource, Square, fit_start
from tilelab.training.pairs import MaskedPlane
from tilelab.training.sections import IGNORE, Augmentation

_SURE = 0.9  # the probability of an old answer that counts
_CROPS = 32  # that a set is judged by


@dataclass(frozen=True, slots=True, kw_only=True)
class Planes:
    """Planes to learn from, to be held to, or to be judged by.

    Attributes:
        name: in messages.
        planes: with their masks.
        normalizations: of each.
        tolerance: mean IoU that may be lost on them.
        told: there is no truth: what the old network was sure of stands for it.
        real: micrographs, or drawn like them; not what only has their texture.
    """

    name: str
    planes: Sequence[MaskedPlane]
    normalizations: Sequence[Normalization]
    tolerance: float = 0.0
    told: bool = False
    real: bool = True


@dataclass(frozen=True, slots=True)
class Judged:
    """The score on one set before and after: the mean IoU; without a truth, the share of the old answers."""

    name: str
    before: float
    after: float
    tolerance: float = 0.0
    told: bool = False

    def __str__(self) -> str:
        if self.told:
            return f"{self.name}: {self.after:.2%} of what it was sure of is as before"
        return f"{self.name}: mean IoU {self.before:.4f} -> {self.after:.4f}"

    @property
    def kept(self) -> bool:
        """Whether no more was lost than is allowed; of a set on which it was sure of nothing, nothing is."""
        return not self.after < self.before - self.tolerance


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

    def score(self, network: nn.Module) -> float:
        """Of all crops, counted together: the mean IoU, or the share of pixels that are as they were."""
        counts = np.zeros((256, 256), np.int64)
        for got, truth in zip(_labels(network, self._images, self._spec), self._truth, strict=True):
            counts += count_confusion(got, truth, ignore=IGNORE)
        classes = len(self._spec.classes)
        found = score_confusion(counts[:classes, :classes])
        return found.pixel_accuracy if self.told else mean_of_present(found.iou)


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
        out = network(image[None].contiguous(memory_format=torch.channels_last)).float()[0]
        highest, yes = out.argmax(dim=0), out.amax(dim=0).sigmoid()
        if spec.activation == "sigmoid":
            highest, chance = torch.where(yes > 0.5, highest + 1, 0), torch.maximum(yes, 1 - yes)
        else:
            chance = out.softmax(dim=0).amax(dim=0)
        highest = torch.where(chance >= sure, highest, IGNORE)
        found.append(highest.numpy().astype(np.uint8))
    return found
