"""Drawn SEM micrographs with the info bars of five makers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageDraw, ImageFont

from tests.image_files import Array

MAKERS = ("fei", "zeiss", "hitachi", "jeol", "tescan")
_TEXTS = {
    "fei": ("HV 5.00 kV", "curr 0.10 nA", "det TLD", "mag 20 000 x", "WD 4.1 mm", "2 um", "Helios"),
    "zeiss": ("1 um", "EHT = 3.00 kV", "WD = 5.1 mm", "Signal A = InLens", "Mag = 20.00 K X", "Date :3 Mar 2024"),
    "hitachi": ("SU8000 5.0kV 8.1mm x20.0k SE(U)", "2.00um"),
    "jeol": ("SEI", "15.0kV", "X20,000", "1um", "WD 9.8mm"),
    "tescan": ("SEM HV: 10.0 kV", "View field: 20.1 um", "Det: SE", "MIRA3 TESCAN", "5 um", "Date(m/d/y): 03/03/24"),
}
_GROUND = {"fei": (20, 235), "zeiss": (255, 0), "hitachi": (0, 255), "jeol": (0, 255), "tescan": (60, 245)}


def draw_specimen(rows: int, columns: int, seed: int = 0, *, contrast: float = 1.0) -> Array:
    """A noisy picture of blobs, uint8."""
    rng = np.random.default_rng(seed)
    values = np.full((rows, columns), 110.0)
    for _ in range(max(8, rows * columns // 4000)):
        cy, cx, r = int(rng.integers(rows)), int(rng.integers(columns)), int(rng.integers(4, 18))
        y, x = np.ogrid[max(0, cy - r) : cy + r, max(0, cx - r) : cx + r]
        part = values[max(0, cy - r) : cy + r, max(0, cx - r) : cx + r]
        part += (rng.uniform(20, 70) * contrast * (((y - cy) ** 2 + (x - cx) ** 2) < r * r))[
            : len(part), : part.shape[1]
        ]
    return np.clip(values + rng.normal(0, 14 * contrast, values.shape), 0, 255).astype(np.uint8)


def draw_bar(maker: str, rows: int, columns: int) -> Array:
    """An info bar as `maker` draws it, uint8."""
    ground, ink = _GROUND[maker]
    picture = Image.new("L", (columns, rows), ground)
    draw = ImageDraw.Draw(picture)
    texts = _TEXTS[maker]
    lines = 2 if maker in ("zeiss", "tescan") else 1
    font = ImageFont.load_default(max(8, min(rows // (lines + 1), columns // 60)))
    columns_each = columns // -(-len(texts) // lines)
    for i, text in enumerate(texts):
        left, top = (i // lines) * columns_each + 6, (i % lines) * (rows // lines) + rows // (4 * lines)
        draw.text((left, top), text, fill=ink, font=font)
        if maker in ("fei", "tescan") and i % lines == 0 and i:
            draw.line([(left - 5, 2), (left - 5, rows - 3)], fill=ink)
    draw.line([(columns * 3 // 4, rows - 4), (columns * 3 // 4 + 60, rows - 4)], fill=ink, width=2)
    if maker == "zeiss":
        draw.rectangle([0, 0, columns - 1, rows - 1], outline=ink)
    return np.asarray(picture)


def draw_micrograph(maker: str, rows: int = 480, columns: int = 640, bar: int = 40, seed: int = 0) -> Array:
    """A specimen of `rows` with an info bar of `bar` rows below it."""
    return np.concatenate([draw_specimen(rows, columns, seed), draw_bar(maker, bar, columns)])


def write_micrograph(
    path: Path, maker: str, *, rows: int = 480, columns: int = 640, bar: int = 40, seed: int = 0
) -> Array:
    """A file as `maker`'s program writes it, with what it says of pixel size (5 nm) and bar; returns the pixels."""
    values = draw_micrograph(maker, rows, columns, bar, seed)
    tags: list[tuple[Any, ...]] = []
    if maker == "fei":
        text = f"[Scan]\r\nPixelWidth=5e-9\r\nPixelHeight=5e-9\r\n[Image]\r\nResolutionX={columns}\r\n"
        text += f"ResolutionY={rows}\r\n[PrivateFei]\r\nDatabarHeight={bar}\r\n"
        tags = [(34682, 2, len(text), text, True)]
    elif maker == "zeiss":
        text = "\r\n".join(["0", "0", "0", "5e-09", "0", "AP_IMAGE_PIXEL_SIZE", "Image Pixel Size = 5.000 nm", ""])
        tags = [(34118, 1, len(text), text.encode("cp1252"), True)]
    elif maker == "tescan":
        data = f"[MAIN]\r\nPixelSizeX=5e-09\r\nPixelSizeY=5e-09\r\nImageStripSize={bar}\r\n".encode()
        tags = [(50431, 1, len(data), data, True)]
    elif maker == "hitachi":
        said = ["[SemImageFile]", "InstructName=SU8000", f"DataSize={columns}x{rows + bar}", "PixelSize=5", ""]
        path.with_suffix(".txt").write_text("\r\n".join(said))
    else:
        said = ["$CM_FORMAT 1", "$$SM_MICRON_BAR 200", "$$SM_MICRON_MARKER 1um", f"$CM_FULL_SIZE {columns} {rows}", ""]
        path.with_suffix(".txt").write_text("\r\n".join(said))
    tifffile.imwrite(path, values, extratags=tags, photometric="minisblack")
    return values
