"""A folder of corrections: crops or whole micrographs, and of each the classes that somebody drew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import msgspec
import numpy as np

from tilelab.errors import InputError
from tilelab.evaluation.pairs import list_files, match_names, name_of
from tilelab.geometry import Box
from tilelab.io.images.open import open_image
from tilelab.io.images.volume import Volume
from tilelab.run.normalize import normalization_constants
from tilelab.spec import ModelSpec, Normalization
from tilelab.training.inspection import Inspection, check_finite
from tilelab.training.outlines import read_outlines
from tilelab.training.pairs import ArrayMask, MaskedPlane, Plane, check_images, load_plane, open_set
from tilelab.training.sections import IGNORE, Data

_PLACE = re.compile(r"_\d+_\d+_\d+$")
"""What `tilelab.view.corrections` puts behind the name of the micrograph that a crop is of."""
_CROP_PX = 256  # the longest side of such a crop


@dataclass(frozen=True)
class Corrected:
    """What was corrected.

    Attributes:
        planes: with their masks, in which `IGNORE` is what nobody looked at.
        normalizations: of each plane.
        digest: of all pixels.
        notes: one line each, for the user.
    """

    planes: list[MaskedPlane]
    normalizations: list[Normalization]
    digest: str
    notes: list[str]

    @property
    def pixels(self) -> int:
        """Those that have a class."""
        return sum(int((p.mask.read(Box.whole(p.shape)) != IGNORE).sum()) for p in self.planes)


def open_corrections(
    folder: Path, spec: ModelSpec, *, labels: str = "", black_white: tuple[float, float] | None = None
) -> Corrected:
    """Read ``images/`` and ``labels/`` (or ``masks/``): namesakes, a label image or a ``.geojson`` of outlines each.

    Args:
        folder: with both; what is 255 in a label image is not known.
        spec: of the model that is corrected.
        labels: which stored value is which class, see the recipe's `Data`.
        black_white: raw intensities that are black and white to a model that was trained on another type of pixels.

    Raises:
        InputError: something is missing, fits no partner, or cannot be trained on; files are named.
    """
    images = _subfolder(folder, "images")
    drawn = _subfolder(folder, "labels", "masks")
    names = [known.name for known in spec.classes]
    here = list_files(images)
    outlines = {path.name[: -len(".geojson")]: path for path in sorted(drawn.glob("*.geojson"))}
    others = any(name_of(path) != path.name for path in drawn.iterdir())
    there = list_files(drawn) if others or not outlines else {}
    if both := sorted(set(outlines) & set(there)):
        raise InputError(f"{outlines[both[0]]} and {there[both[0]]} are both of {both[0]}: keep one of them")
    found = match_names(set(here), there | outlines)
    if alone := sorted(set(here) - set(found)):
        raise InputError(f"{here[alone[0]]} has no labels of the same name in {drawn}")
    labels = labels or values_of(len(names))
    seen = Inspection("corrections", names)
    planes: list[MaskedPlane] = []
    for name in sorted(found):
        if found[name].suffix == ".geojson":
            planes.append(_outlined(name, here[name], found[name], names))
        else:
            opened, of_one = open_set(Data(str(here[name]), str(found[name]), labels), Path(), names, 0, "corrections")
            planes += opened
            seen.notes += of_one.notes
    normalizations = _normalizations(planes, spec, black_white)
    drawn_in = [_is_drawn(plane) for plane in planes]
    if blank := [plane.name for plane, known in zip(planes, drawn_in, strict=True) if not known]:
        seen.notes.append(f"nothing is drawn in {', '.join(blank)}: left out")
    planes, normalizations = list(compress(planes, drawn_in)), list(compress(normalizations, drawn_in))
    for plane in planes:
        mask = plane.mask.read(Box.whole(plane.shape))
        seen.count(mask)
        seen.see(plane.image[...])
    seen.planes = len(planes)
    seen.require(1)
    return Corrected(planes, normalizations, seen.digest, [seen.summary(), *dict.fromkeys(seen.notes)])


def values_of(classes: int) -> str:
    """The label map of values that are the classes, and 255 what is not known."""
    return ",".join([f"{k}:{k}" for k in range(classes)] + [f"{IGNORE}:ignore"])


def _subfolder(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(
        f"{folder} has no folder {' or '.join(names)}: corrections are images/NAME.tif and labels/NAME.tif"
    )


def _is_drawn(plane: MaskedPlane) -> bool:
    """Whether a pixel of it has a class."""
    return bool((plane.mask.read(Box.whole(plane.shape)) != IGNORE).any())


def _outlined(name: str, image_path: Path, outlines: Path, names: Sequence[str]) -> MaskedPlane:
    image = open_image(image_path, bar=None)
    depth, height, width = Volume(image).shape
    if depth != 1:
        raise InputError(f"{image_path} is a stack of {depth} planes: outlines are of one, save it alone")
    check_finite(str(image_path), Volume(image), 0, 1)
    return MaskedPlane(name, load_plane(Plane(image)), ArrayMask(read_outlines(outlines, (height, width), names)))


def _normalizations(
    planes: Sequence[MaskedPlane], spec: ModelSpec, black_white: tuple[float, float] | None
) -> list[Normalization]:
    """Constants: the model's, or the statistics of each micrograph, by all the crops that are of it.

    Raises:
        InputError: pixels are of another type than the model's, and nothing was said of them.
    """
    own = spec.normalization
    crops: dict[str, list[MaskedPlane]] = {}
    for plane in planes:
        crops.setdefault(_micrograph(plane), []).append(plane)
    found: dict[str, Normalization] = {}
    for name, those in crops.items():
        if own.kind == "constants" and black_white is None:
            check_images([plane.image for plane in those], own, spec.channels)
        values = [plane.image[...].reshape(Volume(plane.image).channels, -1) for plane in those]
        whole = open_image(np.concatenate(values, axis=1)[:, None], axes="cyx")
        known = msgspec.structs.replace(own, per="stack")
        mean, gain, _ = normalization_constants(Volume(whole), known, spec.channels, black_white)
        stated: dict[str, tuple[float, ...]] = {"mean": tuple(mean.tolist()), "std": tuple((1 / gain).tolist())}
        found[name] = msgspec.structs.replace(known, kind="constants", dtype=str(whole.dtype), **stated)
    return [found[_micrograph(plane)] for plane in planes]


def _micrograph(plane: MaskedPlane) -> str:
    """The micrograph that a crop is of; what is no crop of the plug-in's (a date may end a name, too) is its own."""
    if max(plane.shape) > _CROP_PX:
        return plane.name
    return f"{_PLACE.sub('', plane.name)} {plane.image.dtype} {Volume(plane.image).channels}"
