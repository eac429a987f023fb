"""A sheet of places: each as it is, and with the segmentation over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume
from tilelab.io.results.drawing import frame, paint, visible_colors
from tilelab.io.results.result import Result
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import replacing

_SIDE = 192  # pixels of a place on the sheet
_GAP = 6
_ACROSS = 4  # pairs
_CONTRAST = (0.5, 99.5)  # percentiles that become black and white
_PAPER = (255, 255, 255)


def write_sheet(image: Image, result: Result, boxes: Sequence[Box], out: Path) -> None:
    """Draw places of a result, read one by one, four pairs a row.

    Args:
        image: what was segmented; its first channel is shown.
        result: with labels.
        boxes: on (z, y, x).
        out: the PNG, replaced if it exists.

    Raises:
        InputError: the sizes differ, or there are no labels.
        OutputError: the disk is full or unwritable.
    """
    volume, info = Volume(image), result.info
    if volume.shape != info.layout.shape:
        raise InputError(f"{image.uri} has {volume.shape} pixels on (z, y, x), the result {info.layout.shape}")
    if not result.labels:
        raise InputError(f"{info.name} has no labels to show: infer without --no-labels")
    colors = visible_colors([known.color for known in info.classes])
    across = min(_ACROSS, len(boxes))
    cell = (2 * _SIDE + _GAP, _SIDE)
    rows = math.ceil(len(boxes) / max(1, across))
    size = (across * (cell[0] + 2 * _GAP) - 2 * _GAP, rows * (cell[1] + 2 * _GAP) - 2 * _GAP)
    sheet = Picture.new("RGB", size, _PAPER)
    present: set[int] = set()
    for i, box in enumerate(boxes):
        grey = _grey(volume, box)
        labels = result.labels[0].read(box if info.axes == "zyx" else Box(box.start[1:], box.stop[1:]))
        labels = labels.reshape(box.shape[1:])
        present.update(np.unique(labels).tolist())
        painted = grey.copy()
        doubled = Picture.fromarray(labels).resize((2 * grey.width, 2 * grey.height), Picture.Resampling.NEAREST)
        paint(painted, np.asarray(doubled), colors)
        left, top = (i % across) * (cell[0] + 2 * _GAP), (i // across) * (cell[1] + 2 * _GAP)
        sheet.paste(grey, (left, top))
        sheet.paste(painted, (left + _SIDE + _GAP, top))
    names = [(info.classes[k].name, colors[k]) for k in sorted(present - {0})]
    try:
        with replacing(out) as unfinished:
            frame(sheet, names, f"{info.name}  \N{MIDDLE DOT}  {len(boxes)} places").save(unfinished, "PNG")
    except OSError as error:
        raise output_error(out, error) from error


def _grey(volume: Volume, box: Box) -> Picture.Image:
    """A place in grey, RGB, its longer side `_SIDE`."""
    values = np.nan_to_num(volume.read(box)[0, 0].astype(np.float32), posinf=0, neginf=0)
    low, high = np.percentile(values, _CONTRAST)
    shown = np.clip((values - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    scale = _SIDE / max(shown.shape)
    size = (max(1, round(shown.shape[1] * scale)), max(1, round(shown.shape[0] * scale)))
    return Picture.fromarray(shown).resize(size, Picture.Resampling.BICUBIC).convert("RGB")
