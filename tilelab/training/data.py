"""Pairs of images and masks, and crops drawn from them.

A pair is never loaded whole for its crops: regions are read where they lie.  What class-balanced sampling needs to know
is gathered once, as counts per class in blocks of the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image as Pillow
from torch.nn import functional

from tilelab.errors import InputError
from tilelab.geometry import reflect
from tilelab.spec import Normalization
from tilelab.training.augment import Symmetry, change_intensity, draw_scale
from tilelab.training.recipe import IGNORE, Augmentation, Data, Sampling

_BLOCK = 64
_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Pair:
    """An image and its mask, both ``(y, x)``; slicing reads a region.  The mask holds class indices or `IGNORE`."""

    name: str
    image: npt.NDArray[Any]
    mask: UInt8

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        height, width = self.mask.shape
        return height, width


def full_scale(dtype: np.dtype[Any]) -> float:
    """The intensity that counts as 1: the greatest of an integer type, 1 for floating point."""
    return float(np.iinfo(dtype).max) if np.issubdtype(dtype, np.integer) else 1.0


def open_pairs(data: Data, root: Path, classes: int) -> list[Pair]:
    """Find and check the pairs of one set, in the order of their names.

    Raises:
        InputError: a folder is missing or empty, a file has no partner, sizes differ, or a mask holds a value that is
            neither a class nor 255; the file is named.
    """
    images, masks = _files(root / data.images), _files(root / data.masks)
    if len(images) == len(masks) == 1:
        names = list(images)
        masks = dict(zip(images, masks.values(), strict=True))
    else:
        for here, there, kind, folder in ((images, masks, "mask", data.masks), (masks, images, "image", data.images)):
            alone = sorted(set(here) - set(there))
            if alone:
                raise InputError(f"{here[alone[0]]} has no {kind} of the same name in {root / folder}")
        names = sorted(images)
    names = names[: data.limit] if data.limit else names
    return [_open_pair(images[name], masks[name], classes) for name in names]


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.stem: path}
    if not path.is_dir():
        raise InputError(f"no such folder or file: {path}")
    files = {p.stem: p for p in sorted(path.iterdir()) if p.suffix.lower() in _SUFFIXES}
    if not files:
        raise InputError(f"{path} holds no image ({', '.join(_SUFFIXES)})")
    return files


def _open_pair(image_path: Path, mask_path: Path, classes: int) -> Pair:
    try:
        image = np.asarray(Pillow.open(image_path).convert("L"))
        mask = np.asarray(Pillow.open(mask_path))
    except OSError as error:
        raise InputError(f"{image_path} or its mask cannot be read: {error}") from error
    if image.shape != mask.shape:
        raise InputError(f"image {image_path} has shape {image.shape}, its mask {mask_path} {mask.shape}")
    values = np.unique(mask)
    wrong = values[(values >= classes) & (values != IGNORE)]
    if wrong.size:
        raise InputError(f"mask {mask_path} holds {wrong[0]}, which is not a class (0 to {classes - 1}) or {IGNORE}")
    return Pair(image_path.stem, image, mask.astype(np.uint8))


def measure_normalization(pairs: Sequence[Pair]) -> Normalization:
    """Mean and standard deviation over all pixels of all images, as constants."""
    count, total, square = 0, 0.0, 0.0
    for pair in pairs:
        values = np.asarray(pair.image, dtype=np.float64)
        count += values.size
        total += float(values.sum())
        square += float(np.square(values).sum())
    mean = total / count
    deviation = max((square / count - mean**2) ** 0.5, 1e-6 * full_scale(pairs[0].image.dtype))
    return Normalization(mean=(round(mean, 4),), std=(round(deviation, 4),), dtype=str(pairs[0].image.dtype))


class CropSampler:
    """Draws augmented, normalised crops; crop `index` of step `step` is always the same.

    Args:
        pairs: what to draw from.
        classes: number of classes.
        sampling: crop size and balance.
        augmentation: random changes.
        normalization: constants, in raw units.
        seed: of everything drawn.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: int,
        sampling: Sampling,
        augmentation: Augmentation,
        normalization: Normalization,
        seed: int,
    ):
        self.pairs = pairs
        self.sampling = sampling
        self.augmentation = augmentation
        self.normalization = normalization
        self.seed = seed
        self._area = np.cumsum([pair.mask.size for pair in pairs])
        counts = [count_blocks(pair.mask, classes) for pair in pairs]
        # per class: the running count over all blocks of all pairs, to draw a block in proportion to its pixels
        self._grids = [c.shape[1:] for c in counts]
        self._offsets = np.cumsum([0, *(c.shape[1] * c.shape[2] for c in counts)])
        self._running = np.cumsum(np.concatenate([c.reshape(classes, -1) for c in counts], axis=1), axis=1)
        self._present = np.flatnonzero(self._running[:, -1])

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch of one step: float32 ``(B, 1, crop, crop)``, int64 ``(B, crop, crop)``."""
        crops = [self.crop(step, index) for index in range(self.sampling.batch)]
        images = torch.from_numpy(np.stack([image for image, _ in crops]))
        masks = torch.from_numpy(np.stack([mask for _, mask in crops]))
        return images, masks.long()

    def crop(self, step: int, index: int) -> tuple[Float32, UInt8]:
        """One crop: float32 ``(1, crop, crop)``, normalised; uint8 ``(crop, crop)``."""
        rng = np.random.default_rng((self.seed, step, index))
        scale = draw_scale(self.augmentation, rng)
        extent = max(2, round(self.sampling.crop / scale))
        pair, start = self._place(extent, rng)
        rows, columns = (
            reflect(np.arange(at, at + extent, dtype=np.int64), size)
            for at, size in zip(start, pair.shape, strict=True)
        )
        scale_to_one = full_scale(pair.image.dtype)
        image = _take(pair.image, rows, columns)[None].astype(np.float32) / np.float32(scale_to_one)
        mask = _take(pair.mask, rows, columns)
        image, mask = resize(image, mask, self.sampling.crop)
        if self.augmentation.flips:
            symmetry = Symmetry.draw(rng)
            image, mask = symmetry.apply(image), symmetry.apply(mask)
        image = change_intensity(image, self.augmentation, rng) * np.float32(scale_to_one)
        mean, std = self.normalization.mean[0], self.normalization.std[0]
        return (image - np.float32(mean)) / np.float32(std), mask

    def _place(self, extent: int, rng: np.random.Generator) -> tuple[Pair, list[int]]:
        """The pair and the first row and column of a crop of `extent` pixels; negative where the image is smaller."""
        if rng.random() < self.sampling.balance:
            label = rng.choice(self._present)
            running = self._running[label]
            block = int(np.searchsorted(running, rng.integers(running[-1]), side="right"))
            which = int(np.searchsorted(self._offsets, block, side="right")) - 1
            pair = self.pairs[which]
            at = np.unravel_index(block - int(self._offsets[which]), self._grids[which])
            top, left = (int(i) * _BLOCK for i in at)
            region = np.asarray(
                pair.mask[top : min(top + _BLOCK, pair.shape[0]), left : min(left + _BLOCK, pair.shape[1])]
            )
            y, x = np.nonzero(region == label)
            chosen = rng.integers(len(y))
            start = [int(c) - int(rng.integers(extent)) for c in (top + y[chosen], left + x[chosen])]
        else:
            which = int(np.searchsorted(self._area, rng.integers(self._area[-1]), side="right"))
            pair = self.pairs[which]
            start = [int(rng.integers(max(1, size - extent + 1))) for size in pair.shape]
        return pair, [
            (size - extent) // 2 if size < extent else min(max(0, at), size - extent)
            for at, size in zip(start, pair.shape, strict=True)
        ]


def count_blocks(mask: UInt8, classes: int) -> npt.NDArray[np.int64]:
    """Pixels per class in blocks of 64 x 64, int64 ``(classes, rows, columns)``; reads a row of blocks at a time."""
    height, width = mask.shape
    rows, columns = -(-height // _BLOCK), -(-width // _BLOCK)
    counts = np.zeros((classes, rows, columns), dtype=np.int64)
    edges = np.arange(0, width, _BLOCK)
    for row in range(rows):
        band = np.asarray(mask[row * _BLOCK : min(height, (row + 1) * _BLOCK), 0:width])
        for label in range(classes):
            counts[label, row] = np.add.reduceat((band == label).sum(axis=0), edges)
    return counts


def _take(plane: npt.NDArray[Any], rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """The pixels at the product of `rows` and `columns`; only the region that holds them is read."""
    top, left = int(rows.min()), int(columns.min())
    region = np.asarray(plane[top : int(rows.max()) + 1, left : int(columns.max()) + 1])
    return region[np.ix_(rows - top, columns - left)]


def resize(image: Float32, mask: UInt8, size: int) -> tuple[Float32, UInt8]:
    """Image by (antialiased) bilinear, mask by nearest neighbour, to ``(C, size, size)`` and ``(size, size)``."""
    if mask.shape == (size, size):
        return image, mask
    planes = functional.interpolate(
        torch.from_numpy(image)[None], size=(size, size), mode="bilinear", align_corners=False, antialias=True
    )
    labels = functional.interpolate(torch.from_numpy(mask)[None, None].float(), size=(size, size), mode="nearest-exact")
    return planes[0].numpy(), labels[0, 0].numpy().astype(np.uint8)
