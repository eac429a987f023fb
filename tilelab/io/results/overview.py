"""A picture to look at: the image in grey, the segmentation over it, the classes' names and a scale bar below.

The picture is drawn at twice its size and then reduced, which smooths every edge.  Memory depends on the picture alone:
the image is read and averaged in strips, the segmentation from the level that is just fine enough.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image as Picture

from tilelab.arrays import Float32, UInt8
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.foreground import Foreground
from tilelab.io.images.image import Image
from tilelab.io.results.drawing import draw_scale_bar, frame, paint, visible_colors
from tilelab.io.results.level_image import LevelImage
from tilelab.io.results.result import Result, read_result
from tilelab.io.storage.place import Address
from tilelab.io.zarr.sharded_array import output_error
from tilelab.machine.disk import replacing

JPEG_SUFFIXES = (".jpg", ".jpeg")
_STRIP_BYTES = 2**23
_LEAST_SIDE = 1024
"""A smaller image is enlarged, so that contours and words stay fine."""
_CONTRAST = (0.3, 99.7)
"""Percentiles of the image that become black and white."""


def write_overview(image: Image, result: Address, out: str | Path, *, max_side: int = 1600) -> Path:
    """Draw a result over its image.

    Of a stack the middle slice is drawn.  All of that slice is read once: for an image that is itself a pyramid, hand
    in a coarse level, any that is at least `max_side` wide or high looks the same.

    Args:
        image: what was segmented; its first channel is shown.
        result: the OME-Zarr folder.
        out: the PNG, or by its name the JPEG, replaced if it exists; it appears whole or not at all.
        max_side: pixels of the drawn image's longer side.

    Returns:
        `out`.

    Raises:
        InputError: `result` is not a result, has neither labels nor probabilities, or a file is corrupt.
        OutputError: the disk is full or unwritable.
    """
    opened, path = read_result(result), Path(out)
    shape = opened.info.layout.shape
    size = _panel_size(shape[2], shape[1], max_side)
    z = shape[0] // 2
    panel = _read_grey(image, (z + 0.5) / shape[0], size).convert("RGB")
    labels = _read_labels(opened, z, (2 * size[0], 2 * size[1]))
    colors = visible_colors([known.color for known in opened.info.classes])
    paint(panel, labels, colors)
    nm = opened.info.pixel_size_nm
    if nm is not None:
        draw_scale_bar(panel, nm[-1] * shape[2] / size[0])
    present = [i for i in range(1, len(colors)) if bool((labels == i).any())]
    facts = [opened.info.name, f"{shape[2]} x {shape[1]} px"]
    facts += [f"slice {z} of {shape[0]}"] if shape[0] > 1 else []
    facts += [f"{nm[-1]:g} nm/px"] if nm is not None else []
    names = [(opened.info.classes[i].name, colors[i]) for i in present]
    picture = frame(panel, names, "  \N{MIDDLE DOT}  ".join(facts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            if path.suffix.lower() in JPEG_SUFFIXES:
                picture.save(unfinished, "JPEG", quality=90)
            else:
                picture.save(unfinished, "PNG")
    except OSError as error:
        raise output_error(path, error) from error
    return path


def write_thumbnail(image: Image, result: Address, out: Path, *, max_side: int = 320) -> None:
    """Draw a result over its image, small and bare, as JPEG; see `write_overview`.

    Raises:
        InputError: `result` is not a result, has neither labels nor probabilities, or a file is corrupt.
        OutputError: the disk is full or unwritable.
    """
    opened = read_result(result)
    depth, height, width = opened.info.layout.shape
    scale = min(1.0, max_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    panel = _read_grey(image, (depth // 2 + 0.5) / depth, size).convert("RGB")
    colors = visible_colors([known.color for known in opened.info.classes])
    paint(panel, _read_labels(opened, depth // 2, (2 * size[0], 2 * size[1])), colors)
    with replacing(out) as unfinished:
        panel.save(unfinished, "JPEG", quality=78)


@dataclass(frozen=True)
class Drawn:
    """The parts of a picture, for a page.

    Attributes:
        plain, painted: the image alone and with the classes over it, JPEG.
        names: of all classes; `colors` as ``#rrggbb``.
        areas: share of each class that occurs in the whole result, by index; empty without labels.
        brightness: for each of them that is in the picture, the share of its pixels in equal steps of brightness.
        contrast: intensities that are black and white.
        slice, depth: which slice of how many is drawn.
    """

    plain: bytes
    painted: bytes
    names: tuple[str, ...]
    colors: tuple[str, ...]
    areas: dict[int, float]
    brightness: dict[int, list[float]]
    contrast: tuple[float, float]
    slice: int
    depth: int

    def color(self, index: int) -> str:
        """Of a class; the background, which is not painted, is plain."""
        return self.colors[index] if index else "var(--plain)"


def draw_layers(image: Image, result: Address, *, max_side: int = 1400) -> Drawn:
    """Draw an image and a result over it, and count.

    Raises:
        InputError: `result` is not a result, has neither labels nor probabilities, or a file is corrupt.
    """
    opened = read_result(result)
    depth, height, width = opened.info.layout.shape
    size = _panel_size(width, height, max_side)
    grey, contrast = _grey_panel(image, (depth // 2 + 0.5) / depth, size)
    labels = _read_labels(opened, depth // 2, (2 * size[0], 2 * size[1]))
    colors = visible_colors([known.color for known in opened.info.classes])
    panels = [grey.convert("RGB"), grey.convert("RGB")]
    paint(panels[1], labels, colors)
    if (nm := opened.info.pixel_size_nm) is not None:
        for panel in panels:
            draw_scale_bar(panel, nm[-1] * width / size[0])
    files = [io.BytesIO(), io.BytesIO()]
    for panel, file in zip(panels, files, strict=True):
        panel.save(file, "JPEG", quality=85)
    brightness = {}
    pixels, classes = np.asarray(grey).ravel(), labels[::2, ::2].ravel()
    inside = (pixels > 0) & (pixels < 255)  # beyond lie those that were clipped
    for i in np.unique(classes[inside]).tolist():
        counts = np.bincount(pixels[inside & (classes == i)] // 4, minlength=64)
        smooth = np.convolve(counts, [0.25, 0.5, 0.25], "same")
        brightness[i] = [float(v) for v in smooth / max(1.0, smooth.sum())]
    return Drawn(
        plain=files[0].getvalue(),
        painted=files[1].getvalue(),
        names=tuple(known.name for known in opened.info.classes),
        colors=tuple(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colors),
        areas=_count_classes(opened),
        brightness=brightness,
        contrast=contrast,
        slice=depth // 2,
        depth=depth,
    )


def _count_classes(result: Result) -> dict[int, float]:
    """The share of the pixels of each class that occurs; a chunk is read at a time."""
    if not result.labels:
        return {}
    level, counts = result.labels[0], np.zeros(256, np.int64)
    for corner in np.ndindex(*(-(-n // c) for n, c in zip(level.shape, level.chunks, strict=True))):
        start = tuple(i * c for i, c in zip(corner, level.chunks, strict=True))
        stop = tuple(min(n, at + c) for n, at, c in zip(level.shape, start, level.chunks, strict=True))
        counts += np.bincount(level.read(Box(start, stop)).ravel(), minlength=256)
    return {i: int(n) / int(counts.sum()) for i, n in enumerate(counts) if n and i < len(result.info.classes)}


def write_left_out(image: Image, foreground: Foreground | None, out: str | Path, *, max_side: int = 1600) -> None:
    """Draw an image, and over it where it is empty; of a stack the middle slice.

    Raises:
        InputError: the image cannot be read.
        OutputError: the disk is full or unwritable.
    """
    extent = dict(zip(image.axes, image.shape, strict=True))
    depth, height, width = extent.get("z", 1), extent["y"], extent["x"]
    size = _panel_size(width, height, max_side)
    panel = _read_grey(image, (depth // 2 + 0.5) / depth, size).convert("RGB")
    facts = [Path(image.uri).name, f"{width} x {height} px"]
    facts += [f"slice {depth // 2} of {depth}"] if depth > 1 else []
    names = []
    if foreground is not None:
        (color,) = visible_colors(["#f5a623"])
        empty = foreground.empty[depth // 2]
        index = [
            np.minimum(((np.arange(2 * n) + 0.5) * whole / (2 * n)).astype(np.int64) // foreground.cell, cells - 1)
            for n, whole, cells in zip(size[::-1], (height, width), empty.shape, strict=True)
        ]
        paint(panel, empty[np.ix_(*index)].astype(np.uint8), [color, color])
        names.append((f"left out, {foreground.share:.1%}", color))
    picture = frame(panel, names, "  \N{MIDDLE DOT}  ".join(facts))
    with replacing(Path(out)) as unfinished:
        picture.save(unfinished, "PNG")


def _panel_size(width: int, height: int, max_side: int) -> tuple[int, int]:
    """Pixels (width, height) of the drawn image."""
    longer = max(width, height)
    scale = min(max_side, max(longer, _LEAST_SIDE)) / longer
    return max(1, round(width * scale)), max(1, round(height * scale))


def _read_grey(image: Image, depth: float, size: tuple[int, int]) -> Picture.Image:
    """The slice at relative `depth`, averaged down to `size` and stretched in contrast."""
    return _grey_panel(image, depth, size)[0]


def _grey_panel(image: Image, depth: float, size: tuple[int, int]) -> tuple[Picture.Image, tuple[float, float]]:
    """`_read_grey`, and the intensities that are black and white."""
    extent = dict(zip(image.axes, image.shape, strict=True))
    height, width = extent["y"], extent["x"]
    factor = max(1, min(height // size[1], width // size[0]))
    rows = _strip_rows(image, factor, width)
    parts = []
    for y in range(0, height, rows):
        at = {
            "c": (0, 1),
            "z": (int(depth * extent.get("z", 1)),) * 2,
            "y": (y, min(height, y + rows)),
            "x": (0, width),
        }
        at["z"] = (at["z"][0], at["z"][0] + 1)
        box = Box(tuple(at[a][0] for a in image.axes), tuple(at[a][1] for a in image.axes))
        parts.append(_average(image.read(box).reshape(box.shape[-2:]), factor))
    grey = np.nan_to_num(np.concatenate(parts), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = np.percentile(grey, _CONTRAST)
    stretched = (grey - low) * (255 / (high - low)) if high > low else np.full_like(grey, 128)
    picture = Picture.fromarray(np.clip(np.rint(stretched), 0, 255).astype(np.uint8))
    return picture.resize(size, Picture.Resampling.LANCZOS), (float(low), float(high))


def _strip_rows(image: Image, factor: int, width: int) -> int:
    """Rows to read at once: a multiple of `factor`, and of the chunks where that is not too much."""
    row_bytes = width * image.dtype.itemsize
    step = math.lcm(factor, image.chunks[image.axes.index("y")])
    if step * row_bytes > 2 * _STRIP_BYTES:
        step = factor
    return step * max(1, _STRIP_BYTES // (step * row_bytes))


def _average(block: npt.NDArray[np.generic], factor: int) -> Float32:
    """Mean of `factor` x `factor` blocks, float32; the last ones are filled up with the edge."""
    if factor == 1:
        return block.astype(np.float32)
    missing = [(0, -n % factor) for n in block.shape]
    whole = np.pad(block, missing, mode="edge") if any(m[1] for m in missing) else block
    y, x = (n // factor for n in whole.shape)
    mean: Float32 = whole.reshape(y, factor, x, factor).mean(axis=(1, 3), dtype=np.float32)
    return mean


def _read_labels(result: Result, z: int, size: tuple[int, int]) -> UInt8:
    """The classes of a slice drawn at `size` (width, height) with smooth edges, uint8 ``(height, width)``."""
    levels = result.labels or result.probabilities
    if not levels:
        raise InputError(f"{result.path} has neither labels nor probabilities to draw")
    number = max(
        (i for i, level in enumerate(levels) if level.shape[-2] >= size[1] and level.shape[-1] >= size[0]), default=0
    )
    level = levels[number]
    labels = _read_slice(level, z // result.info.layout.scale(number)[0])
    if not result.labels:  # the likeliest class, where one is likelier than not
        index = np.array(result.info.probabilities, np.uint8)[labels.argmax(axis=0)]
        labels = np.where(labels.max(axis=0) >= 128, index, np.uint8(0))[np.newaxis]
    plane = labels[0]
    kind = Picture.Resampling.BOX if plane.shape[1] >= size[0] else Picture.Resampling.BICUBIC
    best = np.zeros((size[1], size[0]), np.uint8)
    most = np.zeros_like(best)
    for value in range(len(result.info.classes)):
        mask = plane == value
        if not mask.any():
            continue
        share = np.asarray(Picture.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).resize(size, kind))
        wins = share > most if value else share >= 128
        best[wins], most[wins] = value, share[wins]
    return best


def _read_slice(level: LevelImage, z: int) -> UInt8:
    """One slice of a level with all its channels, uint8 ``(channels, y, x)``."""
    y, x = level.shape[-2:]
    extent = dict(zip(level.axes, level.shape, strict=True))
    start = {"c": 0, "z": min(z, extent.get("z", 1) - 1), "y": 0, "x": 0}
    stop = {"c": extent.get("c", 1), "z": start["z"] + 1, "y": y, "x": x}
    found: UInt8 = level.read(Box(tuple(start[a] for a in level.axes), tuple(stop[a] for a in level.axes)))
    return found.reshape(stop["c"], y, x)
