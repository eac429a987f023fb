"""Attribution fields as pictures: one pixel's over its micrograph, and those of right and wrong pixels side by side.

Drawn after figures 7 and 8 of the U-RISC paper (Frontiers in Computational Neuroscience 16, 2022).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from tilelab.arrays import Array, Float64, UInt8
from tilelab.io.results.drawing import draw_scale_bar
from tilelab.training.attribution import KINDS, SHARE, Field, Sample, mean_field

_INK, _FAINT, _PAPER = (30, 33, 38), (205, 208, 212), (255, 255, 255)
_FOR, _AGAINST = np.array((214, 39, 40), np.float64), np.array((31, 119, 180), np.float64)
_PANEL, _GAP, _HEAD = 512, 20, 52
_CLOSE = 96
"""Side of the mean fields, in pixels of the image."""


def draw_field(found: Field, grey: Array, title: str, nm: float | None, share: float = SHARE) -> Picture.Image:
    """The crop with the pixel marked, and the same under the field: red spoke for the class, blue against it; RGB.

    Args:
        found: the field.
        grey: the crop's intensities.
        title: one line.
        nm: of a pixel, for the scale bar.
        share: weights below it are not shown; stronger ones by their logarithm.
    """
    shown = _grey(grey)
    side = len(shown)
    y, x = found.at[0] - found.origin[0], found.at[1] - found.origin[1]
    panels = []
    for picture in (np.repeat(shown[..., None], 3, axis=2), _lay(shown, found.weights.astype(np.float64), share)):
        panel = Picture.fromarray(picture).resize((_PANEL, _PANEL), Picture.Resampling.LANCZOS)
        _mark(ImageDraw.Draw(panel), (y + 0.5) * _PANEL / side, (x + 0.5) * _PANEL / side)
        if nm is not None:
            draw_scale_bar(panel, nm * side / _PANEL)
        panels.append(panel)
    sheet = Picture.new("RGB", (2 * _PANEL + 3 * _GAP, _PANEL + _HEAD + 44), _PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (_GAP + i * (_PANEL + _GAP), _HEAD))
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_GAP, 14), title, 19)
    _legend(draw, sheet, (_GAP, _PANEL + _HEAD + 12), share)
    return sheet


def draw_kinds(samples: Sequence[Sample], title: str, area: float, unit: str, share: float = SHARE) -> Picture.Image:
    """S_k of right and wrong pixels, each a dot, and the mean of their fields around the pixel; RGB.

    Args:
        samples: of at least one kind.
        title: one line.
        area: of a pixel, in `unit`.
        unit: ``nm2`` or ``px2``.
        share: k.
    """
    present = [kind for kind in KINDS if any(s.kind == kind for s in samples)]
    side, left, high = 300, 96, 330
    sheet = Picture.new("RGB", (left + len(present) * (side + _GAP) + _GAP, _HEAD + high + side + 96), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_GAP, 14), title, 19)
    areas = {kind: np.array([s.field.pixels(share) * area for s in samples if s.kind == kind]) for kind in present}
    top = 1.08 * max(float(values.max()) for values in areas.values()) or 1.0
    for tick in _ticks(top):
        y = _HEAD + high - tick / top * high
        draw.line((left, y, sheet.width - _GAP, y), _FAINT)
        _text(draw, (left - 8, y), f"{tick:,.0f}", 14, "rm")
    _text(draw, (_GAP, _HEAD - 14), f"S_k, {unit}", 13)
    foot = _HEAD + high
    for i, kind in enumerate(present):
        x = left + i * (side + _GAP) + side / 2
        values = areas[kind]
        for n, value in enumerate(values):  # side by side, so that equal ones are seen
            at, y = x + ((n * 0.618034) % 1 - 0.5) * side * 0.4, foot - value / top * high
            draw.ellipse((at - 4, y - 4, at + 4, y + 4), _FAINT, _INK)
        level = foot - float(values.mean()) / top * high
        draw.line((x - side * 0.3, level, x + side * 0.3, level), (200, 60, 40), 3)
        _text(draw, (x, foot + 10), f"{kind}: n = {len(values)}, mean {values.mean():,.0f}", 15, "ma")
        mean = mean_field(list(samples), kind, _CLOSE)
        panel = Picture.fromarray(_lay(np.full(mean.shape, 255, np.uint8), mean / (np.abs(mean).max() or 1), share))
        sheet.paste(panel.resize((side, side), Picture.Resampling.NEAREST), (int(x - side / 2), foot + 36))
    _legend(draw, sheet, (left, foot + 36 + side + 12), share, f"; means over {_CLOSE} x {_CLOSE} px around the pixel")
    return sheet


def _grey(grey: Array) -> UInt8:
    """Intensities between their percentiles, uint8."""
    low, high = np.percentile(grey, (0.5, 99.5))
    shown: UInt8 = np.clip((grey - low) / max(float(high - low), 1e-9) * 255, 0, 255).astype(np.uint8)
    return shown


def _lay(grey: UInt8, weights: Float64, share: float) -> UInt8:
    """Weights over greys: as strong as their logarithm between `share` and 1; uint8 ``(y, x, 3)``."""
    strength = np.clip(1 - np.log(np.maximum(np.abs(weights), 1e-12)) / math.log(share), 0, 1)
    strength = np.where(np.abs(weights) > share, 0.35 + 0.65 * strength, 0)[..., None]
    color = np.where(weights[..., None] > 0, _FOR, _AGAINST)
    laid: UInt8 = (grey[..., None] * (1 - strength) + color * strength).astype(np.uint8)
    return laid


def _legend(draw: ImageDraw.ImageDraw, sheet: Picture.Image, at: tuple[int, int], share: float, more: str = "") -> None:
    """Both colours from `share` to 1."""
    steps = np.geomspace(share * 1.0001, 1, 100)
    for i, sign in enumerate((1, -1)):
        bar = _lay(np.full((1, 100), 255, np.uint8), sign * steps[None], share)
        sheet.paste(Picture.fromarray(bar).resize((100, 14)), (at[0] + i * 215, at[1]))
        _text(draw, (at[0] + i * 215 + 108, at[1] + 7), "for the class" if sign > 0 else "against it", 13, "lm")
    _text(draw, (at[0] + 430, at[1] + 7), f"weights from {share:g} to 1 of the strongest{more}", 13, "lm")


def _mark(draw: ImageDraw.ImageDraw, y: float, x: float) -> None:
    """A ring around the pixel."""
    for reach, color, width in ((11, (0, 0, 0), 4), (11, (255, 214, 0), 2)):
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=color, width=width)


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, about five."""
    power = 10.0 ** math.floor(math.log10(top / 5))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= top / 5 * (1 - 1e-9))
    return [i * step for i in range(math.floor(top / step) + 1)]


def _text(draw: ImageDraw.ImageDraw, at: Sequence[float], text: str, size: int, anchor: str = "la") -> None:
    draw.text((at[0], at[1]), text, _INK, ImageFont.load_default(size), anchor)
