"""The page of scores of finished trainings: a table and a picture for each data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from tilelab.arrays import Array, UInt8
from tilelab.evaluation import Pair, open_labels
from tilelab.evaluation.pictures import error_overlay
from tilelab.geometry import Box
from tilelab.spec import ClassInfo

_PANEL, _GAP, _TEXT = 330, 6, 18


def to_markdown(records: Sequence[Mapping[str, Any]], pictures: Mapping[str, str], command: str) -> str:
    """The page: data sets in alphabetical order, in each the runs from best to worst."""
    about = (
        f"Made by `{command}`. Images are inferred whole, in fp32, by the sweep of `tilelab infer`, and the stitched "
        "labels scored as by `tilelab eval`: the pixels of all images are counted together; F1 is that of pixels, "
        "without tolerance, the mean over all classes but the background; V_rand and V_info are those of ISBI 2012, at "
        "the best threshold, after thinning."
    )
    parts = ["# What the models score", about]
    for dataset in sorted({record["dataset"] for record in records}):
        runs = sorted((r for r in records if r["dataset"] == dataset), key=lambda r: -r["mean_iou"])
        parts += [f"## {dataset}", _runs_table(runs)]
        repeated = _repeated(runs)
        parts += [table(["experiment", "seeds", "mean IoU", "accuracy", "F1"], repeated)] if repeated else []
        if dataset in pictures:
            what = "micrograph, truth, prediction, errors (cyan too much, magenta missed, yellow one class for another)"
            parts.append(f"![{dataset}]({pictures[dataset]})\n\nThe best of these runs: {what}.")
        parts += _notes(runs)
    return "\n\n".join(parts) + "\n"


def _runs_table(runs: Sequence[Mapping[str, Any]]) -> str:
    classes = list(dict.fromkeys(name for run in runs for name in run["iou"]))
    isbi = any(run.get("isbi") for run in runs)
    head = ["run", "network", "parameters", "images", "seed", "best step", "time", "accuracy", "mean IoU"]
    head += [f"IoU {name}" for name in classes] + ["F1"] + (["V_rand", "V_info"] if isbi else [])
    rows = []
    for run in runs:
        scores = run.get("isbi") or {}
        rows.append(
            [
                run["run"],
                run["architecture"] + (f" from {run['weights']}" if run["weights"] else ""),
                "-" if run["parameters"] is None else f"{run['parameters'] / 1e6:.2f} M",
                f"{run['training_images']} + {run['images']}",
                str(run["seed"]),
                f"{run['best_step']} of {run['steps']}",
                _time(run["training_seconds"]),
                _number(run["pixel_accuracy"]),
                f"**{_number(run['mean_iou'])}**",
                *(_number(run["iou"].get(name)) for name in classes),
                _number(run["foreground_f1"]),
                *([_number(scores.get("v_rand")), _number(scores.get("v_info"))] if isbi else []),
            ]
        )
    return table(head, rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first two columns are text, the others numbers."""
    rule = ["---", "---", *["---:"] * (len(head) - 2)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _repeated(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Mean and spread of what was trained with several seeds."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["same"], []).append(run)
    rows = []
    for group in groups.values():
        if len({run["seed"] for run in group}) < 2:
            continue
        cells = []
        for key in ("mean_iou", "pixel_accuracy", "foreground_f1"):
            values = np.array([run[key] for run in group])
            cells.append(f"{values.mean():.4f} ± {values.std(ddof=1):.4f}")
        rows.append([group[0]["recipe"], ", ".join(str(run["seed"]) for run in group), *cells])
    return rows


def _notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for run in runs:
        before = run["mean_iou_while_training"]
        if before is not None and abs(before - run["mean_iou"]) > 2e-3:
            lines.append(f"- {run['run']}: training itself measured a mean IoU of {before:.4f}, at its own precision.")
        if run["ended"] is False:
            lines.append(f"- {run['run']}: training has not ended.")
    commands = dict.fromkeys(run["command"] for run in runs if "command" in run)
    lines += [f"- `{command}`" for command in commands]
    return ["\n".join(lines)] if lines else []


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.4f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 120 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def draw_example(pair: Pair, classes: Sequence[ClassInfo], file: Path, caption: str, *, ignore: int) -> None:
    """Four panels side by side, of the middle of one plane: micrograph, truth, prediction, errors.

    Args:
        pair: with its image, one plane each.
        classes: their colours.
        file: the PNG to write.
        caption: below the panels.
        ignore: pixels of this true value are drawn grey and count as right.
    """
    assert pair.image is not None
    image = np.load(pair.image)
    grey = _stretch(image if image.ndim == 2 else image.mean(axis=0))
    height, width = grey.shape
    box = Box.whole((1, height, width))
    labels, truth = open_labels(pair.prediction).read(box)[0], open_labels(pair.truth).read(box)[0]
    # enough to see the whole of a small image, and pixels in the middle of a large one
    side = min(max(height, width), 2 * _PANEL)
    top, left = max(0, (height - side) // 2), max(0, (width - side) // 2)
    cut = (slice(top, top + side), slice(left, left + side))
    grey, labels, truth = grey[cut], labels[cut], truth[cut]
    wrong = error_overlay(np.where(truth == ignore, truth, labels), truth, grey)
    panels = [np.repeat(grey[..., None], 3, axis=-1), _paint(truth, classes), _paint(labels, classes), wrong]
    scale = _PANEL / max(grey.shape)
    size = (round(grey.shape[1] * scale), round(grey.shape[0] * scale))
    sheet = Pillow.new("RGB", (4 * size[0] + 3 * _GAP, size[1] + 2 * _TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for k, (panel, title) in enumerate(zip(panels, ("micrograph", "truth", "prediction", "errors"), strict=True)):
        x = k * (size[0] + _GAP)
        pen.text((x + 2, 1), title, fill="black", font=font)
        smooth = Pillow.Resampling.LANCZOS if k in (0, 3) else Pillow.Resampling.BOX
        sheet.paste(Pillow.fromarray(panel).resize(size, smooth), (x, _TEXT))
    pen.text((2, size[1] + _TEXT + 1), caption, fill="black", font=font)
    sheet.quantize(palette=_palette(classes), dither=Pillow.Dither.NONE).save(file, optimize=True)


def _palette(classes: Sequence[ClassInfo]) -> Pillow.Image:
    """Greys, the classes' colours, and those of errors over greys: with a palette a picture has a third of the bytes.

    One found by Pillow loses what is rare, and errors are.
    """
    colors = [[grey] * 3 for grey in range(0, 256, 2)]
    colors += [list(bytes.fromhex(info.color[1:])) for info in classes[:40]]
    greys = np.linspace(0, 255, 24).astype(np.uint8)[None]
    for labels, truth in ((1, 0), (0, 1), (2, 1)):
        wrong = error_overlay(np.full_like(greys, labels), np.full_like(greys, truth), greys)
        colors += wrong[0].tolist()
    palette = Pillow.new("P", (1, 1))
    palette.putpalette([value for color in colors for value in color])
    return palette


def _stretch(values: Array) -> UInt8:
    low, high = np.percentile(values, (0.5, 99.5))
    grey: UInt8 = (np.clip((values - low) / max(high - low, 1e-9), 0, 1) * 255).astype(np.uint8)
    return grey


def _paint(labels: UInt8, classes: Sequence[ClassInfo]) -> UInt8:
    """Class colours, RGB; what is no class is grey."""
    palette = np.full((256, 3), 128, np.uint8)
    for k, info in enumerate(classes):
        palette[k] = list(bytes.fromhex(info.color[1:]))
    return palette[labels]
