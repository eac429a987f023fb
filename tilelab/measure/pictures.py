"""Distributions of the objects' measures as pictures: histograms, one panel a class, drawn with Pillow."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from tilelab.arrays import Float64
from tilelab.machine.disk import replacing
from tilelab.measure.report import Summary
from tilelab.text import distinct

_WIDTH, _HEIGHT = 900, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 56, 64
_INK, _FAINT, _PAPER = (30, 33, 38), (205, 208, 212), (255, 255, 255)
_SHOWN = (
    "equivalent_diameter",
    "circularity",
    "sphericity",
    "nearest",
    "fibre_diameter",
    "sheath_thickness",
    "g_ratio",
)
_MOST_BINS = 60


def draw_distributions(summary: Summary, folder: Path) -> list[Path]:
    """Draw ``CLASS.MEASURE.png`` for every class and measure that there is; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    classes = max((survey.classes for survey in summary.surveys), key=len, default=())
    plain = distinct(re.sub(r"[^\w.-]+", "_", known.name) for known in classes)
    for survey_class, safe in zip(classes, plain, strict=True):
        for measure in _SHOWN:
            key, values = summary.values(survey_class.name, measure)
            values = values[np.isfinite(values)]
            if len(values) < 2:
                continue
            path = folder / f"{safe}.{measure}.png"
            picture = draw_histogram(values, f"{survey_class.name}: {words(key)}", survey_class.color)
            with replacing(path) as temporary:
                picture.save(temporary, "PNG")
            written.append(path)
    for survey in summary.surveys:
        if survey.layer is not None:
            layer = survey.layer
            path = folder / f"{survey.name}.layer.png"
            title = f"{survey.name}: thickness along {layer.axis}, {layer.unit}"
            picture = draw_profile(layer.position, layer.thickness, layer.mean, title)
            with replacing(path) as temporary:
                picture.save(temporary, "PNG")
            written.append(path)
    return written


def draw_profile(position: Float64, values: Float64, mean: float, title: str) -> Picture.Image:
    """Values along their positions in pixels, with their mean; RGB."""
    panel = Picture.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(panel)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    top, first, last = float(values.max()) * 1.05, float(position[0]), max(float(position[-1]), float(position[0]) + 1)
    for tick in _ticks(0, top, 5):
        y = _TOP + height - tick / top * height
        draw.line((_LEFT, y, _LEFT + width, y), _FAINT)
        _text(draw, (_LEFT - 8, y), f"{tick:g}", 14, anchor="rm")
    for tick in _ticks(first, last, 8):
        x = _LEFT + (tick - first) / (last - first) * width
        draw.line((x, _TOP + height, x, _TOP + height + 5), _INK)
        _text(draw, (x, _TOP + height + 8), f"{tick:g}", 14, anchor="ma")
    at = _LEFT + (position - first) / (last - first) * width
    columns = at.astype(int)
    for x in np.unique(columns):  # from the least to the most of what falls on one column of the picture
        here = values[columns == x]
        low, high = (_TOP + height - v / top * height for v in (here.min(), here.max()))
        draw.line((x, low, x, high - 1), _INK, 2)
    level = _TOP + height - mean / top * height
    for x in range(_LEFT, _LEFT + width, 12):
        draw.line((x, level, x + 6, level), (200, 60, 40), 2)
    _text(draw, (_LEFT, 12), title, 19)
    _text(draw, (_LEFT + width, 16), f"mean {mean:.4g}", 15, anchor="ra")
    _text(draw, (_LEFT + width, _HEIGHT - 26), "position, px", 13, anchor="ra")
    return panel


_SCALE = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float64)
_UNKNOWN = (190, 190, 190)


def draw_maps(maps: Mapping[str, Float64], name: str, folder: Path) -> list[Path]:
    """Draw ``NAME.MEASURE.png`` for values on a grid of blocks, dark for the least and bright for the most."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for measure, values in maps.items():
        path = folder / f"{name}.{measure}.png"
        with replacing(path) as temporary:
            draw_map(values, f"{name}: {measure}").save(temporary, "PNG")
        written.append(path)
    return written


def draw_map(values: Float64, title: str) -> Picture.Image:
    """Values on a grid as coloured squares, by their logarithms where all are above 0, grey where is none; RGB."""
    known = np.isfinite(values)
    told = values[known] if known.any() else np.zeros(1)
    positive = bool((told > 0).all())
    low, high = (math.log(end) if positive else end for end in (float(told.min()), float(told.max())))
    filled = np.where(known, values, told[0])
    place = ((np.log(filled) if positive else filled) - low) / (high - low or 1.0) * (len(_SCALE) - 1)
    colors = np.stack([np.interp(place, range(len(_SCALE)), _SCALE[:, i]) for i in range(3)], axis=-1)
    colors[~known] = _UNKNOWN
    side = max(1, 760 // max(values.shape))
    squares = np.kron(colors.astype(np.uint8), np.ones((side, side, 1), np.uint8))
    panel = Picture.new("RGB", (max(squares.shape[1], 420) + 40, squares.shape[0] + 96), _PAPER)
    draw = ImageDraw.Draw(panel)
    _text(draw, (20, 12), title, 19)
    panel.paste(Picture.fromarray(squares), (20, 44))
    foot = squares.shape[0] + 56
    for x in range(200):
        color = tuple(int(np.interp(x / 199 * (len(_SCALE) - 1), range(len(_SCALE)), _SCALE[:, i])) for i in range(3))
        draw.line((100 + x, foot, 100 + x, foot + 16), color)
    _text(draw, (92, foot + 8), f"{told.min():.3g}", 14, anchor="rm")
    scale = " (logarithmic)" if positive else ""
    _text(draw, (308, foot + 8), f"{told.max():.3g}{scale}", 14, anchor="lm")
    return panel


def words(key: str) -> str:
    """``equivalent_diameter_nm`` as ``equivalent diameter, nm``."""
    name, _, unit = key.rpartition("_")
    return f"{name.replace('_', ' ')}, {unit}" if unit in ("px", "nm", "nm2", "nm3", "px2") else key.replace("_", " ")


def draw_histogram(values: Float64, title: str, color: str) -> Picture.Image:
    """A histogram of at least two finite values, with mean and median marked; RGB.

    Bins are as wide as Freedman and Diaconis say; the last one that is shown ends beyond the 99.5th percentile, and how
    many lie further out is said.
    """
    high, low = float(np.percentile(values, 99.5)), float(values.min())
    if high <= low:
        high = low + max(abs(low) * 0.01, 1e-9)
    spread = float(np.subtract(*np.percentile(values, [75, 25])))
    wanted = 2 * spread / len(values) ** (1 / 3) or (high - low) / 20
    edges = _round_edges(low, high, min(_MOST_BINS, max(5, math.ceil((high - low) / wanted))))
    counts, _ = np.histogram(values, edges)
    beyond = int((values > edges[-1]).sum())
    panel = Picture.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(panel)
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x_of(value: float) -> float:
        return _LEFT + float((value - edges[0]) / (edges[-1] - edges[0])) * width

    top = max(1, int(counts.max()))
    for tick in _ticks(0, top, 4):
        y = _TOP + height - tick / top * height
        draw.line((_LEFT, y, _LEFT + width, y), _FAINT)
        _text(draw, (_LEFT - 8, y), f"{tick:g}", 14, anchor="rm")
    fill = tuple(bytes.fromhex(color[1:]))
    for count, first, last in zip(counts, edges, edges[1:], strict=False):
        if count:
            y = _TOP + height - count / top * height
            draw.rectangle((x_of(first) + 1, y, x_of(last) - 1, _TOP + height), fill, _INK)
    draw.line((_LEFT, _TOP + height, _LEFT + width, _TOP + height), _INK)
    for tick in _ticks(edges[0], edges[-1], 8):
        draw.line((x_of(tick), _TOP + height, x_of(tick), _TOP + height + 5), _INK)
        _text(draw, (x_of(tick), _TOP + height + 8), f"{tick:g}", 14, anchor="ma")
    marks = {"median": float(np.median(values)), "mean": float(values.mean())}
    for i, value in enumerate(marks.values()):
        if edges[0] <= value <= edges[-1]:
            for y in range(_TOP, _TOP + height, 8 + 6 * i):
                draw.line((x_of(value), y, x_of(value), y + 4), _INK, 2)
    _text(draw, (_LEFT, 12), title, 19)
    told = [f"n = {len(values):,}", *(f"{name} {value:.4g}" for name, value in marks.items())]
    told += [f"{beyond} beyond {edges[-1]:g}"] if beyond else []
    _text(draw, (_LEFT + width, 16), "   ".join(told), 15, anchor="ra")
    _text(draw, (_LEFT, _HEIGHT - 26), "short dashes: median, long gaps: mean", 13)
    return panel


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, at most `most` and one."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _round_edges(low: float, high: float, bins: int) -> Float64:
    """Edges of about so many bins, at round numbers."""
    raw = (high - low) / bins
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    edges: Float64 = np.arange(first, max(last, first + 1) + 1, dtype=np.float64) * step
    return edges


def _text(draw: ImageDraw.ImageDraw, at: Sequence[float], text: str, size: int, anchor: str = "la") -> None:
    draw.text((at[0], at[1]), text, _INK, ImageFont.load_default(size), anchor)
