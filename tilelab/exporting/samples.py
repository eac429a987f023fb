"""The images on which an exported file is compared with its network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from tilelab.errors import InputError
from tilelab.evaluation.pairs import list_files, name_of
from tilelab.exporting.parity import Sample
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.spec import ModelSpec
from tilelab.training.inspection import check_finite
from tilelab.training.pairs import MaskedPlane, Plane, StoredMask, open_pairs
from tilelab.training.recipe import Data
from tilelab.training.shelf import open_lasting

if TYPE_CHECKING:
    from tilelab.training.recipe import Recipe

_T = TypeVar("_T")

LARGEST = 2048
"""Side of the part, px, that is taken from the middle of a larger image: whole logits are held in memory."""
MOST = 8
"""Images that are taken from a folder."""
FULL_SCALE = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}  # of a data type, in grey levels of uint8


def validation_samples(recipe: Recipe, root: Path) -> list[Sample]:
    """The recipe's validation set, whole; of planes too large to be kept in memory the middle.

    Raises:
        InputError: it is not there, or does not fit the recipe.
    """
    return [
        _cut_pair(pair)
        if isinstance(pair.mask, StoredMask)
        else Sample(pair.name, pair.image, pair.mask.read(Box.whole(pair.shape)))
        for pair in open_pairs(recipe.validation, root, len(recipe.classes), recipe.network.neighbours)
    ]


def training_images(recipe: Recipe, root: Path) -> list[Image]:
    """The recipe's training images, whole.

    Raises:
        InputError: they are not there, or do not fit the recipe.
    """
    pairs = open_pairs(recipe.train, root, len(recipe.classes), recipe.network.neighbours)
    return [pair.image for pair in pairs]


def user_samples(images: Path, masks: Path | None, labels: str, spec: ModelSpec) -> list[Sample]:
    """The user's own images: at most `MOST`, spread over the folder, of large ones the middle.

    Args:
        images: an image, or a folder of them; of stacks, the middle slice without masks, and every slice with.
        masks: the truth, likewise.
        labels: which stored value is which class (see the recipe's `Data`); empty: the values are the classes.
        spec: of the model.

    Raises:
        InputError: nothing is there, images and masks do not fit each other, or pixels are not finite.
    """
    if masks is not None:
        data = Data(str(images.absolute()), str(masks.absolute()), labels)
        pairs = open_pairs(data, Path(), len(spec.classes), spec.neighbours)
        return [_cut_pair(pair) for pair in _spread(pairs)]
    found = _spread(list(find_images(images).items()))
    return [_cut(name, middle_plane(open_image(path, bar=None), spec.neighbours)) for name, path in found]


def drawn_sample(spec: ModelSpec) -> Sample:
    """A drawn micrograph of at least two and a half tiles each way."""
    from tilelab.sample import draw_superalloy

    side = max(768, *(5 * n // 2 for n in spec.tile))
    dtype = spec.normalization.dtype
    drawn = draw_superalloy((side, side))[0] * np.float32(FULL_SCALE.get(dtype, 1.0))
    return Sample("drawn micrograph", open_image(drawn.astype(dtype), axes="yx"))


def find_images(path: Path) -> dict[str, Path]:
    """An image, or those of a folder, by name.

    Raises:
        InputError: there is nothing.
    """
    if not path.exists():
        raise InputError(f"there is no image or folder {path}")
    if path.is_dir() and not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray", ".zattrs")):
        return list_files(path)
    return {name_of(path): path}


def planes_of(path: Path | None, neighbours: int = 0) -> list[Image]:
    """The middle slice of an image, or of each in a folder; none of None.

    Raises:
        InputError: there is nothing, or it cannot be read.
    """
    if path is None:
        return []
    return [middle_plane(open_lasting(file), neighbours) for file in find_images(path).values()]


def middle_plane(image: Image, neighbours: int = 0) -> Image:
    """The middle slice of a volume, with its neighbours as channels; a plane is itself."""
    return Plane(image, Volume(image).shape[0] // 2, neighbours)


def _cut_pair(pair: MaskedPlane) -> Sample:
    box = _middle(pair.shape)
    return Sample(pair.name, _read(pair.image, box), pair.mask.read(box))


def _cut(name: str, image: Image) -> Sample:
    return Sample(name, _read(image, _middle((image.shape[-2], image.shape[-1]))))


def _read(plane: Image, box: Box) -> Image:
    channels = () if plane.axes == "yx" else (plane.shape[0],)
    whole = Box((*(0 for _ in channels), *box.start), (*channels, *box.stop))
    cut = open_image(np.ascontiguousarray(plane.read(whole)), axes=plane.axes, pixel_size_nm=plane.pixel_size_nm)
    cut.uri, cut.neighbours = plane.uri, plane.neighbours
    check_finite(cut.uri, Volume(cut), 0, 1)
    return cut


def _middle(shape: tuple[int, int]) -> Box:
    start = [max(0, (n - LARGEST) // 2) for n in shape]
    return Box(tuple(start), tuple(min(n, a + LARGEST) for n, a in zip(shape, start, strict=True)))


def _spread(found: list[_T]) -> list[_T]:
    return found if len(found) <= MOST else [found[i * len(found) // MOST] for i in range(MOST)]
