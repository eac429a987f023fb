"""The README's headline table, made from the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.page.markdown import busy, table
from benchmarks.page.peers import YARDSTICK, best_peer, bytes_per_pixel, measured_or_estimated, speedup
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
    """One table of speed, memory and agreement, and a line of what was measured on.

    Raises:
        InputError: the peers have not been measured.
    """
    section = document["sections"].get("peers", {})
    if "found" not in section:
        raise InputError("the headline needs the peers: python -m benchmarks run peers")
    found, machine = section["found"], section["machine"]
    size = found["sizes"][-1]
    best = best_peer(found, size)
    rows, estimated = [], False
    for name, row in found["rows"].items():
        if row["missing"]:
            continue
        known, mark = measured_or_estimated(row, size)
        if known is None:
            rows.append([name, mark, "-", "-", "-", "-"])
            continue
        estimated |= bool(mark)
        slope, whole = bytes_per_pixel(row), row.get("whole")
        rows.append(
            [
                f"**{name}**" if name.startswith("tilelab") else name,
                f"{mark}{known['seconds']:.0f}",
                speedup(found, name, size),
                speedup(found, name, size, best),
                "-" if slope is None else f"{max(0.0, slope):.1f}",
                "-" if whole is None else f"{whole['agreement']:.4f}",
            ]
        )
    at_best = f"times MONAI at its best ({best.removeprefix(YARDSTICK).strip(', ') or 'fp32'})"
    lines = table(["", f"{size} px, s", "times MONAI", at_best, "bytes per pixel", "labels as whole image"], rows)
    efficiency = document["sections"].get("efficiency", {}).get("found")
    if efficiency:
        lines.append(
            f"The whole command takes {efficiency['ratio']:.3f} times as long as the bare engine on the same batches, "
            f"{efficiency['ratio_without_start']:.3f} times start-up aside, and "
            f"{efficiency['memory_above_engine'] / 2**20:.0f} MiB on top of the loaded engine."
        )
    others = busy(section)
    processor = machine["processor"].split(" (")[0].split(",")[0]
    lines.append(
        f"U-Net, ResNet-18 encoder, tile {found['tile']}, overlap {found['overlap']} (own tile: chosen for the image), "
        "whole processes on "
        f"{machine['cores']} cores of {processor}{f'; {others}' if others else ''}; memory "
        f"above the loaded network. {'~: estimated from smaller planes. ' * estimated}"
        "Everything else: [benchmarks/results](benchmarks/results/README.md)."
    )
    missing = [name for name, row in found["rows"].items() if row["missing"]]
    if missing:
        lines.append(f"Not measured: {', '.join(missing)}.")
    return lines
