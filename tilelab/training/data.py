"""Crops drawn from pairs of images and masks: augmented, normalised, and the same for the same seed and step.

A pair is never loaded whole for its crops: regions are read where they lie.  What class-balanced sampling needs to know
is gathered once, as counts per class in blocks of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.spec import Normalization
from tilelab.training.augment import draw_scale
from tilelab.training.crops import CropSource, Example, Square, fit_start, stack
from tilelab.training.pairs import BLOCK, MaskedPlane, count_blocks
from tilelab.training.sections import Augmentation, Sampling


class CropSampler:
    """Draws crops; crop `index` of step `step` is always the same.

    Args:
        pairs: what to draw from.
        channels: input channels of the network; a grey image is repeated to fill them.
        classes: number of classes.
        sampling: crop size and balance.
        augmentation: random changes.
        normalization: as in use, of all or of each; statistics are those of each image.
        seed: of everything drawn.

    Raises:
        ModelError: an image's channels or dtype do not suit.
    """

    def __init__(
        self,
        pairs: Sequence[MaskedPlane],
        channels: int,
        classes: int,
        sampling: Sampling,
        augmentation: Augmentation,
        normalization: Normalization | Sequence[Normalization],
        seed: int,
    ):
        self.pairs = pairs
        self.sampling = sampling
        self.augmentation = augmentation
        self.seed = seed
        each = [normalization] * len(pairs) if isinstance(normalization, Normalization) else normalization
        self._sources = [CropSource(Volume(pair.image), its, channels) for pair, its in zip(pairs, each, strict=True)]
        self._area = np.cumsum([pair.shape[0] * pair.shape[1] for pair in pairs])
        counts = [count_blocks(pair.mask, classes) for pair in pairs]
        # per class: the running count over all blocks of all pairs, to draw a block in proportion to its pixels
        self._grids = [c.shape[1:] for c in counts]
        self._offsets = np.cumsum([0, *(c.shape[1] * c.shape[2] for c in counts)])
        self._running = np.cumsum(np.concatenate([c.reshape(classes, -1) for c in counts], axis=1), axis=1)
        self._present = np.flatnonzero(self._running[:, -1])

    def batch(self, step: int) -> Example:
        """The batch of one step: float32 ``(B, C, crop, crop)``, int64 ``(B, crop, crop)``."""
        return stack([self.crop(step, index) for index in range(self.sampling.batch)])

    def crop(self, step: int, index: int) -> Example:
        """One crop: float32 ``(C, crop, crop)``, normalised; uint8 ``(crop, crop)``."""
        rng = np.random.default_rng((self.seed, step, index))
        extent = max(2, round(self.sampling.crop / draw_scale(self.augmentation, rng)))
        which, start = self._place(extent, rng)
        image, mask = self._sources[which].cut(
            Square(start, extent), self.sampling.crop, self.augmentation, rng, self.pairs[which].mask
        )
        assert mask is not None  # noqa: S101  # asked for
        return image, mask

    def _place(self, extent: int, rng: np.random.Generator) -> tuple[int, tuple[int, int]]:
        """The pair, and the first row and column of a crop of `extent` pixels; negative where the image is smaller."""
        if rng.random() < self.sampling.balance:
            which, point = self._draw_pixel(int(rng.choice(self._present)), rng)
            start = [at - int(rng.integers(extent)) for at in point]
        else:
            which = int(np.searchsorted(self._area, rng.integers(self._area[-1]), side="right"))
            start = [int(rng.integers(max(1, size - extent + 1))) for size in self.pairs[which].shape]
        return which, fit_start(start, extent, self.pairs[which].shape)

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
