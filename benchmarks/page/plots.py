"""The plots of the page, each drawn from the document alone."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.page.goals import BANDWIDTH
from benchmarks.page.peers import measured_or_estimated
from benchmarks.page.plot_scaleout import draw_scaleout
from benchmarks.page.style import BLUE, GREY, INK, LIGHT, ORANGE, PURPLE, RED, SKY, STYLE, subplots

STAGES = (
    ("start", "start-up", GREY),
    ("engine", "engine", BLUE),
    ("waited_for_read", "waiting for reading", ORANGE),
    ("waited_for_blend", "waiting for blending", RED),
    ("waited_for_write", "waiting for writing", PURPLE),
)


def draw_plots(document: dict[str, Any], out: Path) -> dict[str, str]:
    """Draw what there are measurements for; file names by plot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = {name: section["found"] for name, section in document["sections"].items() if "found" in section}
    made: dict[str, str] = {}
    with mpl.rc_context(STYLE):
        for name, source, draw in (
            ("stages", "precision", _stages),
            ("bandwidth", "limits", _bandwidth),
            ("scaling", "scaling", _scaling),
            ("peers", "peers", _peers),
            ("memory", "peers", _memory),
            ("scaleout", "scaleout", draw_scaleout),
        ):
            if source not in found:
                continue
            figure = draw(found[source])
            if figure is not None:
                made[name] = f"{name}.png"
                figure.savefig(out / made[name], bbox_inches="tight", pad_inches=0.08, metadata={"Software": None})
                plt.close(figure)
    return made


def stage_shares(seconds: dict[str, float]) -> dict[str, float]:
    """Share of the process's wall time per stage, as the engine's thread sees it; ``other`` is the rest."""
    wall = seconds["process"]
    shares = {name: seconds[name] / wall for name, _, _ in STAGES if name != "start"}
    # before and after the report's own clock the process starts and ends
    shares["start"] = (seconds["start"] + wall - seconds["wall"]) / wall
    return shares | {"other": max(0.0, 1 - sum(shares.values()))}


def _stages(found: dict[str, Any]) -> Any:
    rows = [row for row in found["rows"] if "seconds" in row]
    if not rows:
        return None
    figure, axes = subplots(1.0 + 0.36 * len(rows))
    names = [f"{_ENGINES.get(row['engine'], row['engine'])} {row['precision']}" for row in rows]
    left = [0.0] * len(rows)
    for key, label, colour in (*STAGES, ("other", "the rest", LIGHT)):
        widths = [100 * stage_shares(row["seconds"])[key] for row in rows]
        bars = axes.barh(names, widths, left=left, color=colour, label=label, height=0.68, edgecolor="white", lw=0.5)
        if key == "engine":
            axes.bar_label(bars, [f"{width:.0f} %" for width in widths], label_type="center", color="white", fontsize=8)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, row in enumerate(rows):
        axes.text(101, place, f"{row['seconds']['process']:.1f} s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("per cent of the wall time of the whole command")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=6, fontsize=8, handlelength=1, columnspacing=1.1)
    return figure


_ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


def _bandwidth(found: dict[str, Any]) -> Any:
    rows = found["kernels"]
    names = {
        "copy": "copy\n(STREAM)",
        "update": "a += s b",
        "blend": "blend tiles",
        "cut": "cut tiles",
        "finish": "softmax,\nlabels",
    }
    figure, axes = subplots(2.7)
    threads = sorted({row["threads"] for row in rows})
    kernels = [name for name in names if any(row["kernel"] == name for row in rows)]
    step = 0.8 / len(threads)
    for number, count in enumerate(threads):
        rates = {row["kernel"]: row["gigabytes_per_s"] for row in rows if row["threads"] == count}
        left = [kernels.index(kernel) - 0.4 + number * step for kernel in rates]
        label = f"{count} core{'s' * (count > 1)}"
        bars = axes.bar(
            left, list(rates.values()), 0.94 * step, align="edge", label=label, color=(SKY, BLUE)[number % 2]
        )
        axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1)
        if "copy" in rates and "blend" in rates:
            place = kernels.index("blend") - 0.4 + number * step
            goal = BANDWIDTH * rates["copy"]
            axes.plot([place, place + 0.94 * step], [goal, goal], color=INK, lw=1.2)
            if number == len(threads) - 1:
                text = f"aim: {BANDWIDTH:.0%} of copy"
                axes.annotate(
                    text, (place + step, goal), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center"
                )
    axes.set_xticks(range(len(kernels)), [names[kernel] for kernel in kernels])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("bytes read and written, GB/s")
    axes.legend(loc="upper right")
    return figure


def _scaling(found: dict[str, Any]) -> Any:
    rows = found["rows"]
    figure, (left, right) = subplots(2.5, 2)
    areas = [row["megapixels"] for row in rows]
    for axes, values, title in (
        (left, [1000 * row["seconds_per_tile"] for row in rows], "Time per tile, ms"),
        (right, [row["memory_growth"] / 2**20 for row in rows], "Memory above the loaded engine, MiB"),
    ):
        axes.plot(areas, values, "o-", color=BLUE, lw=1.8, markersize=5, clip_on=False)
        for area, value in zip(areas, values, strict=True):
            axes.annotate(
                f"{value:.3g}", (area, value), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8
            )
        axes.set(xscale="log", xlabel="image, megapixels", title=title)
        axes.set_ylim(0, 1.3 * max(values))
        axes.set_xticks(areas, [f"{area:.3g}" for area in areas])
        axes.minorticks_off()
        axes.margins(x=0.08)
    return figure


def _peers(found: dict[str, Any]) -> Any:
    size = found["sizes"][-1]
    known = {name: measured_or_estimated(row, size) for name, row in found["rows"].items()}
    speeds = {name: (entry["megapixels_per_s"], mark) for name, (entry, mark) in known.items() if entry is not None}
    if not speeds:
        return None
    order = sorted(speeds, key=lambda name: -speeds[name][0])
    figure, axes = subplots(0.6 + 0.27 * len(speeds))
    for place, name in enumerate(order):
        value, mark = speeds[name]
        ours = name.startswith("tilelab")
        look = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"} if mark else {"color": BLUE if ours else GREY}
        axes.barh(place, value, height=0.7, **look)
        axes.text(value, place, f"  {mark}{value:.2f}", va="center", fontsize=8, weight="bold" if ours else "normal")
    axes.set_yticks(range(len(order)), order)
    for label, name in zip(axes.get_yticklabels(), order, strict=True):
        label.set_fontweight("bold" if name.startswith("tilelab") else "normal")
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    note = "; hatched: estimated from smaller planes" if any(mark for _, mark in speeds.values()) else ""
    axes.set_xlabel(f"megapixels per second, whole process, {size} pixels{note}")
    return figure


def _memory(found: dict[str, Any]) -> Any:
    from matplotlib.ticker import FuncFormatter, LogLocator

    lines = {}
    for name, row in found["rows"].items():
        points = []
        for size in row["sizes"]:
            known, mark = measured_or_estimated(row, size)
            if known is not None:
                height, _, width = size.partition(" x ")
                points.append((int(height) * int(width) / 1e6, max(1.0, known["growth"] / 1e6), mark))
        if points:
            lines[name] = sorted(points)
    if not lines:
        return None
    figure, axes = subplots(4.2)
    for name, points in lines.items():
        ours = name.startswith("tilelab")
        look = {"color": BLUE if ours else GREY, "lw": 2 if ours else 1, "zorder": 2 + ours}
        for (x0, y0, _), (x1, y1, mark) in pairwise(points):
            axes.plot([x0, x1], [y0, y1], "--" if mark else "-", **look)
        for x, y, mark in points:
            axes.plot(x, y, "o", markersize=4.5, mfc="white" if mark else look["color"], mec=look["color"], zorder=4)
    estimated = any(mark for points in lines.values() for *_, mark in points)
    note = "; dashed: estimated from smaller planes" if estimated else ""
    axes.set(xscale="log", yscale="log", ylabel="memory above the loaded network, MB")
    axes.set_xlabel(f"image, megapixels{note}")
    areas = sorted({x for points in lines.values() for x, *_ in points})
    axes.set_xticks(areas, [f"{area:.3g}" for area in areas])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.minorticks_off()
    _name_lines(axes, {name: points[-1][:2] for name, points in lines.items()})
    return figure


def _name_lines(axes: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Names at the right, beside the ends of the lines and apart from each other; thin leaders show what is whose."""
    labels: dict[str, tuple[float, float]] = {}
    ours: dict[str, list[str]] = {}
    for name, end in ends.items():
        words, _, tile = name.partition(", ")
        group = f"tilelab, {tile or 'tile as the others'}" if name.startswith("tilelab") else name
        labels.setdefault(group, end)
        if group != name:
            ours.setdefault(group, []).append(words.removeprefix("tilelab "))
    right = max(x for x, _ in ends.values())
    low, high = (math.log(limit) for limit in axes.get_ylim())
    gap = (high - low) / max(18, len(labels))
    places: dict[str, float] = {}
    for name, (_, y) in sorted(labels.items(), key=lambda label: label[1][1]):
        places[name] = max([math.log(y), *(place + gap for place in places.values())])
    top = high
    for name in reversed(places):  # none above the axes
        places[name] = min(places[name], top)
        top = places[name] - gap
    for name, end in labels.items():
        axes.annotate(
            f"{name}: {', '.join(ours[name])}" if name in ours else name,
            end,
            xytext=(1.15 * right, math.exp(places[name])),
            fontsize=8,
            va="center",
            color=BLUE if name in ours else INK,
            weight="bold" if name in ours else "normal",
            arrowprops={"arrowstyle": "-", "color": GREY, "lw": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )
