"""The page of pages: each kind of processor with its main figures, and what was found out beside speed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.page.markdown import table
from benchmarks.page.peers import YARDSTICK, best_peer, measured_or_estimated, speedup

PRECISIONS = ("fp32", "bf16", "int8")


def write_index(folder: Path) -> None:
    """Write README.md of a folder of results: a row for each folder in it that was measured at full scale."""
    rows = []
    for path in sorted(folder.glob("*/results.json")):
        document = json.loads(path.read_text())
        section = document["sections"].get("peers", {})
        if "found" in section and section["scale"] == "full":
            rows.append(_row(path.parent.name, section))
    lines = ["# Benchmarks", "", "Written by `python -m benchmarks`; do not edit.", ""]
    if rows:
        kinds = [f"{precision}, s (times MONAI, times its best)" for precision in PRECISIONS]
        lines += table(["processor", "", "image, px", *kinds], rows, 3)
    more = [page.name for page in sorted(folder.glob("*.md")) if page.name != "README.md"]
    if more:
        lines += [f"Beside speed: {', '.join(f'[{name}]({name})' for name in more)}.", ""]
    (folder / "README.md").write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def _row(name: str, section: dict[str, Any]) -> list[str]:
    """Of one processor: tilelab at its own tile where that was measured, on the largest plane."""
    found, machine = section["found"], section["machine"]
    size = found["sizes"][-1]
    best = best_peer(found, size)
    cells = []
    for precision in PRECISIONS:
        known = [n for n in (f"tilelab {precision}, own tile", f"tilelab {precision}") if n in found["rows"]]
        ours, mark = measured_or_estimated(found["rows"][known[0]], size) if known else (None, "-")
        if ours is None:
            cells.append(mark)
            continue
        times, at_best = (speedup(found, known[0], size, base) for base in (YARDSTICK, best))
        cells.append(f"{mark}{ours['seconds']:.1f} ({times}, {at_best})")
    processor = re.sub(r"\([^)]*\)(?=,|$)|,.*", "", machine["processor"]).strip()  # without family and instruction sets
    about = f"{processor}, {machine['cores']} cores"
    return [f"[{name}]({name}/README.md)", f"{about}, {section['began'][:10]}", size, *cells]
