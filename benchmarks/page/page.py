"""The page: every measurement as a table with a line of what it means, from the document alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.page.goals import goals
from benchmarks.page.markdown import busy, paragraph, picture, table
from benchmarks.page.peers import peers
from benchmarks.page.scaleout import scaleout
from benchmarks.registry import SUITE
from tilelab.text import size_text

MIB = 2**20


def write_page(document: dict[str, Any], path: Path, pictures: dict[str, str]) -> None:
    """Write the Markdown page; `pictures` are file names by plot."""
    sections = document["sections"]
    lines = [f"# Benchmarks: {path.parent.name}", "", "Written by `python -m benchmarks`; do not edit.", ""]
    lines += _machines(sections)
    lines += _goals(document)
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


def _machines(sections: dict[str, Any]) -> list[str]:
    """The machine once, when all sections were measured on the same."""
    lines = []
    for text in dict.fromkeys(json.dumps(section["machine"]) for section in sections.values()):
        machine = json.loads(text)
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        hardware = f"{machine['processor']}; {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
        lines += [f"{hardware}; {machine['system']}; Python {machine['python']}; {versions}.", ""]
    return lines


def _goals(document: dict[str, Any]) -> list[str]:
    rows = [[goal.what, goal.aim, goal.measured, "yes" if goal.reached else "**no**"] for goal in goals(document)]
    return ["## What was aimed at", "", *table(["", "aim", "measured", "reached"], rows)] if rows else []


def _made(section: dict[str, Any]) -> list[str]:
    """How a section was measured."""
    words = busy(section)
    note = f" **{words[0].upper()}{words[1:]}: times are noisy.**" if words else ""
    first = f"<sub>Scale {section['scale']}, commit {section['commit'] or 'unknown'}, {section['began']}, "
    lines = [f"{first}{section['seconds']:.0f} s.{note}</sub>", ""]
    if section["commands"]:
        lines += ["<details><summary>Commands</summary>", "", "```", *section["commands"], "```", "</details>", ""]
    return lines


def _efficiency(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:  # noqa: ARG001 - has no plot
    seconds, engine = found["seconds"], found["engine"]
    size = size_text(found["image"])
    what = f"{size} pixels ({found['tiles']['inferred']} tiles, {engine['name']} {engine['precision']})"
    lines = paragraph(
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
    twice = f" ({found['computed']:.2f} pixels computed for each)" if "computed" in found else ""
    text = f"{found['megapixels_per_s']:.2f} MP/s of the image{twice}. Memory: {memory}"
    if "tall" in found:
        tall = found["tall"]
        size = size_text(tall["image"])
        text += f", {tall['memory_above_engine'] / MIB:.0f} MiB on {size} ({tall['megapixels_per_s']:.2f} MP/s)"
    return [*lines, text + ".", ""]


def _bare(row: dict[str, Any]) -> tuple[str, str]:
    """The bare engine's speed in pixels of the image, and how many it computes for each."""
    if "computed" not in row:
        return "-", "-"
    return f"{row['bare_megapixels_per_s'] / row['computed']:.2f}", f"{row['computed']:.2f}"


def _limit(row: dict[str, Any]) -> tuple[str, str, str]:
    """The limit with its tile; the run's share of it, start-up aside; what share of the best product the limit is."""
    if "limit_megapixels_per_s" not in row:
        return "-", "-", "-"
    product = row["of_product"]
    return (
        f"{row['limit_megapixels_per_s']:.2f} ({row['limit_tile']})",
        f"{row['sweep_of_limit']:.2f}",
        "-" if product is None else f"{product:.2f}",
    )


def _precision(found: dict[str, Any], pictures: dict[str, str]) -> list[str]:
    rows = []
    for row in found["rows"]:
        name = f"{row['engine']} {row['precision']}"
        if "missing" in row:
            rows.append([name, *["-"] * 9, row["missing"]])
            continue
        rows.append(
            [
                name,
                f"{row['seconds']['process']:.1f}",
                f"{row['megapixels_per_s']:.2f}",
                *_bare(row),
                *_limit(row),
                f"{row['agreement']:.5f}",
                f"{row['mean_iou']:.4f}",
                f"{row['memory_growth'] / MIB:.0f}",
            ]
        )
    size = size_text(found["image"])
    header = [
        "engine",
        "s",
        "MP/s",
        "bare engine, MP/s",
        "computed for each pixel",
        "limit, MP/s (tile)",
        "of the limit",
        "of the best product",
        "labels as the first",
        "mean IoU",
        "MiB above engine",
    ]
    return [
        *paragraph(
            f"A U-Net with a ResNet-18 encoder on {size} pixels; {found['data']}. Times are of whole",
            "processes; labels are compared with those of OpenVINO in fp32, the score is against the truth. MP/s are",
            "pixels of the image; the bare engine computes the same tiles, so some pixels several times. The limit is",
            "what the bare engine reaches with its best tile, each pixel computed once; beside it the run's share,",
            "start-up aside, and what share of the machine's best matrix product the limit is.",
        ),
        *table(header, rows),
        *picture(pictures, "stages", "Share of the wall time per stage"),
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
        *picture(pictures, "bandwidth", "Memory bandwidth of the kernels"),
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
            size_text(row["image"]),
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
        *paragraph(
            f"`tilelab infer {' '.join(found['words'])}`. Seconds per tile differ by",
            f"{max(per_tile) / min(per_tile) - 1:.1%} over all sizes, by {abs(per_tile[-1] / per_tile[-2] - 1):.1%}",
            f"between the two largest; the most memory is {max(growth) / max(1, min(growth)):.2f} times the least.",
        ),
        *table(["image", "MP", "tiles", "process, s", "sweep, s", "ms per tile", "MiB above engine"], body),
        *picture(pictures, "scaling", "Time per tile and memory as the image grows"),
    ]


_BODIES: dict[str, Callable[[dict[str, Any], dict[str, str]], list[str]]] = {
    "efficiency": _efficiency,
    "precision": _precision,
    "limits": _limits,
    "scaling": _scaling,
    "peers": peers,
    "scaleout": scaleout,
}
