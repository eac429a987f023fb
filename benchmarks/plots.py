"""The plots of the page, each drawn from the document alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STAGES = (
    ("start", "start-up", "#9e9e9e"),
    ("engine", "engine", "#3b7dd8"),
    ("waited_for_read", "waiting for reading", "#f5a623"),
    ("waited_for_blend", "waiting for blending", "#d0021b"),
    ("waited_for_write", "waiting for writing", "#7b4fb5"),
)
OURS, THEIRS = "#3b7dd8", "#9e9e9e"


def draw_plots(document: dict[str, Any], out: Path) -> dict[str, str]:
    """Draw what there are measurements for; file names by plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})
    found = {name: section["found"] for name, section in document["sections"].items() if "found" in section}
    made: dict[str, str] = {}
    for name, source, draw in (
        ("stages", "precision", _stages),
        ("bandwidth", "limits", _bandwidth),
        ("scaling", "scaling", _scaling),
        ("peers", "peers", _peers),
        ("memory", "peers", _memory),
    ):
        if source not in found:
            continue
        figure = draw(found[source])
        if figure is not None:
            made[name] = f"{name}.png"
            figure.savefig(out / made[name], bbox_inches="tight", metadata={"Software": None})
    return made


def stage_shares(seconds: dict[str, float]) -> dict[str, float]:
    """Share of the process's wall time per stage, as the engine's thread sees it; ``other`` is the rest."""
    wall = seconds["process"]
    shares = {name: seconds[name] / wall for name, _, _ in STAGES if name != "start"}
    # before and after the report's own clock the process starts and ends
    shares["start"] = (seconds["start"] + wall - seconds["wall"]) / wall
    return shares | {"other": max(0.0, 1 - sum(shares.values()))}


def _figure(height: float, width: float = 7.5) -> Any:
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")


def _stages(found: dict[str, Any]) -> Any:
    rows = [row for row in found["rows"] if "seconds" in row]
    if not rows:
        return None
    figure, axes = _figure(0.9 + 0.42 * len(rows))
    names = [f"{row['engine']} {row['precision']}" for row in rows]
    left = [0.0] * len(rows)
    for key, label, colour in (*STAGES, ("other", "the rest", "#d9d9d9")):
        widths = [100 * stage_shares(row["seconds"])[key] for row in rows]
        axes.barh(names, widths, left=left, color=colour, label=label, height=0.65)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("per cent of the wall time of `tilelab infer`, as the engine's thread sees it")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    return figure


def _bandwidth(found: dict[str, Any]) -> Any:
    rows = found["kernels"]
    figure, axes = _figure(2.6)
    threads = sorted({row["threads"] for row in rows})
    kernels = list(dict.fromkeys(row["kernel"] for row in rows))
    step = 0.8 / len(threads)
    for number, count in enumerate(threads):
        rates = {row["kernel"]: row["gigabytes_per_s"] for row in rows if row["threads"] == count}
        places = [kernels.index(kernel) + number * step for kernel in rates]
        bars = axes.bar(
            places, rates.values(), step, label=f"{count} core{'s' * (count > 1)}", color=("#9dc3f0", OURS)[number % 2]
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=7)
    axes.set_xticks([k + step * (len(threads) - 1) / 2 for k in range(len(kernels))], kernels)
    axes.set_ylabel("GB/s")
    axes.legend(frameon=False)
    return figure


def _scaling(found: dict[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    rows = found["rows"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.7), layout="constrained")
    areas = [row["megapixels"] for row in rows]
    left.plot(areas, [1000 * row["seconds_per_tile"] for row in rows], "o-", color=OURS)
    left.set(xscale="log", xlabel="megapixels", ylabel="ms per tile")
    left.set_ylim(0, 1.25 * max(1000 * row["seconds_per_tile"] for row in rows))
    right.plot(areas, [row["memory_growth"] / 2**20 for row in rows], "o-", color=OURS)
    right.set(xscale="log", xlabel="megapixels", ylabel="MiB above the loaded engine")
    right.set_ylim(0, 1.25 * max(row["memory_growth"] / 2**20 for row in rows))
    for axes in (left, right):
        axes.set_xticks(areas, [f"{area:.3g}" for area in areas])
        axes.minorticks_off()
    return figure


def _peers(found: dict[str, Any]) -> Any:
    size = found["sizes"][-1]
    rows = {name: row["sizes"].get(size) for name, row in found["rows"].items()}
    speeds = {name: row["megapixels_per_s"] for name, row in rows.items() if row and row["finished"]}
    if not speeds:
        return None
    figure, axes = _figure(0.7 + 0.3 * len(speeds))
    bars = axes.barh(
        list(speeds), list(speeds.values()), color=[OURS if name.startswith("tilelab") else THEIRS for name in speeds]
    )
    axes.bar_label(bars, fmt=" %.2f", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(f"megapixels per second, whole process, {size} pixels")
    return figure


def _memory(found: dict[str, Any]) -> Any:
    figure, axes = _figure(3.6)
    drawn = False
    for name, row in found["rows"].items():
        points = [
            (int(size.split(" x ")[0]) * int(size.split(" x ")[1]) / 1e6, measured["growth"] / 1e6)
            for size, measured in row["sizes"].items()
            if measured["finished"]
        ]
        if points:
            drawn = True
            ours = name.startswith("tilelab")
            axes.plot(*zip(*points, strict=True), "o-", label=name, lw=2.5 if ours else 1, markersize=4)
    if not drawn:
        return None
    axes.set(xscale="log", yscale="log", xlabel="megapixels", ylabel="MB above the loaded network")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
