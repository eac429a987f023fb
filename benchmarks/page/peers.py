"""The page's part on peers."""

from __future__ import annotations

from typing import Any

from benchmarks.page.markdown import paragraph, picture, table

YARDSTICK = "MONAI gaussian"


def peers(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    """Speed, memory, agreement and settings of all."""
    limit = found["memory_limit"] / 1e9
    sizes = found["sizes"]
    lost = f"on {found['kill']}" if found["kill"] else "(not in this set)"
    return [
        *paragraph(
            f"Same weights (U-Net, ResNet-18 encoder, {found['data']}), same image, tile {found['tile']}, overlap",
            f"{found['overlap']}, one tile per batch, each in a process of its own from start to finished result on",
            "disk. Peers write a plain array of labels; tilelab writes labels and probabilities with all pyramid",
            "levels. Where a peer does not read the image's format, it is converted before, off the clock.",
            "**~ marks an estimate** from the smaller planes (a start, and so much for each tile), for want of time.",
        ),
        *table(["", *(f"{size}, s (MP/s)" for size in sizes), "times MONAI's speed"], _speeds(found)),
        *picture(pictures, "peers", "Speed of all on the largest plane"),
        *paragraph(
            "Memory above the loaded network in MB, its growth per pixel, whether the largest plane finishes within",
            f"{limit:.0f} GB, and what SIGKILL at half time costs {lost}: seconds lost of seconds undisturbed, the",
            "same command given again.",
        ),
        *table(
            ["", *(f"{size}, MB" for size in sizes), "bytes per pixel", f"within {limit:.0f} GB", "lost when killed"],
            _memories(found),
        ),
        *picture(pictures, "memory", "Memory above the loaded network as the image grows"),
        *paragraph(
            f"Against fp32 inference of the whole image at once ({found['whole']}): labels, mean IoU with it,",
            "probabilities. A seam is a jump of that difference from one line of pixels to the next: the largest, and",
            "how many times the usual.",
        ),
        *table(
            ["", "labels agree", "mean IoU", "mean difference", "largest", "largest seam", "times the usual"],
            _qualities(found),
        ),
        *table(["", "settings", "versions"], _settings(found), 3),
    ]


def measured_or_estimated(row: dict[str, Any], size: str) -> tuple[dict[str, Any] | None, str]:
    """What is known of a contender on a plane, with ``~`` when it is an estimate; None and why not."""
    entry = row["sizes"].get(size)
    if entry is None:
        return None, row["missing"] or "-"
    if entry["finished"]:
        return entry, ""
    if entry.get("estimate", {}).get("from"):
        return entry["estimate"], "~"
    return None, entry["reason"]


def bytes_per_pixel(row: dict[str, Any]) -> float | None:
    """Growth of memory per pixel of one contender: from the smallest to the largest plane that it finished."""
    points = []
    for size, measured in row["sizes"].items():
        if measured["finished"]:
            height, _, width = size.partition(" x ")
            points.append((int(height) * int(width), measured["growth"]))
    if not points:
        return None
    (small, first), (large, last) = min(points), max(points)
    return float((last - first) / (large - small) if large > small else last / large)


def speedup(found: dict[str, Any], name: str, size: str, base: str = YARDSTICK) -> str:
    """How many times the speed of `base`, with ``~`` where either is an estimate; ``-`` when unknown."""
    one, mark = measured_or_estimated(found["rows"].get(name, {"sizes": {}, "missing": "-"}), size)
    other, unsure = measured_or_estimated(found["rows"].get(base, {"sizes": {}, "missing": "-"}), size)
    if one is None or other is None:
        return "-"
    return f"{'~' if mark or unsure else ''}{other['seconds'] / one['seconds']:.2f}"


def best_peer(found: dict[str, Any], size: str) -> str:
    """The fastest of the yardstick's own variants, whatever its precision; the yardstick where no other is known."""
    rows = found["rows"]
    known = {name: measured_or_estimated(row, size)[0] for name, row in rows.items() if name.startswith(YARDSTICK)}
    seconds = {name: entry["seconds"] for name, entry in known.items() if entry is not None}
    return min(seconds, key=lambda name: seconds[name], default=YARDSTICK)


def _speeds(found: dict[str, Any]) -> list[list[str]]:
    sizes, rows = found["sizes"], []
    for name, row in found["rows"].items():
        if row["missing"]:
            rows.append([name, row["missing"], *["-"] * len(sizes)])
            continue
        cells = []
        for size in sizes:
            known, mark = measured_or_estimated(row, size)
            cells.append(
                mark if known is None else f"{mark}{known['seconds']:.1f} ({mark}{known['megapixels_per_s']:.2f})"
            )
        rows.append([name, *cells, speedup(found, name, sizes[-1])])
    return rows


def _memories(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, row in found["rows"].items():
        if row["missing"]:
            continue
        cells = []
        for size in found["sizes"]:
            known, mark = measured_or_estimated(row, size)
            cells.append("-" if known is None else f"{mark}{known['growth'] / 1e6:.0f}")
        slope = bytes_per_pixel(row)
        kill = row.get("kill", {})
        lost = kill.get("lost")
        rows.append(
            [
                name,
                *cells,
                "-" if slope is None else f"{slope:.2f}",
                _finishes(row, found["sizes"][-1], found["memory_limit"]),
                "-" if lost is None else f"{lost:.1f} of {kill['undisturbed']:.1f}",
            ]
        )
    return rows


def _finishes(row: dict[str, Any], size: str, limit: int) -> str:
    """Whether a plane is finished within the limit of memory."""
    known, mark = measured_or_estimated(row, size)
    if known is None:
        return f"no: {mark}"
    if mark:
        return "~yes" if known["growth"] < limit else "~no"
    return "yes"


def _qualities(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, row in found["rows"].items():
        if "whole" in row:
            whole = row["whole"]
            rows.append(
                [
                    name,
                    f"{whole['agreement']:.5f}",
                    f"{whole['mean_iou']:.4f}",
                    f"{whole['mean_probability_difference']:.5f}",
                    f"{whole['largest_probability_difference']:.3f}",
                    f"{whole['seam']['largest']:.5f}",
                    f"{whole['seam']['largest'] / max(1e-12, whole['seam']['usual']):.1f}",
                ]
            )
    return rows


def _settings(found: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, row in found["rows"].items():
        told = next((m for m in row["sizes"].values() if m["finished"]), None)
        if told:
            versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
            rows.append([name, told["settings"], versions])
    return rows
