"""The page: every measurement as a table with a line of what it means, from the document alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite import SUITE

MIB = 2**20
YARDSTICK = "MONAI gaussian"


def write_page(document: dict[str, Any], path: Path, pictures: dict[str, str]) -> None:
    """Write the Markdown page; `pictures` are file names by plot."""
    sections = document["sections"]
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks`; do not edit.", ""]
    lines += _machines(sections)
    for name, entry in SUITE.items():
        if name not in sections:
            continue
        section = sections[name]
        lines += [f"## {entry.title}", ""]
        if "failed" in section:
            lines += [f"Failed: {section['failed']}", ""]
        else:
            lines += _BODIES[name](section["found"], pictures)
        lines += _made(section)
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text: int = 1) -> list[str]:
    """A Markdown table; the first `text` columns are text, the others are numbers."""
    lines = [f"| {' | '.join(header)} |", "|---" * text + "|---:" * (len(header) - text) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _text(*parts: str) -> list[str]:
    """A paragraph."""
    return [" ".join(parts), ""]


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


def _machines(sections: dict[str, Any]) -> list[str]:
    """The machine once, when all sections were measured on the same."""
    lines = []
    for text in dict.fromkeys(json.dumps(section["machine"]) for section in sections.values()):
        machine = json.loads(text)
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        hardware = f"{machine['processor']}; {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
        lines += [f"{hardware}; {machine['system']}; Python {machine['python']}; {versions}.", ""]
    return lines


def _made(section: dict[str, Any]) -> list[str]:
    """How a section was measured."""
    busy = section["load_before"] > 0.5
    note = f" **The machine was busy (load {section['load_before']:.1f}): times are noisy.**" if busy else ""
    first = f"<sub>Scale {section['scale']}, commit {section['commit'] or 'unknown'}, {section['began']}, "
    lines = [f"{first}{section['seconds']:.0f} s.{note}</sub>", ""]
    if section["commands"]:
        lines += ["<details><summary>Commands</summary>", "", "```", *section["commands"], "```", "</details>", ""]
    return lines


def _picture(pictures: dict[str, str], name: str, text: str) -> list[str]:
    return [f"![{text}]({pictures[name]})", ""] if name in pictures else []


def _efficiency(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:  # noqa: ARG001 - has no plot
    seconds, engine = found["seconds"], found["engine"]
    size = " x ".join(map(str, found["image"]))
    what = f"{size} pixels ({found['tiles']['inferred']} tiles, {engine['name']} {engine['precision']})"
    lines = _text(
        f"`tilelab infer` on {what} against a process that loads the same engine and runs as many batches on noise:",
        "no image, no tiling, no result.",
    )
    lines += table(
        ["", "tilelab", "bare engine", "ratio"],
        [
            ["whole process, s", f"{seconds['tilelab']:.2f}", f"{seconds['bare']:.2f}", f"{found['ratio']:.3f}"],
            [
                "start-up aside, s",
                f"{seconds['tilelab_sweep']:.2f}",
                f"{seconds['bare_loop']:.2f}",
                f"{found['ratio_without_start']:.3f}",
            ],
        ],
    )
    memory = f"{found['memory_above_engine'] / MIB:.0f} MiB above the loaded engine"
    text = f"{found['megapixels_per_s']:.2f} MP/s. Memory: {memory}"
    if "tall" in found:
        tall = found["tall"]
        size = " x ".join(map(str, tall["image"]))
        text += f", {tall['memory_above_engine'] / MIB:.0f} MiB on {size} ({tall['megapixels_per_s']:.2f} MP/s)"
    return [*lines, text + ".", ""]


def _precision(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    rows = []
    for row in found["rows"]:
        name = f"{row['engine']} {row['precision']}"
        if "missing" in row:
            rows.append([name, *["-"] * 5, row["missing"]])
            continue
        rows.append(
            [
                name,
                f"{row['seconds']['process']:.1f}",
                f"{row['megapixels_per_s']:.2f}",
                f"{row['bare_megapixels_per_s']:.2f}",
                f"{row['agreement']:.5f}",
                f"{row['mean_iou']:.4f}",
                f"{row['memory_growth'] / MIB:.0f}",
            ]
        )
    size = " x ".join(map(str, found["image"]))
    header = [
        "engine",
        "s",
        "MP/s",
        "bare engine, MP/s of tiles",
        "labels as the first",
        "mean IoU",
        "MiB above engine",
    ]
    return [
        *_text(
            f"A U-Net with a ResNet-18 encoder on {size} pixels; trained briefly on {found['data']}. Times are of",
            "whole processes; labels are compared with those of OpenVINO in fp32, the score is against the truth.",
        ),
        *table(header, rows),
        *_picture(pictures, "stages", "Share of the wall time per stage"),
    ]


def _limits(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    meaning = {
        "copy": "float32, 8 bytes per value: what STREAM calls copy",
        "update": "a += s * b, 12 bytes per value: what blending does, without tiles",
        "blend": f"tiles onto the canvas, {found['classes']} classes",
        "cut": "uint8 rows to normalised tiles",
        "finish": "canvas to labels and softmax probabilities",
    }
    kernels = [
        [
            row["kernel"],
            str(row["threads"]),
            f"{row['gigabytes_per_s']:.1f}",
            f"{row['share_of_copy']:.0%}",
            f"{row['share_of_update']:.0%}",
            f"{row['megapixels_per_s']:.0f}",
            meaning[row["kernel"]],
        ]
        for row in found["kernels"]
    ]
    formats = [
        [
            row["format"],
            f"{row['decode_megapixels_per_s']:.0f}",
            f"{row['encode_megapixels_per_s']:.0f}",
            f"{row['bytes_per_pixel']:.2f}",
        ]
        for row in found["formats"]
    ]
    return [
        "Bytes that a kernel must at least read and write, per second, on arrays larger than the caches.",
        "",
        *table(["kernel", "cores", "GB/s", "of copy", "of update", "MP/s", ""], kernels),
        *_picture(pictures, "bandwidth", "Memory bandwidth of the kernels"),
        "Formats, through tilelab's own readers and writers, uint8 micrographs; pyramids write a third more pixels.",
        "",
        *table(["format", "decode, MP/s", "encode, MP/s", "bytes per pixel"], formats),
    ]


def _scaling(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    rows = found["rows"]
    per_tile = [row["seconds_per_tile"] for row in rows]
    growth = [row["memory_growth"] for row in rows]
    body = [
        [
            " x ".join(map(str, row["image"])),
            f"{row['megapixels']:.1f}",
            str(row["tiles"]),
            f"{row['seconds']:.2f}",
            f"{row['sweep_seconds']:.2f}",
            f"{1000 * row['seconds_per_tile']:.1f}",
            f"{row['memory_growth'] / MIB:.0f}",
        ]
        for row in rows
    ]
    return [
        *_text(
            f"`tilelab infer {' '.join(found['words'])}`. Seconds per tile differ by",
            f"{max(per_tile) / min(per_tile) - 1:.1%} over all sizes, by {abs(per_tile[-1] / per_tile[-2] - 1):.1%}",
            f"between the two largest; the most memory is {max(growth) / max(1, min(growth)):.2f} times the least.",
        ),
        *table(["image", "MP", "tiles", "process, s", "sweep, s", "ms per tile", "MiB above engine"], body),
        *_picture(pictures, "scaling", "Time per tile and memory as the image grows"),
    ]


def _peers(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    limit = found["memory_limit"] / 1e9
    sizes = found["sizes"]
    speed, memory, quality, settings = [], [], [], []
    base = found["rows"].get(YARDSTICK, {"sizes": {}})["sizes"]
    for name, row in found["rows"].items():
        if row["missing"]:
            speed.append([name, row["missing"], *["-"] * len(sizes)])
            continue
        cells, peaks = [], []
        for size in sizes:
            measured = row["sizes"][size]
            if not measured["finished"]:
                cells.append(measured["reason"])
                peaks.append("-")
                continue
            cells.append(f"{measured['seconds']:.1f} s, {measured['megapixels_per_s']:.2f} MP/s")
            peaks.append(f"{measured['growth'] / 1e6:.0f}")
        last, yardstick = row["sizes"][sizes[-1]], base.get(sizes[-1])
        both = last["finished"] and yardstick and yardstick["finished"]
        speed.append([name, *cells, f"{yardstick['seconds'] / last['seconds']:.2f}" if both else "-"])
        slope = bytes_per_pixel(row)
        kill = row.get("kill", {})
        lost = kill.get("lost")
        memory.append(
            [
                name,
                *peaks,
                "-" if slope is None else f"{slope:.2f}",
                "-" if lost is None else f"{lost:.1f} of {kill['undisturbed']:.1f}",
            ]
        )
        if "whole" in row:
            whole = row["whole"]
            quality.append(
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
        told = next((m for m in row["sizes"].values() if m["finished"]), None)
        if told:
            versions = ", ".join(f"{package} {version}" for package, version in told["versions"].items())
            settings.append([name, told["settings"], versions])
    return [
        *_text(
            f"Same weights (U-Net, ResNet-18 encoder, trained briefly on {found['data']}), same image, tile",
            f"{found['tile']}, overlap {found['overlap']}, one tile per batch, each in a process of its own from start",
            "to finished result on disk. Peers write a plain array of labels; tilelab writes labels and probabilities",
            "with all pyramid levels. Where a peer does not read the image's format, it is converted before, off the",
            "clock.",
        ),
        *table(["", *sizes, "times MONAI's speed"], speed),
        *_picture(pictures, "peers", "Speed of all on the largest plane"),
        *_text(
            "Memory above the loaded network in MB, its growth per pixel, and what SIGKILL at half time costs",
            f"on {found['kill']}" if found["kill"] else "(not in this set)",
            "(s lost of s undisturbed, the same command given again).",
            f"More than {limit:.0f} GB counts as not finished.",
        ),
        *table(["", *[f"{size}, MB" for size in sizes], "bytes per pixel", "lost when killed"], memory),
        *_picture(pictures, "memory", "Memory above the loaded network as the image grows"),
        *_text(
            f"Against fp32 inference of the whole image at once ({found['whole']}): labels, mean IoU with it,",
            "probabilities. A seam is a jump of that difference from one line of pixels to the next: the largest, and",
            "how many times the usual.",
        ),
        *table(
            ["", "labels agree", "mean IoU", "mean difference", "largest", "largest seam", "times the usual"], quality
        ),
        *table(["", "settings", "versions"], settings, 3),
    ]


_BODIES: dict[str, Callable[[dict[str, Any], dict[str, str]], list[str]]] = {
    "efficiency": _efficiency,
    "precision": _precision,
    "limits": _limits,
    "scaling": _scaling,
    "peers": _peers,
}
