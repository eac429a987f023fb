"""The page of the bundled models at home and abroad, and its pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from tilelab.arrays import UInt8

_PANEL, _GAP, _TEXT = 200, 4, 16

_ABOUT = """\
# The bundled models at home and abroad

Made by `python -m benchmarks.trained.home_abroad --data DATA -o home-abroad.md`, in fp32. Each model sees the
validation images that it was made for (of large ones the middle 1024 px), as they are and changed (the noise is as
strong as the image's own spread), and those of the other sets. *Alarm*: `tilelab infer` says that the image is unlike
those of the training. *IoU* is the mean over the classes, of the pixels of all images; *ECE* the expected calibration
error of the calibrated probabilities, fifteen bins, the mean over the images; labels of images at other sizes are
compared at the truth's. `--fit` changes only images that raise an alarm.

The particles come from many microscopes, dark and bright, large and small: one of them inverted or at another size is
like another of them, the model does as well there, and an alarm would be wrong.
"""

_TILES = """\
## Which tiles hold the errors

Of the wrong pixels, the share that lies in 5 % of the tiles (64 px a side, of all validation images together): in those
where the model is least sure (most entropy), and in those that an oracle picks, who knows every error. No ranking can
do better than the oracle.

| model | by entropy | oracle |
|---|---:|---:|
"""


def to_markdown(rows: Sequence[Mapping[str, Any]], picture: str) -> str:
    """The page."""
    parts = [_ABOUT, _summary(rows)]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        parts.append(f"## {model}\n\n{_home_table(own)}\n\n{_abroad_table(own)}\n")
    parts.append(f"## Pictures\n\n![the models at home and abroad]({picture})\n")
    home = [row for row in rows if row["change"] == "as they are" and "ranked" in row]
    ranks = [f"| {row['model']} | {row['ranked'][0]:.2f} | {row['ranked'][1]:.2f} |" for row in home]
    parts.append(_TILES + "\n".join(ranks))
    return "\n".join(parts) + "\n"


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Alarms over all models: at home, of each change, of other sets."""
    lines = ["| images | seen | alarms |", "|---|---:|---:|"]
    changes = dict.fromkeys(row["change"] for row in rows if "plain_iou" in row)
    kinds = [(change, [row for row in rows if row["change"] == change and "plain_iou" in row]) for change in changes]
    kinds.append(("of other sets", [row for row in rows if "plain_iou" not in row]))
    for name, group in kinds:
        seen, alarms = (sum(row[key] for row in group) for key in ("images", "alarms"))
        lines.append(f"| {name} | {seen} | {alarms} ({alarms / max(1, seen):.0%}) |")
    return "\n".join(lines) + "\n"


def _home_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| its own images | alarm | IoU | with --fit | ECE | with --fit | what --fit did |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        if "plain_iou" in row:
            cells = [row["change"], f"{row['alarms']} of {row['images']}"]
            cells += [f"{row[key]:.3f}" for key in ("plain_iou", "fit_iou", "plain_ece", "fit_ece")]
            lines.append(f"| {' | '.join([*cells, '; '.join(row['fitted']) or '-'])} |")
    return "\n".join(lines)


def _abroad_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| other sets | alarm |", "|---|---:|"]
    lines += [f"| {row['set']} | {row['alarms']} of {row['images']} |" for row in rows if "plain_iou" not in row]
    return "\n".join(lines)


@dataclass(frozen=True)
class Panel:
    """An image with what a model says of it, and the words above."""

    title: str
    alarm: bool
    image: UInt8
    labels: UInt8
    colors: Sequence[Sequence[int]]


def draw_page(rows: Sequence[Sequence[Panel]], file: Path) -> None:
    """Rows of panels; what raises an alarm has its words in red."""
    width, height = len(rows[0]) * (_PANEL + _GAP), len(rows) * (_PANEL + _TEXT + _GAP)
    sheet = Pillow.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, panels in enumerate(rows):
        for k, panel in enumerate(panels):
            x, y = k * (_PANEL + _GAP), i * (_PANEL + _TEXT + _GAP)
            text = panel.title + "  ALARM" * panel.alarm
            pen.text((x + 2, y), text, fill="#c00000" if panel.alarm else "black", font=font)
            sheet.paste(_overlay(panel.image, panel.labels, panel.colors), (x, y + _TEXT))
    sheet.quantize(128, dither=Pillow.Dither.NONE).save(file, optimize=True)


def _overlay(image: UInt8, labels: UInt8, colors: Sequence[Sequence[int]]) -> Pillow.Image:
    """A micrograph with the classes but the background over it."""
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) / max(high - low, 1.0), 0, 1) * 255
    picture = Pillow.fromarray(grey.astype(np.uint8)).resize((_PANEL, _PANEL), Pillow.Resampling.LANCZOS).convert("RGB")
    found = np.asarray(Pillow.fromarray(labels).resize((_PANEL, _PANEL), Pillow.Resampling.NEAREST))
    paint = np.array(colors, np.float32)[found]
    mixed = np.where((found > 0)[..., None], 0.55 * np.asarray(picture) + 0.45 * paint, np.asarray(picture))
    return Pillow.fromarray(mixed.astype(np.uint8))
