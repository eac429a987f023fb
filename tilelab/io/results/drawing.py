"""Drawing for overviews: classes over a grey image, a scale bar, a frame with a legend."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from tilelab.arrays import Bool, UInt8
from tilelab.spec import PALETTE

Color = tuple[int, int, int]
Mask = Bool

_FILL = 0.34
"""Opacity of a class over the image."""
_CROWDED = 0.15
"""Share of the picture that contours may take before they become thinner, then fainter."""
_INK, _FAINT, _PAPER = (30, 33, 38), (120, 125, 132), (255, 255, 255)
_MICRO = "\N{MICRO SIGN}"
_MARGIN, _GAP, _TEXT = 20, 14, 19


def visible_colors(colors: Sequence[str]) -> list[Color]:
    """Colours ``#rrggbb`` as RGB; dark ones are replaced, as they would not be seen."""
    found = []
    for i, color in enumerate(colors):
        r, g, b = bytes.fromhex(color[1:])
        if 0.299 * r + 0.587 * g + 0.114 * b < 40:
            r, g, b = bytes.fromhex(PALETTE[1 + (i - 1) % (len(PALETTE) - 1)][1:])
        found.append((r, g, b))
    return found


def paint(panel: Picture.Image, labels: UInt8, colors: Sequence[Color]) -> None:
    """Lay the classes over an RGB panel: a translucent fill each, and a contour on its inner side.

    Args:
        panel: drawn on in place.
        labels: class indices, uint8 ``(2 * height, 2 * width)``: reducing what is drawn smooths it.
        colors: of the classes; class 0 stays bare.
    """
    present = [i for i in range(1, len(colors)) if (labels == i).any()]
    width, opacity = _stroke(labels)
    edge = _edge(labels)
    for i in present:
        panel.paste(colors[i], mask=_alpha(labels == i, _FILL))
    # A dark rim outside makes a contour crisp on any grey.
    panel.paste((0, 0, 0), mask=_alpha(edge & (labels == 0), 0.4 * opacity))
    contour = _grow(edge, width - 1)
    for i in present:
        panel.paste(colors[i], mask=_alpha(contour & (labels == i), opacity))


def draw_scale_bar(panel: Picture.Image, nm_per_pixel: float) -> None:
    """Draw a bar of a round length into the lower right corner of an RGB panel, unless that is too small for it."""
    length_nm = _round_length(panel.width * nm_per_pixel / 5)
    length = max(1, round(length_nm / nm_per_pixel))
    text = _words(format_length(length_nm), _TEXT)
    pad, bar = 10, 5
    width = max(length, text.width) + 2 * pad
    height = text.height + bar + 2 * pad + 7
    x, y = panel.width - width - pad, panel.height - height - pad
    if x < pad or y < pad:
        return
    shade = Picture.new("L", panel.size, 0)
    ImageDraw.Draw(shade).rounded_rectangle((x, y, x + width, y + height), 6, fill=150)
    panel.paste((0, 0, 0), mask=shade)
    panel.paste(_PAPER, (x + (width - text.width) // 2, y + pad), text)
    left, foot = x + (width - length) // 2, y + height - pad
    ImageDraw.Draw(panel).rectangle((left, foot - bar + 1, left + length - 1, foot), _PAPER)


def frame(panel: Picture.Image, names: Sequence[tuple[str, Color]], facts: str) -> Picture.Image:
    """Put a panel on paper, with a legend below it on the left and `facts` on the right (or below, if narrow)."""
    font, facts = _font(_TEXT), spell(facts)
    names = [(spell(name), color) for name, color in names]
    swatch = _TEXT - 3
    entries = [(name, color, swatch + 8 + math.ceil(font.getlength(name))) for name, color in names]
    rows: list[list[tuple[str, Color, int]]] = [[]]
    used = 0
    for entry in entries:
        if rows[-1] and used + 2 * _GAP + entry[2] > panel.width:
            rows.append([])
            used = 0
        used += entry[2] + (2 * _GAP if rows[-1] else 0)
        rows[-1].append(entry)
    own_row = bool(rows[-1]) and used + 4 * _GAP + font.getlength(facts) > panel.width
    line = _TEXT + 12
    width = max(panel.width, math.ceil(font.getlength(facts)), *(entry[2] for entry in entries), 0)
    height = panel.height + _GAP + line * (len(rows) + own_row)
    paper = Picture.new("RGB", (width + 2 * _MARGIN, height + _MARGIN + _MARGIN // 2), _PAPER)
    paper.paste(panel, (_MARGIN, _MARGIN))
    draw = ImageDraw.Draw(paper)
    y = _MARGIN + panel.height + _GAP + line // 2
    for i, row in enumerate(rows):
        x = _MARGIN
        for name, color, extent in row:
            draw.rounded_rectangle((x, y - swatch // 2, x + swatch, y - swatch // 2 + swatch), 3, fill=color)
            draw.text((x + swatch + 8, y), name, _INK, font, anchor="lm")
            x += extent + 2 * _GAP
        if i + 1 < len(rows) or own_row:
            y += line
    if own_row:
        draw.text((_MARGIN, y), facts, _FAINT, font, anchor="lm")
    else:
        draw.text((_MARGIN + width, y), facts, _FAINT, font, anchor="rm")
    return paper


def format_length(nm: float) -> str:
    """A length with the unit that makes it short."""
    for unit, size in (("mm", 1e6), (f"{_MICRO}m", 1e3), ("nm", 1.0)):
        if nm >= size:
            return f"{nm / size:g} {unit}"
    return f"{nm:g} nm"


def _round_length(nm: float) -> float:
    """The largest 1, 2 or 5 times a power of ten that is at most `nm`."""
    power = 10.0 ** math.floor(math.log10(nm))
    return max(m * power for m in (1, 2, 5) if m * power <= nm * (1 + 1e-9))


def _stroke(labels: UInt8) -> tuple[int, float]:
    """Width (in pixels of `labels`) and opacity of contours: thin and faint where there are very many."""
    edges = np.count_nonzero(labels[:, 1:] != labels[:, :-1]) + np.count_nonzero(labels[1:] != labels[:-1])
    share = edges / labels.size  # of a contour one pixel wide
    width = max(1, min(4, int(_CROWDED / share))) if share else 4
    return width, min(0.95, max(0.35, 2 * _CROWDED / share)) if share else 0.95


def _alpha(mask: Mask, opacity: float) -> Picture.Image:
    """A mask of twice the picture's size as its opacity."""
    return Picture.fromarray(np.where(mask, np.uint8(round(255 * opacity)), np.uint8(0))).reduce(2)


def _edge(labels: UInt8) -> Mask:
    """Pixels with a neighbour of another class, on both sides of the border; the edge of the picture is none."""
    edge = np.zeros(labels.shape, np.bool_)
    down = labels[1:] != labels[:-1]
    edge[1:] |= down
    edge[:-1] |= down
    across = labels[:, 1:] != labels[:, :-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    return edge


def _grow(mask: Mask, steps: int) -> Mask:
    """`mask` and what is within `steps` of it; squares and crosses in turn come close to discs."""
    for step in range(steps):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        seed = mask if step % 2 else grown.copy()
        grown[1:] |= seed[:-1]
        grown[:-1] |= seed[1:]
        mask = grown
    return mask


def _words(text: str, size: int) -> Picture.Image:
    """A line of text as opacity.  Pillow's font has no micro sign: it is made of a u and a longer stem."""
    fine = 4
    font = _font(size * fine)
    plain = text.replace(_MICRO, "u")
    left, top, right, bottom = font.getbbox(plain, anchor="ls")  # from the baseline
    below = max(bottom, size * fine // 4 if _MICRO in text else 0)
    mask = Picture.new("L", (math.ceil(right - left), math.ceil(below - top)), 0)
    draw = ImageDraw.Draw(mask)
    draw.text((-left, -top), plain, 255, font, anchor="ls")
    if _MICRO in text:
        letter = font.getmask("u")
        columns = np.flatnonzero(np.asarray(letter).reshape(letter.size[::-1])[0] > 127)
        thickness = int(np.flatnonzero(np.diff(columns) > 1)[0])  # the first of two stems in the letter's top row
        x = round(font.getlength(plain[: text.index(_MICRO)]) - left) + int(columns[0])
        draw.rectangle((x, -top - size, x + thickness, -top + below), 255)
    return mask.reduce(fine)


def spell(text: str) -> str:
    """`text` in letters that Pillow's font has: Greek ones by their names, others without their accents."""
    return "".join(c if c.isascii() or c in (_MICRO, "\N{MIDDLE DOT}") else _spell_letter(c) for c in text)


def _spell_letter(c: str) -> str:
    name = unicodedata.name(c, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        letter = name.partition(" LETTER ")[2].split(" ")[0]
        return letter.capitalize() if "CAPITAL" in name else letter.lower()
    if c in "\N{PRIME}\N{RIGHT SINGLE QUOTATION MARK}":
        return "'"
    return unicodedata.normalize("NFKD", c).encode("ascii", "ignore").decode() or "?"


def _font(size: int) -> Any:
    """The font that Pillow carries."""
    return ImageFont.load_default(size)
