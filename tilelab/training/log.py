"""The log of a training: one row per validation as CSV, the same for TensorBoard, and a picture of the curves.

Where training resumes, rows beyond its checkpoint are cut off, so that the log reads as if nothing had happened.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CSV, CURVES, EVENTS = "log.csv", "curves.png", "tensorboard"


class TrainingLog:
    """Writes into a folder.

    Args:
        folder: where.
        classes: class names, one IoU column each.
        after: keep rows up to this step of an earlier, interrupted run; 0 begins anew.
    """

    def __init__(self, folder: Path, classes: Sequence[str], after: int):
        self.folder = folder
        self.path = folder / CSV
        self.columns = ["step", "loss", "rate", "mean_iou", "image_mean_iou", "pixel_accuracy"]
        self.columns += [f"iou {name}" for name in classes]
        self.rows: list[dict[str, Any]] = []
        if after and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row["step"] or "").isdigit()]
            self.rows = [row for row in rows if int(row["step"]) <= after]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.events = _open_events(folder / EVENTS, after)

    def write(self, step: int, loss: float, rate: float, scores: dict[str, Any]) -> None:
        """Append one row; it is on disk when this returns."""
        row = {
            "step": step,
            "loss": f"{loss:.6f}",
            "rate": f"{rate:.3g}",
            **{key: scores[key] for key in ("mean_iou", "image_mean_iou", "pixel_accuracy")},
            **{f"iou {name}": value for name, value in scores["iou"].items()},
        }
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        if self.events is not None:
            for name in self.columns[1:]:
                if row[name] is not None:
                    self.events.add_scalar(name.replace("iou ", "iou/"), float(row[name]), step)
            self.events.flush()
        draw_curves(self.folder / CURVES, self.rows, self.columns)

    def close(self) -> None:
        """Close the event file."""
        if self.events is not None:
            self.events.close()


def _open_events(folder: Path, after: int) -> Any:
    """A TensorBoard writer that goes on after a step, or None where tensorboard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=after + 1)


def draw_curves(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Loss, and scores by class, over the steps, as a PNG; nothing where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return
    steps = [int(row["step"]) for row in rows]
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.plot(steps, [float(row["loss"]) for row in rows], marker=".", color="black")
    left.set(xlabel="step", ylabel="training loss")
    for name in ("mean_iou", *(c for c in columns if c.startswith("iou "))):
        values = [float(row[name]) if row[name] not in (None, "") else float("nan") for row in rows]
        style = {"color": "black", "linewidth": 2} if name == "mean_iou" else {}
        right.plot(steps, values, marker=".", label=name.removeprefix("iou ").replace("_iou", " IoU"), **style)
    right.set(xlabel="step", ylabel="IoU on validation", ylim=(0, 1))
    right.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=110)
