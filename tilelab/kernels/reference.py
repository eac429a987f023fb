"""The kernels as plain NumPy: slow, obvious, and what the fast ones are tested against.

All arrays have the sweep axis first: images are ``(C, S, A, X)`` (channels, sweep, cross, x) and logits
``(K, S, A, X)``.  A plane swept along y is ``S = y, A = 1``; a volume swept along z has ``A = y``.
"""

from __future__ import annotations

import numpy as np

from tilelab.arrays import Array, Float32, Int64, UInt8

SOFTMAX, SIGMOID = 0, 1
ACTIVATIONS = {"softmax": SOFTMAX, "sigmoid": SIGMOID}

Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""From which to which row, line and column."""


def whole_window(array: Array) -> Window:
    """All of the last three axes."""
    rows, lines, columns = array.shape[-3:]
    return (0, rows), (0, lines), (0, columns)


def cut(band: Array, rows: Int64, cross: Int64, cols: Int64, mean: Float32, gain: Float32, tile: Float32) -> None:
    """Gather one tile from a band of raw rows and normalise it: ``tile = (band[rows, cross, cols] - mean) * gain``.

    Args:
        band: uint8, uint16 or float32 ``(C, S, A, X)``.
        rows, cross, cols: positions in `band` for every pixel of the tile along each axis; reflection is in them.
        mean, gain: float32 ``(channels,)``.
        tile: float32 ``(channels, *tile shape)``, written; a single band channel is repeated to fill it.
    """
    raw = band[:, rows[:, None, None], cross[None, :, None], cols[None, None, :]].astype(np.float32)
    tile[...] = (raw - mean[:, None, None, None]) * gain[:, None, None, None]


def blend(
    canvas: Float32,
    logits: Float32,
    share_s: Float32,
    share_a: Float32,
    share_x: Float32,
    row: int,
    first: int,
    last: int,
    cross: int,
    col: int,
) -> None:
    """Add rows ``first:last`` of one tile's logits, weighted by the product of its shares, to a ring of rows.

    Args:
        canvas: float32 ``(K, R, A, X)``; row `r` of the image lives in slot ``r % R``.
        logits: float32 ``(K, *tile shape)``.
        share_s, share_a, share_x: float32, the tile's share along each axis.
        row: slot of the tile's row 0 is ``row % R``.
        first, last: rows of the tile to add.
        cross, col: where the tile's origin lies on the canvas; may be negative, parts beyond the canvas are dropped.
    """
    _, ring, height, width = canvas.shape
    _, _, ta, tx = logits.shape
    a0, a1 = max(0, -cross), min(ta, height - cross)
    x0, x1 = max(0, -col), min(tx, width - col)
    if a1 <= a0 or x1 <= x0:
        return
    for s in range(first, last):
        weight = (share_s[s] * share_a[a0:a1])[:, None] * share_x[x0:x1]
        canvas[:, (row + s) % ring, cross + a0 : cross + a1, col + x0 : col + x1] += logits[:, s, a0:a1, x0:x1] * weight


def finish(
    canvas: Float32,
    row: int,
    activation: int,
    labels: UInt8,
    probabilities: UInt8,
    channels: Int64,
    logits: Float32,
    sharpness: float = 1.0,
    into: Window | None = None,
) -> None:
    """Turn finished rows into bytes and clear their slots.

    Args:
        canvas: float32 ``(K, R, A, X)``, blended logits; the rows read are set to zero.
        row: slot of the first finished row is ``row % R``.
        activation: `SOFTMAX` (one output per class) or `SIGMOID` (one per class but the first, the background).
        labels: uint8 ``(n, A, X)``, written; ties go to the lower class.
        probabilities: uint8 ``(P, n, A, X)``, written with ``round(255 p)``; P may be 0.
        channels: the class of each probability channel.
        logits: float32 ``(K, n, A, X)``, written, or empty.
        sharpness: logits are multiplied by it before they become probabilities; labels and `logits` are as without.
        into: what of `labels` and the others is written, by as many rows and the first lines and columns of the canvas;
            None for all.  On a GPU it is always all.
    """
    ring = canvas.shape[1]
    place = tuple(slice(*ends) for ends in into or whole_window(labels))
    labels, probabilities = labels[place], probabilities[:, *place]
    slots = (row + np.arange(labels.shape[0])) % ring
    canvas = canvas[:, :, : labels.shape[1], : labels.shape[2]]
    z = canvas[:, slots].astype(np.float64)
    if logits.size:
        logits[:, *place] = canvas[:, slots]
    if activation == SOFTMAX:
        labels[...] = z.argmax(axis=0)
    else:
        labels[...] = np.where(z.max(axis=0) > 0, z.argmax(axis=0) + 1, 0)
    p = to_probabilities(z, activation, sharpness)
    for i, k in enumerate(channels):
        probabilities[i] = np.floor(p[k] * 255 + 0.5)
    canvas[:, slots] = 0


def to_probabilities(logits: Array, activation: int, sharpness: float = 1.0) -> Array:
    """Logits ``(K, ...)`` as probabilities of the classes: of sigmoids with the background before them."""
    if activation == SIGMOID:
        yes = 1 / (1 + np.exp(-logits * logits.dtype.type(sharpness)))
        return np.concatenate([1 - yes.max(axis=0, keepdims=True), yes])
    powers = np.exp((logits - logits.max(axis=0)) * logits.dtype.type(sharpness))
    return np.asarray(powers / powers.sum(axis=0))


def find_over(canvas: Float32, row: int, limits: Float32, labels: UInt8) -> None:
    """Write to `labels` ``(n, A, X)`` the class (from 1) whose logit exceeds its limit most, 0 where none does.

    Args:
        canvas: float32 ``(K, R, A, X)``, blended logits of classes that each have a sigmoid; left as it is.
        row: slot of the first finished row is ``row % R``.
        limits: float32 ``(K,)``.
        labels: uint8, written; ties go to the lower class.
    """
    slots = (row + np.arange(labels.shape[0])) % canvas.shape[1]
    over = canvas[:, slots, : labels.shape[1], : labels.shape[2]] - limits[:, None, None, None]
    labels[...] = np.where(over.max(axis=0) > 0, over.argmax(axis=0) + 1, 0)


def is_constant(band: Array, rows: Int64, cross: Int64, cols: Int64) -> bool:
    """Whether all pixels of a tile are equal (per channel), so that its logits can be taken from an equal tile."""
    raw = band[:, rows[:, None, None], cross[None, :, None], cols[None, None, :]]
    return bool((raw == raw[:, :1, :1, :1]).all())


def all_finite(values: Array) -> bool:
    """Whether a float array holds neither NaN nor infinity."""
    return bool(np.isfinite(values).all())
