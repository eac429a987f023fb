"""The log of a training: one row per validation as CSV, the same for TensorBoard, and a picture of the curves.

Where training resumes, rows beyond its checkpoint are cut off, so that the log reads as if nothing had happened.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilelab.machine.disk import replacing

CSV, CURVES, EVENTS = "log.csv", "curves.png", "tensorboard"
_MOST_NAMED = 16  # curves
BEST, LAST, ENCODER = "best.safetensors", "last.safetensors", "encoder.safetensors"


class TrainingLog:
    """Writes into a folder.

    Args:
        folder: where.
        scores: names of the scores, one column each.
        after: keep rows up to this step of an earlier, interrupted run; 0 begins anew.
    """

    def __init__(self, folder: Path, scores: Sequence[str], after: int):
        self.folder = folder
        self.path = folder / CSV
        self.columns = ["step", "loss", "rate", *scores]
        self.rows: list[dict[str, Any]] = []
        if after and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if (row["step"] or "").isdigit()]
            self.rows = [row for row in rows if int(row["step"]) <= after]
        with replacing(self.path) as whole, whole.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.events = _open_events(folder / EVENTS, after)

    def write(self, step: int, loss: float, rate: float, scores: Mapping[str, float | None]) -> None:
        """Append one row; it is on disk when this returns."""
        row: dict[str, Any] = {"step": step, "loss": f"{loss:.6f}", "rate": f"{rate:.3g}", **scores}
        self.rows.append(row)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)
        if self.events is not None:
            for name in self.columns[1:]:
                if row[name] is not None:
                    self.events.add_scalar(name.replace(" ", "/", 1), float(row[name]), step)
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
    """Loss and scores over the steps, as a PNG; nothing where matplotlib is not installed.

    Of the scores (from the fourth column on) the decisive first one is drawn thick, and those of each class.
    """
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
    for name in (columns[3], *(c for c in columns[4:] if " " in c)):
        values = [float(row[name]) if row[name] not in (None, "") else float("nan") for row in rows]
        style = {"color": "black", "linewidth": 2} if name == columns[3] else {}
        right.plot(steps, values, marker=".", label=name.replace("_", " ").replace("iou", "IoU"), **style)
    right.set(xlabel="step", ylabel="on validation", ylim=(0, 1))
    if len(right.lines) <= _MOST_NAMED:  # more names would cover the curves, and then the page
        right.legend(loc="lower right", fontsize="small")
    with replacing(path) as whole:
        figure.savefig(whole, dpi=110, format="png")
