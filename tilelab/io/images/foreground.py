"""Where an image is empty: resin, black borders; found from a small view of it, so that no network runs there.

A cell of 64 x 64 pixels is empty if it is constant, or if nothing but noise is in it: averaging 8 x 8 pixels makes
white noise 8 times smaller, and structure hardly.  In tissue, alloys and powders what is left is 3 to 10 times what
noise would leave, in resin and support films 1 to 1.5 times.  It must also be much less than in cells with structure:
an image that is noise all over is left as it is.  Of empty cells only squares of 512 pixels count, and what lies within
128 pixels of anything else is kept.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from tilelab.arrays import Array, Bool, Float32
from tilelab.errors import InputError
from tilelab.geometry import Box
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume

_CELL, _BLOCK = 64, 8  # pixels, as they are seen, of a cell and of what is averaged in it
_SQUARE, _MARGIN = 512, 128  # pixels of the image
_NOISE = 1.5  # times what white noise leaves of itself
_FAINT = 0.35  # of what is left in cells with structure
_CONSTANT = 1e-3
_STRIP_BYTES = 1 << 26
_ENOUGH, _MOST = 1 << 29, 1 << 32  # pixels: a finer level than this has is not read, or more are not read at all


class Foreground(Image):
    """A mask that is 0 where an image is empty, 1 elsewhere; see `find_foreground`.

    Attributes:
        empty: cells ``(z, y, x)`` that are left out; those at the end go on to the edge.
        cell: pixels of a cell on y and x.
        share: of the image that is left out.
    """

    axes = "zyx"
    dtype = np.dtype(np.uint8)

    def __init__(self, uri: str, shape: tuple[int, ...], empty: Bool, cell: int) -> None:
        self.uri = f"the foreground of {uri}"
        self.shape, self.empty, self.cell = shape, empty, cell
        self.chunks = (1, min(cell, shape[1]), min(cell, shape[2]))
        rows, columns = (np.bincount(self._cells(axis, 0, shape[axis]), minlength=empty.shape[axis]) for axis in (1, 2))
        self.share = float(np.einsum("zyx,y,x->", empty.astype(np.float64), rows, columns)) / math.prod(shape)

    def _cells(self, axis: int, start: int, stop: int) -> Array:
        """The cell of each pixel."""
        index: Array = np.minimum(np.arange(start, stop) // self.cell, self.empty.shape[axis] - 1)
        return index

    def read(self, box: Box) -> Array:
        slices = self.empty[box.start[0] : box.stop[0]]
        rows, columns = (self._cells(axis, box.start[axis], box.stop[axis]) for axis in (1, 2))
        wanted: Array = (~slices[:, rows][:, :, columns]).astype(np.uint8)
        return wanted

    def fingerprint(self) -> dict[str, str]:
        packed = np.packbits(self.empty).tobytes()
        return {"empty": hashlib.sha256(f"{self.empty.shape} {self.cell}".encode() + packed).hexdigest()[:32]}

    def __str__(self) -> str:
        if not self.share:
            return "--skip-empty leaves nothing out: no part of the image is empty"
        return f"--skip-empty leaves out {self.share:.1%} of the image, which is empty: labels there are 0"

    @property
    def warnings(self) -> tuple[str, ...]:  # type: ignore[override]
        """What is left out."""
        return (str(self),)


class Both(Image):
    """Where two masks are not 0."""

    axes = "zyx"
    dtype = np.dtype(np.uint8)

    def __init__(self, one: Volume, other: Volume) -> None:
        self._masks = one, other
        self.uri, self.shape, self.chunks = one.image.uri, one.shape, one.chunks
        self.assumptions, self.warnings = one.image.assumptions, other.image.warnings

    def read(self, box: Box) -> Array:
        one, other = (mask.read(box)[0] != 0 for mask in self._masks)
        wanted: Array = (one & other).astype(np.uint8)
        return wanted

    def fingerprint(self) -> dict[str, str]:
        one, other = (mask.image.fingerprint() for mask in self._masks)
        return one | other

    def close(self) -> None:
        for mask in self._masks:
            mask.image.close()


def find_foreground(volume: Volume) -> Foreground:
    """Look where an image is empty: at the image, or where it is large at a coarser level of it.

    Raises:
        InputError: it cannot be read, or is too large to be looked at and has no coarser level.
    """
    seen, factor = volume, 1
    for reduced in (2, 4):
        if math.prod(seen.shape) <= _ENOUGH or volume.image.coarser is None:
            break
        if (found := volume.image.coarser(reduced)) is not None:
            if seen is not volume:
                seen.image.close()
            seen, factor = Volume(found), reduced
    try:
        if math.prod(seen.shape) > _MOST:
            raise InputError(
                f"{volume.image.uri} is too large for --skip-empty ({math.prod(seen.shape) / 1e9:.0f} gigapixels would "
                "be read): make resolution levels with `tilelab convert`, or name a --mask"
            )
        quiet = np.logical_and.reduce([_find_quiet(seen, channel) for channel in range(volume.channels)])
    finally:
        if seen is not volume:
            seen.image.close()
    cell = _CELL * factor
    empty = np.stack([keep_large(plane, max(4, _SQUARE // cell), max(1, _MARGIN // cell)) for plane in quiet])
    return Foreground(volume.image.uri, volume.shape, empty, cell)


def _find_quiet(seen: Volume, channel: int) -> Bool:
    """Whole cells ``(z, y, x)`` in which there is nothing but noise; at least one each way."""
    left, noise = np.concatenate([_look(seen, channel, z) for z in range(seen.shape[0])], axis=1)
    known = np.isfinite(left) & np.isfinite(noise)
    rows, columns = (max(1, n // _CELL) for n in seen.shape[1:])
    whole = (slice(None), slice(rows), slice(columns))
    structured = left[whole][known[whole] & (left[whole] > _NOISE * noise[whole] / _BLOCK)]
    if not structured.size:
        return np.zeros((len(left), rows, columns), np.bool_)  # nothing to tell it from
    typical = np.median(structured)
    alike = (left <= _NOISE * noise / _BLOCK) & (left < _FAINT * typical)
    quiet: Bool = known & (alike | (left <= _CONSTANT * typical))
    quiet[:, rows - 1] &= quiet[:, rows:].all(axis=1)  # the last go on to the edge
    quiet[:, :, columns - 1] &= quiet[:, :, columns:].all(axis=2)
    return quiet[whole]


def _look(seen: Volume, channel: int, z: int) -> Float32:
    """What averaging leaves in each cell of a slice, and the spread inside of the averaged blocks, ``(2, 1, y, x)``.

    Where cells do not fill the slice, another row and column of them ends with it.
    """
    _, height, width = seen.shape
    rows, columns = height // _CELL, width // _CELL
    if not rows or not columns:
        return np.full((2, 1, max(1, rows), max(1, columns)), np.inf, np.float32)
    strip_rows = max(1, min(_STRIP_BYTES // (width * 4 * _CELL), -(-max(seen.chunks[1], 512) // _CELL)))
    strips = [(row * _CELL, min(rows, row + strip_rows) * _CELL) for row in range(0, rows, strip_rows)]
    strips += [(height - _CELL, height)] if height % _CELL else []
    found = []
    for start, stop in strips:
        strip = seen.read(Box((z, start, 0), (z + 1, stop, width)))[channel, 0]
        parts = [strip[:, : columns * _CELL], *([strip[:, -_CELL:]] if width % _CELL else [])]
        found.append(_of_cells(np.concatenate(parts, axis=1, dtype=np.float32)))
    return np.concatenate(found, axis=1)[:, None]


def _of_cells(strip: Float32) -> Float32:
    """See `_look`; the cells' averages are taken about a plane, so that shading is nothing."""
    n = _CELL // _BLOCK
    y, x = (extent // _CELL for extent in strip.shape)
    blocks = strip.reshape(y, n, _BLOCK, x, n, _BLOCK)
    ramp = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
    norm = np.float32(np.square(ramp).sum() * n)
    with np.errstate(invalid="ignore"):
        means = blocks.mean(axis=(2, 5), keepdims=True)
        inside = np.square(blocks - means).mean(axis=(1, 2, 4, 5)) * np.float32(_BLOCK**2 / (_BLOCK**2 - 1))
        values = means[:, :, 0, :, :, 0].transpose(0, 2, 1, 3)
        rest = values - values.mean(axis=(2, 3), keepdims=True)
        down = (rest * ramp[:, None]).sum(axis=(2, 3)) / norm
        across = (rest * ramp).sum(axis=(2, 3)) / norm
        left = (np.square(rest).sum(axis=(2, 3)) - norm * (down**2 + across**2)) / (n * n - 3)
        found: Float32 = np.sqrt(np.maximum(np.stack([left, inside]), 0), dtype=np.float32)
    return found


def keep_large(quiet: Bool, square: int, margin: int) -> Bool:
    """Of quiet cells ``(y, x)`` those in large squares, and not beside others; beyond the image all is quiet."""
    if min(quiet.shape) < square:
        return np.zeros_like(quiet)
    squares = _count(quiet, square) == square**2
    large = _count(np.pad(squares, square - 1), square) > 0
    side = 2 * margin + 1
    kept: Bool = _count(np.pad(large, margin, constant_values=True), side) == side**2
    return kept


def _count(cells: Bool, side: int) -> Array:
    """How many are set in each square of so many on a side, ``(y - side + 1, x - side + 1)``."""
    total = np.pad(cells, ((1, 0), (1, 0))).astype(np.int64).cumsum(0).cumsum(1)
    found: Array = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
    return found
