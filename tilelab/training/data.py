"""Crops drawn from pairs of images and masks: augmented, normalised, and the same for the same seed and step.

A pair is never loaded whole for its crops: regions are read where they lie.  What class-balanced sampling needs to know
is gathered once, as counts per class in blocks of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from tilelab.geometry import Box, reflect
from tilelab.normalize import normalization_constants
from tilelab.spec import Normalization
from tilelab.training.augment import Symmetry, change_intensity, draw_scale
from tilelab.training.pairs import BLOCK, Pair, count_blocks
from tilelab.training.recipe import Augmentation, Sampling
from tilelab.volume import Volume

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Int64 = npt.NDArray[np.int64]


def full_scale(dtype: np.dtype[Any]) -> float:
    """The intensity that counts as 1: the greatest of an integer type, 1 for floating point."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


class CropSampler:
    """Draws crops; crop `index` of step `step` is always the same.

    Args:
        pairs: what to draw from.
        channels: input channels of the network; a grey image is repeated to fill them.
        classes: number of classes.
        sampling: crop size and balance.
        augmentation: random changes.
        normalization: as in use; statistics are those of each image.
        seed: of everything drawn.

    Raises:
        ModelError: an image's channels or dtype do not suit.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        channels: int,
        classes: int,
        sampling: Sampling,
        augmentation: Augmentation,
        normalization: Normalization,
        seed: int,
    ):
        self.pairs = pairs
        self.sampling = sampling
        self.augmentation = augmentation
        self.seed = seed
        self._volumes = [Volume(pair.image) for pair in pairs]
        self._constants = [normalization_constants(volume, normalization, channels)[:2] for volume in self._volumes]
        self._area = np.cumsum([pair.shape[0] * pair.shape[1] for pair in pairs])
        counts = [count_blocks(pair.mask, classes) for pair in pairs]
        # per class: the running count over all blocks of all pairs, to draw a block in proportion to its pixels
        self._grids = [c.shape[1:] for c in counts]
        self._offsets = np.cumsum([0, *(c.shape[1] * c.shape[2] for c in counts)])
        self._running = np.cumsum(np.concatenate([c.reshape(classes, -1) for c in counts], axis=1), axis=1)
        self._present = np.flatnonzero(self._running[:, -1])

    def batch(self, step: int, indices: range | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of one step, or `indices` of it: float32 ``(B, C, crop, crop)``, int64 ``(B, crop, crop)``."""
        crops = [self.crop(step, index) for index in indices or range(self.sampling.batch)]
        images = torch.from_numpy(np.stack([image for image, _ in crops]))
        masks = torch.from_numpy(np.stack([mask for _, mask in crops]))
        return images, masks.long()

    def crop(self, step: int, index: int) -> tuple[Float32, UInt8]:
        """One crop: float32 ``(C, crop, crop)``, normalised; uint8 ``(crop, crop)``."""
        rng = np.random.default_rng((self.seed, step, index))
        scale = draw_scale(self.augmentation, rng)
        extent = max(2, round(self.sampling.crop / scale))
        which, start = self._place(extent, rng)
        pair, volume = self.pairs[which], self._volumes[which]
        rows, columns = (
            reflect(np.arange(at, at + extent, dtype=np.int64), size)
            for at, size in zip(start, pair.shape, strict=True)
        )
        box = Box((int(rows.min()), int(columns.min())), (int(rows.max()) + 1, int(columns.max()) + 1))
        inside = np.ix_(rows - box.start[0], columns - box.start[1])
        scale_to_one = np.float32(full_scale(volume.dtype))
        region = volume.read(Box((0, *box.start), (1, *box.stop)))[:, 0]
        image = region[:, inside[0], inside[1]].astype(np.float32) / scale_to_one
        mask = pair.mask.read(box)[inside]
        image, mask = resize(image, mask, self.sampling.crop)
        if self.augmentation.flips:
            symmetry = Symmetry.draw(rng)
            image, mask = symmetry.apply(image), symmetry.apply(mask)
        image = change_intensity(image, self.augmentation, rng) * scale_to_one
        mean, gain = (values[:, None, None] for values in self._constants[which])
        normalised: Float32 = (image - mean) * gain
        return normalised, mask

    def _place(self, extent: int, rng: np.random.Generator) -> tuple[int, list[int]]:
        """The pair, and the first row and column of a crop of `extent` pixels; negative where the image is smaller."""
        if rng.random() < self.sampling.balance:
            which, point = self._draw_pixel(int(rng.choice(self._present)), rng)
            start = [at - int(rng.integers(extent)) for at in point]
        else:
            which = int(np.searchsorted(self._area, rng.integers(self._area[-1]), side="right"))
            start = [int(rng.integers(max(1, size - extent + 1))) for size in self.pairs[which].shape]
        return which, [
            (size - extent) // 2 if size < extent else min(max(0, at), size - extent)
            for at, size in zip(start, self.pairs[which].shape, strict=True)
        ]

    def _draw_pixel(self, label: int, rng: np.random.Generator) -> tuple[int, list[int]]:
        """A pixel of one class, all equally likely: the pair, and row and column."""
        running = self._running[label]
        block = int(np.searchsorted(running, rng.integers(running[-1]), side="right"))
        which = int(np.searchsorted(self._offsets, block, side="right")) - 1
        mask = self.pairs[which].mask
        at = np.unravel_index(block - int(self._offsets[which]), self._grids[which])
        start = [int(i) * BLOCK for i in at]
        box = Box(tuple(start), tuple(min(a + BLOCK, n) for a, n in zip(start, mask.shape, strict=True)))
        y, x = np.nonzero(mask.read(box) == label)
        chosen = rng.integers(len(y))
        return which, [start[0] + int(y[chosen]), start[1] + int(x[chosen])]


def resize(image: Float32, mask: UInt8, size: int) -> tuple[Float32, UInt8]:
    """Image by (antialiased) bilinear, mask by nearest neighbour, to ``(C, size, size)`` and ``(size, size)``."""
    if mask.shape == (size, size):
        return image, mask
    planes = functional.interpolate(
        torch.from_numpy(image)[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    labels = functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=(size, size), mode="nearest-exact")
    return planes[0].numpy(), labels[0, 0].numpy().astype(np.uint8)
