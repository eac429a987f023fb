"""What was aimed at, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.page.peers import YARDSTICK, bytes_per_pixel, measured_or_estimated, speedup

SPEEDS = {"fp32": 3.5, "bf16": 8.0, "int8": 13.0}  # times MONAI's, on the largest plane, each with its own tile
AMX_SPEEDS = {"fp32": 3.5, "bf16": 15.0, "int8": 20.0}
OF_LIMIT, AMX_OF_LIMIT = 0.9, {"fp32": 0.9, "bf16": 0.8, "int8": 0.8}  # of the bare engine's best, start-up aside
AGREEMENT = {"bf16": 0.999, "int8": 0.995}  # of labels with fp32's, on a trained model
MEMORY = 0.1  # of MONAI's growth per pixel
BANDWIDTH = 0.7  # of a plain copy's
LINEAR = 0.03
WORKERS, EFFICIENCY = 256, 0.95


@dataclass(frozen=True)
class Goal:
    """One aim, in words, and whether it was reached."""

    what: str
    aim: str
    measured: str
    reached: bool


def goals(document: dict[str, Any]) -> list[Goal]:
    """All that the document has measurements for."""
    found = {
        name: section["found"] | {"amx": "amx" in section["machine"]["processor"]}
        for name, section in document["sections"].items()
        if "found" in section
    }
    makers = {
        "peers": _peers,
        "precision": _precision,
        "limits": _limits,
        "scaling": _scaling,
        "scaleout": _scaleout,
    }
    return [goal for name, make in makers.items() if name in found for goal in make(found[name])]


def _peers(found: dict[str, Any]) -> Iterator[Goal]:
    size = found["sizes"][-1]
    for precision, aim in (AMX_SPEEDS if found["amx"] else SPEEDS).items():
        own = f"tilelab {precision}, own tile"
        times = speedup(found, own if own in found["rows"] else f"tilelab {precision}", size)
        if times != "-":
            reached = float(times.removeprefix("~")) >= aim
            yield Goal(f"speed in {precision} against {YARDSTICK}, {size} px", f">= {aim}", times, reached)
    theirs = bytes_per_pixel(found["rows"].get(YARDSTICK, {"sizes": {}}))
    ours = bytes_per_pixel(found["rows"].get("tilelab fp32", {"sizes": {}}))
    if theirs and ours is not None and len(found["sizes"]) > 1:
        words = f"{ours:.2f} : {theirs:.2f} bytes per pixel"
        yield Goal(f"growth of memory against {YARDSTICK}", f"<= {MEMORY}", words, ours <= MEMORY * theirs)
    own = found["rows"].get("tilelab fp32")
    if own is not None:
        known, mark = measured_or_estimated(own, size)
        limit = f"{found['memory_limit'] / 1e9:.0f} GB"
        yield Goal(f"{size} px finishes within {limit}", "yes", "yes" if known else mark, bool(known) and not mark)


def _precision(found: dict[str, Any]) -> Iterator[Goal]:
    for row in found["rows"]:
        if "sweep_of_limit" in row and row["engine"] == "openvino":
            aim = AMX_OF_LIMIT.get(row["precision"], OF_LIMIT) if found["amx"] else OF_LIMIT
            share = row["sweep_of_limit"]
            yield Goal(f"share of the limit in {row['precision']}", f">= {aim}", f"{share:.2f}", share >= aim)
        aim = AGREEMENT.get(row["precision"])
        if aim is not None and "agreement" in row:
            what = f"labels as in fp32, {row['engine']} {row['precision']}"
            yield Goal(what, f">= {aim}", f"{row['agreement']:.5f}", row["agreement"] >= aim)


def _limits(found: dict[str, Any]) -> Iterator[Goal]:
    for row in found["kernels"]:
        if row["kernel"] == "blend":
            cores = f"{row['threads']} core{'s' * (row['threads'] > 1)}"
            share = row["share_of_copy"]
            yield Goal(
                f"blending against a copy in memory, {cores}", f">= {BANDWIDTH:.0%}", f"{share:.0%}", share >= BANDWIDTH
            )


def _scaling(found: dict[str, Any]) -> Iterator[Goal]:
    rows = found["rows"]
    change = rows[-1]["seconds_per_tile"] / rows[0]["seconds_per_tile"] - 1
    area = f"{rows[-1]['megapixels'] / rows[0]['megapixels']:.0f} times the area"
    yield Goal(f"seconds per tile, {area}", f"within {LINEAR:.0%}", f"{change:+.1%}", abs(change) <= LINEAR)


def _scaleout(found: dict[str, Any]) -> Iterator[Goal]:
    for point in found["points"]:
        if point["workers"] == WORKERS and point["volume"] == "1 TB":
            value = point["efficiency"]
            yield Goal(
                f"efficiency of {WORKERS} workers, 1 TB", f">= {EFFICIENCY}", f"{value:.3f}", value >= EFFICIENCY
            )
