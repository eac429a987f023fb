"""The picture of many workers: efficiency, and how busy the one client is."""

from __future__ import annotations

from typing import Any

from benchmarks.page.goals import EFFICIENCY, WORKERS
from benchmarks.page.style import BLUE, GREY, INK, LIGHT, ORANGE, subplots


def draw_scaleout(found: dict[str, Any]) -> Any:
    """Two panels over the number of workers, on a log axis; None without measurements."""
    points = found["points"]
    if not points:
        return None
    volumes = list(dict.fromkeys(point["volume"] for point in points))
    counts = sorted({point["workers"] for point in points})
    figure, (left, right) = subplots(3.0, 2, width_ratios=(3, 2))
    for volume, colour, marker in zip(volumes, (BLUE, ORANGE), "os", strict=False):
        mine = [point for point in points if point["volume"] == volume]
        workers = [point["workers"] for point in mine]
        left.plot(workers, [point["efficiency"] for point in mine], f"{marker}-", color=colour, lw=1.8, markersize=5)
        right.plot(
            workers, [100 * point["client_busy"] for point in mine], f"{marker}-", color=colour, lw=1.8, markersize=5
        )
    for point in found["real"]:
        left.plot(point["workers"], point["efficiency"], "D", mfc="white", mec=INK, markersize=6, zorder=4)
        right.plot(point["workers"], 100 * point["client_busy"], "D", mfc="white", mec=INK, markersize=6, zorder=4)
    left.axhline(1, color=GREY, lw=1, ls="--")
    left.plot(WORKERS, EFFICIENCY, "_", color=INK, markersize=16, mew=1.6, zorder=5)
    left.annotate(
        f"aim: {EFFICIENCY} at {WORKERS}",
        (WORKERS, EFFICIENCY),
        xytext=(0, -30),
        textcoords="offset points",
        fontsize=8,
        ha="right",
        arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.8},
    )
    left.set(title="Efficiency against ideal (dashed)", ylim=(0, 1.06))
    right.axhline(100, color=GREY, lw=1, ls="--")
    right.set(title="Client and scheduler busy, %", ylim=(0, 106))
    handles = [
        left.plot([], [], f"{marker}-", color=colour, lw=1.8, markersize=5, label=f"{volume}, simulated")[0]
        for volume, colour, marker in zip(volumes, (BLUE, ORANGE), "os", strict=False)
    ]
    if found["real"]:
        label = f"{found['real'][0]['volume']}, Dask, workers that sleep"
        handles += left.plot([], [], "D", mfc="white", mec=INK, markersize=6, label=label)
    left.legend(handles=handles, loc="lower left", fontsize=8)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count}" for count in counts])
        axes.minorticks_off()
        axes.set_xlabel(f"workers of {found['pixels_per_second'] / 1e6:.0f} MP/s each")
        axes.grid(axis="y", color=LIGHT, lw=0.6)
        axes.set_axisbelow(True)
    return figure
