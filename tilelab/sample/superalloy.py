"""Draws superalloy-like electron micrographs with known truth, of any size, for demos, tests and benchmarks.

The pictures imitate the secondary-electron micrographs of nickel superalloys in NASA's set "Super-1": a bright matrix
(class 0), large lobed secondary precipitates (1) and swarms of tiny tertiary precipitates (2).  Sizes, contrasts, the
profile across an outline and the spectrum of the noise were measured on that set; no pixel of it is in here.

Every pixel is a pure function of seed and position: positions are hashed, nothing has a state.  Drawing happens in
fixed blocks, so a region can be drawn alone and is the same whatever is drawn around it.

    lattice of lobes --grouped by random seeds--> bodies --smooth minimum--> depth: about the signed distance (px) to
    the nearest body's outline, negative inside --> truth (depth < 0) and grey levels (profiles over depth)
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from tilelab.arrays import Array, Float64, Int64, UInt8
from tilelab.geometry import Box, boxes
from tilelab.machine.cpu import core_count
from tilelab.sample.noise import cells, hash_cells, smooth_noise, smooth_noise_at, uniform, white_noise
from tilelab.spec import ClassInfo

CLASSES = (
    ClassInfo("matrix", "#000000"),
    ClassInfo("secondary precipitate", "#3b7dd8"),
    ClassInfo("tertiary precipitate", "#f5a623"),
)
"""The classes that the truth's values are."""

BLOCK = 256
"""Pixels per side of what is drawn at once."""

# Bodies, in pixels.
_LOBE_PITCH = 54.0
_BODY_PITCH = 132.0
_REACH = 28.0  # how far beyond its outline a lobe is felt
_MELT = 5.0  # how softly the lobes of one body melt into each other
_CHANNEL = 11.0  # least matrix between two bodies
_ROUND = 2.5  # how softly a body's side turns into a channel
_NOTCH = (3.0, 6.0)  # half the width of a notch at its two ends

# Specks, in pixels.
_SPECK_PITCH = 15.0
_SPECK_CLEARANCE = 9.0  # matrix between a speck and the nearest body

# Grey levels above the middle of a body over the depth (px): a dark seam inside, a bright rim outside; and what the
# slanted view adds on one side of a body and takes on the other.
_DEPTH = (-30, -24, -20, -16, -12, -10, -8, -6, -4, -2, 0, 2, 3, 5, 7, 9, 11, 13, 15, 20, 30)
_SEAM = (0.8, 0.1, -0.9, -2.2, -4.1, -5.2, -6.6, -7.7, -8.2, -5.7)
_RIM = (4.6, 14.7, 15.7, 15, 13, 10.5, 8.6, 7.2, 6.2, 5, 4.5)
_SLANT_DEPTH = (-20, -10, -5, -1, 5, 12, 24)
_SLANT = (0, 3.5, 8.5, 9.5, 9, 4.5, 0)
_SPECK_LEVEL = -27.0

# Noise: standard deviations in grey levels; the grain's components by their extent (y, x) in pixels.
_WHITE = 4.0
_GRAIN = (((6, 5), 2.3), ((20, 11), 1.5), ((70, 26), 0.8), ((300, 400), 1.2))


class _Lobes(NamedTuple):
    """Rounded parts of bodies, one row each, in raster order of their lattice cells; float64 and int64 ``(n,)``."""

    y: Float64
    x: Float64
    radius: Float64
    stretch: Float64
    shear: Float64
    """Outline: (1 - stretch) y^2 + (1 + stretch) x^2 + 2 shear x y = radius^2; both are at most a quarter."""
    body: Int64
    notch: Float64
    """Direction (radians), outward, of a notch cut into the lobe; NaN for none."""

    def take(self, rows: Array) -> _Lobes:
        """Some of the lobes: `rows` are indices or a mask."""
        floats = (self.y[rows], self.x[rows], self.radius[rows], self.stretch[rows], self.shear[rows])
        return _Lobes(*floats, self.body[rows], self.notch[rows])


def draw_superalloy(shape: tuple[int, int], seed: int = 0, *, box: Box | None = None) -> tuple[UInt8, UInt8]:
    """Draw a micrograph, or one region of it.

    Args:
        shape: rows and columns of the whole micrograph; only clips, so a larger one begins with the same pixels.
        seed: chooses the micrograph, 0 <= seed < 2**32; odd ones are brighter and seen from the other side.
        box: the region to draw; everything when None.

    Returns:
        image: uint8, shape of the region.
        truth: uint8, same shape, indices into `CLASSES`.

    Raises:
        ValueError: a negative or too large seed, or a box that leaves the image.
    """
    whole = Box.whole(shape)
    box = whole if box is None else box
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}: give one from 0 to 2**32 - 1")
    if box.intersect(whole) != box:
        raise ValueError(f"box {box} leaves the image of {shape[0]} x {shape[1]} pixels")
    image, truth = np.empty(box.shape, np.uint8), np.empty(box.shape, np.uint8)
    first = tuple(a // BLOCK for a in box.start)
    reach = tuple(-(-b // BLOCK) - a for a, b in zip(first, box.stop, strict=True))

    def paste(at: Box) -> None:
        index = (first[0] + at.start[0], first[1] + at.start[1])
        corner = (index[0] * BLOCK, index[1] * BLOCK)
        part = Box(corner, (corner[0] + BLOCK, corner[1] + BLOCK)).intersect(box)
        there = tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, box.start, strict=True))
        here = tuple(slice(a - o, b - o) for a, b, o in zip(part.start, part.stop, corner, strict=True))
        drawn = _draw_block(seed, index)
        image[there], truth[there] = drawn[0][here], drawn[1][here]

    with ThreadPoolExecutor(min(8, core_count())) as pool:
        list(pool.map(paste, boxes(reach, (1, 1))))
    return image, truth


def _draw_block(seed: int, index: tuple[int, int]) -> tuple[UInt8, UInt8]:
    """One block of `BLOCK` x `BLOCK` pixels: image and truth, uint8."""
    rim = 1  # for the gradient
    y = (np.arange(-rim, BLOCK + rim, dtype=np.float64) + index[0] * BLOCK)[:, None]
    x = (np.arange(-rim, BLOCK + rim, dtype=np.float64) + index[1] * BLOCK)[None, :]
    lobes = _place_lobes(seed, Box((int(y[0, 0]), int(x[0, 0])), (int(y[-1, 0]) + 1, int(x[0, -1]) + 1)))
    depth = _depth(lobes, y, x)
    slant = np.gradient(depth, axis=1) * (1 - 2 * (seed % 2))
    depth, slant, y, x = (a[rim:-rim, rim:-rim] for a in (depth, slant, *np.broadcast_arrays(y, x)))
    y, x = y[:, :1], x[:1]
    level = np.interp(depth, _DEPTH, _SEAM + _RIM) + slant * np.interp(depth, _SLANT_DEPTH, _SLANT)
    truth = (depth < 0).astype(np.uint8)
    _add_specks(seed, lobes, y, x, level, truth)
    _add_scratches(seed, y, x, level)
    for stream, (extent, sigma) in enumerate(_GRAIN):
        level += sigma * smooth_noise(seed, 20 + stream, y, x, extent)
    level += _WHITE * white_noise(seed, y, x)
    level += 116.0 + 62.0 * (seed % 2)
    return np.clip(np.rint(level), 0, 255).astype(np.uint8), truth


def _place_lobes(seed: int, box: Box) -> _Lobes:
    """The lobes that are felt in `box`, and the bodies they belong to."""
    cy, cx = cells(box, _LOBE_PITCH, margin=2 * _LOBE_PITCH + _REACH)
    shape, kind = hash_cells(seed, 1, cy, cx), hash_cells(seed, 2, cy, cx)
    y = (cy + 0.5 + 0.85 * (uniform(shape, 0) - 0.5)) * _LOBE_PITCH
    x = (cx + 0.5 + 0.85 * (uniform(shape, 1) - 0.5)) * _LOBE_PITCH
    # A lobe belongs to the body whose seed is nearest, where some bodies reach further than others.
    least = np.full(y.shape, np.inf)
    body_y, body_x, outward = np.zeros(y.shape, np.int64), np.zeros(y.shape, np.int64), np.zeros(y.shape)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            by = np.floor(y / _BODY_PITCH).astype(np.int64) + dy
            bx = np.floor(x / _BODY_PITCH).astype(np.int64) + dx
            at = hash_cells(seed, 3, by, bx)
            to_y, to_x = (by + uniform(at, 0)) * _BODY_PITCH - y, (bx + uniform(at, 1)) * _BODY_PITCH - x
            away = np.hypot(to_y, to_x) / (0.35 + 1.1 * uniform(at, 2) ** 1.5)
            outward = np.where(away < least, np.arctan2(-to_y, -to_x), outward)
            body_y, body_x = np.where(away < least, by, body_y), np.where(away < least, bx, body_x)
            least = np.minimum(away, least)
    large = uniform(hash_cells(seed, 4, body_y, body_x), 0)
    radius = 11.5 + 26.0 * uniform(shape, 2) ** 0.8 + 15.0 * large * uniform(kind, 0)
    form = hash_cells(seed, 6, cy, cx)
    notched = (uniform(kind, 2) < 0.16) & (radius > 28) & (least > 24)
    notch = np.where(notched, outward + 0.8 * (uniform(form, 0) - 0.5), np.nan)
    # Where lobes are missing, the matrix has room for specks.
    density = 0.78 + 0.35 * smooth_noise_at(seed, 5, y, x, 150.0)
    keep = uniform(kind, 1) < np.clip(density, 0.1, 1.0)
    stretch, shear = (0.5 * (uniform(form, part) - 0.5) for part in (1, 2))
    return _Lobes(
        y[keep], x[keep], radius[keep], stretch[keep], shear[keep], (body_y * 2**31 + body_x)[keep], notch[keep]
    )


def _depth(lobes: _Lobes, y: Float64, x: Float64) -> Float64:
    """About the signed distance to the nearest body's outline, negative inside, at most `_REACH`.

    Args:
        lobes: all that are felt there.
        y: consecutive rows as a column, float64 ``(h, 1)``, or those of scattered points ``(n,)``.
        x: consecutive columns ``(1, w)``, or those of the points ``(n,)``.

    Returns:
        float64 ``(h, w)`` or ``(n,)``.
    """
    first = np.full(np.broadcast_shapes(y.shape, x.shape), _REACH)
    second = first.copy()
    for body in np.unique(lobes.body):
        mine = np.flatnonzero(lobes.body == body)
        near: tuple[slice, ...] = (slice(None),)
        if y.ndim == 2:  # only the window that feels the body
            reach = 1.25 * (lobes.radius[mine] + _REACH)
            near = tuple(
                slice(*np.searchsorted(axis.ravel(), (np.min(at - reach), np.max(at + reach))))
                for axis, at in ((y, lobes.y[mine]), (x, lobes.x[mine]))
            )
        py, px = (y[near[0]], x[:, near[1]]) if y.ndim == 2 else (y, x)
        here = _body_depth(lobes.take(mine), py, px)
        nearest, next_nearest = first[near], second[near]
        np.minimum(next_nearest, np.maximum(nearest, here), out=next_nearest)
        np.minimum(nearest, here, out=nearest)
    # Halfway between two bodies runs a channel of matrix.
    return _soft_maximum(first, (first - second) / 2 + _CHANNEL / 2, _ROUND)


def _body_depth(lobes: _Lobes, y: Float64, x: Float64) -> Float64:
    """`_depth` for one body, alone."""
    melted = np.full(np.broadcast_shapes(y.shape, x.shape), np.exp(-_REACH / _MELT))
    for at_y, at_x, radius, stretch, shear, *_ in zip(*lobes, strict=True):
        dy, dx = y - at_y, x - at_x
        inside = radius - np.sqrt((1 - stretch) * dy * dy + (1 + stretch) * dx * dx + (2 * shear * dy) * dx)
        melted += np.where(inside > -_REACH, np.exp(inside / _MELT), 0.0)
    depth: Float64 = -_MELT * np.log(melted)
    for at_y, at_x, radius, *_, out in zip(*lobes, strict=True):
        if not np.isnan(out):
            along = (y - at_y) * np.sin(out) + (x - at_x) * np.cos(out)
            across = (x - at_x) * np.sin(out) - (y - at_y) * np.cos(out)
            inner, outer = 0.3 * radius, 1.6 * radius
            width = np.interp(along, (inner, outer), _NOTCH)
            away = np.hypot(along - np.clip(along, inner, outer), across)
            depth = _soft_maximum(depth, width - away, 1.5)
    return depth


def _add_specks(seed: int, lobes: _Lobes, y: Float64, x: Float64, level: Float64, truth: UInt8) -> None:
    """Draw the tertiary precipitates into `level` and `truth`, in place; they come in swarms, away from bodies."""
    box = Box((int(y[0, 0]), int(x[0, 0])), (int(y[-1, 0]) + 1, int(x[0, -1]) + 1))
    cy, cx = cells(box, _SPECK_PITCH, margin=20.0)
    place, form = hash_cells(seed, 7, cy, cx), hash_cells(seed, 8, cy, cx)
    at_y = (cy + 0.5 + 0.95 * (uniform(place, 0) - 0.5)) * _SPECK_PITCH
    at_x = (cx + 0.5 + 0.95 * (uniform(place, 1) - 0.5)) * _SPECK_PITCH
    swarm = smooth_noise_at(seed, 9, at_y, at_x, 60.0)
    radius = np.exp(np.log(3.7) + 0.36 * 2 * (uniform(form, 0) + uniform(form, 1) - 1) + 0.12 * swarm)
    keep = (uniform(place, 2) < 0.65 + 0.6 * swarm) & (_depth(lobes, at_y, at_x) > radius + _SPECK_CLEARANCE)
    stretch = 1 + 0.25 * uniform(form, 2)
    for sy, sx, r, s in zip(at_y[keep], at_x[keep], radius[keep], stretch[keep], strict=True):
        window = tuple(
            slice(*np.searchsorted(axis.ravel(), (at - 1.3 * r - 5, at + 1.3 * r + 5)))
            for axis, at in ((y, sy), (x, sx))
        )
        away = np.hypot((y[window[0]] - sy) * s, (x[:, window[1]] - sx) / s) - r
        level[window] += _SPECK_LEVEL / (1 + np.exp((away + 0.2) / 1.05))
        truth[window][away < 0] = 2


def _add_scratches(seed: int, y: Float64, x: Float64, level: Float64) -> None:
    """Draw faint polishing scratches into `level`, in place."""
    pitch, longest = 300.0, 130.0
    box = Box((int(y[0, 0]), int(x[0, 0])), (int(y[-1, 0]) + 1, int(x[0, -1]) + 1))
    cy, cx = cells(box, pitch, margin=longest)
    place, form = hash_cells(seed, 10, cy, cx), hash_cells(seed, 11, cy, cx)
    for i, j, h, f in zip(cy, cx, place, form, strict=True):
        turn, length, strength = (float(uniform(f, part)) for part in range(3))
        start = np.array([i + float(uniform(h, 0)), j + float(uniform(h, 1))]) * pitch
        step = np.array([np.sin(2 * np.pi * turn), np.cos(2 * np.pi * turn)])
        ends = np.sort([start, start + longest * length * step], axis=0)
        window = tuple(
            slice(*np.searchsorted(axis.ravel(), (low - 4, high + 4)))
            for axis, low, high in zip((y, x), *ends, strict=True)
        )
        dy, dx = y[window[0]] - start[0], x[:, window[1]] - start[1]
        along, across = dy * step[0] + dx * step[1], dx * step[0] - dy * step[1]
        away = np.hypot(along - np.clip(along, 0.0, longest * length), across)
        level[window] += (9.0 * strength - 6.0) * np.exp(-((away / 1.1) ** 2))


def _soft_maximum(a: Float64, b: Float64, width: float) -> Float64:
    """The larger of two, with the corner where they cross rounded over about `width`."""
    larger: Float64 = np.logaddexp(a / width, b / width) * width
    return larger
