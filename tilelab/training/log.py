"""The log of a training as CSV: one row per validation, appended, cut back to the checkpoint when training resumes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "log.csv"


class TrainingLog:
    """Writes ``log.csv`` in a folder.

    Args:
        folder: where.
        classes: class names, one IoU column each.
        after: keep rows up to this step of an earlier, interrupted run; 0 begins anew.
    """

    def __init__(self, folder: Path, classes: Sequence[str], after: int):
        self.path = folder / FILE
        self.columns = ["step", "loss", "rate", "mean_iou", "image_mean_iou", "pixel_accuracy"]
        self.columns += [f"iou {name}" for name in classes]
        kept: list[dict[str, str]] = []
        if after and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                kept = [row for row in csv.DictReader(file) if row["step"].isdigit() and int(row["step"]) <= after]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(kept)

    def write(self, step: int, loss: float, rate: float, scores: dict[str, Any]) -> None:
        """Append one row; it is on disk when this returns."""
        row = {
            "step": step,
            "loss": f"{loss:.6f}",
            "rate": f"{rate:.3g}",
            **{key: scores[key] for key in ("mean_iou", "image_mean_iou", "pixel_accuracy")},
            **{f"iou {name}": value for name, value in scores["iou"].items()},
        }
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
