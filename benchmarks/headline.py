"""The README's headline table, made from the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page import YARDSTICK, bytes_per_pixel, table
from tilelab.errors import InputError

BEGIN, END = "<!-- headline -->", "<!-- /headline -->"


def rewrite(readme: Path, document: dict[str, Any]) -> None:
    """Replace what stands between the markers.

    Raises:
        InputError: there are no markers, or the peers have not been measured.
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise InputError(
            f"{readme} has no place for the headline: put {BEGIN} and {END} into it, on lines of their own"
        )
    body = "\n".join(headline(document)).strip()
    readme.write_text(f"{before}{BEGIN}\n{body}\n{END}{after}", encoding="utf-8")


def headline(document: dict[str, Any]) -> list[str]:
    """One table of speed, memory and agreement, and a line of what was measured on."""
    section = document["sections"].get("peers", {})
    if "found" not in section:
        raise InputError("the headline needs the peers: python -m benchmarks run peers")
    found, machine = section["found"], section["machine"]
    size = found["sizes"][-1]
    base = found["rows"].get(YARDSTICK, {"sizes": {}})["sizes"].get(size, {"finished": False})
    rows = []
    for name, row in found["rows"].items():
        measured = row["sizes"].get(size)
        if measured is None:
            continue
        if not measured["finished"]:
            rows.append([name, measured["reason"], "-", "-", "-"])
            continue
        slope, whole = bytes_per_pixel(row), row.get("whole")
        rows.append(
            [
                f"**{name}**" if name.startswith("tilelab") else name,
                f"{measured['seconds']:.0f}",
                f"{base['seconds'] / measured['seconds']:.1f}" if base["finished"] else "-",
                "-" if slope is None else f"{max(0.0, slope):.1f}",
                "-" if whole is None else f"{whole['agreement']:.4f}",
            ]
        )
    lines = table(["", f"{size} px, s", "times MONAI", "bytes per pixel", "labels as whole image"], rows)
    missing = [name for name, row in found["rows"].items() if row["missing"]]
    busy = f"; the machine was busy, load {section['load_before']:.1f}" if section["load_before"] > 0.5 else ""
    efficiency = document["sections"].get("efficiency", {}).get("found")
    if efficiency:
        lines.append(
            f"The whole command takes {efficiency['ratio']:.3f} times as long as the bare engine on the same batches, "
            f"{efficiency['ratio_without_start']:.3f} times start-up aside, and "
            f"{efficiency['memory_above_engine'] / 2**20:.0f} MiB on top of the loaded engine."
        )
    lines.append(
        f"U-Net, ResNet-18 encoder, tile {found['tile']}, overlap {found['overlap']}, whole processes on "
        f"{machine['cores']} cores of {machine['processor'].split(',')[0]}{busy}; memory above the loaded network. "
        "Everything else: [benchmarks/results](benchmarks/results/README.md)."
    )
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    return lines
