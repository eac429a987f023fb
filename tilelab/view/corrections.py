"""Corrections that were painted, as pairs of crops: the micrograph and the labels as they ought to be."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import tifffile

from tilelab.arrays import Array
from tilelab.errors import InputError, OutputError
from tilelab.machine.disk import replacing

CROP_PX = 256


def find_corrected(before: Array, after: Array, crop: int = CROP_PX) -> list[tuple[int, int, int]]:
    """Corners (z, y, x) of crops that together hold every pixel that differs; labels ``(z, y, x)``.

    Crops lie on a grid, moved so that they end with the image.
    """
    if before.shape != after.shape:
        raise InputError(f"labels of shape {after.shape} were corrected, they were {before.shape}")
    corners: set[tuple[int, int, int]] = set()
    height, width = after.shape[1:]
    for z in range(len(after)):
        ys, xs = np.nonzero(before[z] != after[z])
        for y, x in set(zip((ys // crop).tolist(), (xs // crop).tolist(), strict=True)):
            corners.add((z, max(0, min(y * crop, height - crop)), max(0, min(x * crop, width - crop))))
    return sorted(corners)


def keep_corrections(
    folder: str | Path, name: str, image: Array, before: Array, after: Array, *, crop: int = CROP_PX
) -> list[Path]:
    """Write ``images/NAME_Z_Y_X.tif`` and ``labels/NAME_Z_Y_X.tif`` for every place that was corrected.

    Args:
        folder: made if missing; crops of the same place are replaced.
        name: of the image; where crops of that name are of another image, a number is put behind it.
        image: ``(z, y, x)`` or ``(y, x)``.
        before, after: class indices of the same shape, as they were and as they ought to be.
        crop: pixels per side.

    Returns:
        The images that were written; empty when nothing differs.

    Raises:
        InputError: shapes differ.
        OutputError: the folder cannot be written.
    """
    raw, old, new = (np.asarray(a)[np.newaxis] if np.ndim(a) == 2 else np.asarray(a) for a in (image, before, after))
    if raw.shape != new.shape:
        raise InputError(f"the image is {raw.shape}, the labels {new.shape}: give the layer that was segmented")
    corners = find_corrected(old, new, crop)
    if not corners:
        return []
    name = _own_name(Path(folder) / "images", name, raw)
    written = []
    for z, y, x in corners:
        at = (z, slice(y, y + crop), slice(x, x + crop))
        for kind, pixels in (("images", raw[at]), ("labels", new[at].astype(np.uint8))):
            path = Path(folder) / kind / f"{name}_{z}_{y}_{x}.tif"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as unfinished:
                    tifffile.imwrite(unfinished, pixels)
            except OSError as error:
                raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
        written.append(Path(folder) / "images" / f"{name}_{z}_{y}_{x}.tif")
    return written


def _own_name(folder: Path, name: str, image: Array) -> str:
    """`name`, or the first of ``NAME-2``, ``NAME-3``, ... of which no crop in `folder` is of another image."""
    ours = re.compile(r"_(\d+)_(\d+)_(\d+)\.tif")
    crops = sorted(folder.iterdir()) if folder.is_dir() else []
    for own in (name, *(f"{name}-{number}" for number in range(2, len(crops) + 3))):
        places = ((path, ours.fullmatch(path.name.removeprefix(own))) for path in crops if path.name.startswith(own))
        if all(_is_of(path, image, *map(int, place.groups())) for path, place in places if place):
            break
    return own


def _is_of(path: Path, image: Array, z: int, y: int, x: int) -> bool:
    """Whether a file holds the pixels of an image ``(z, y, x)`` from a place on."""
    try:
        kept = tifffile.imread(path)
    except (OSError, ValueError):
        return False
    if kept.ndim != 2 or z >= len(image):
        return False
    return bool(np.array_equal(kept, image[z, y : y + kept.shape[0], x : x + kept.shape[1]], equal_nan=True))
