"""`tilelab measure RESULT --plan`: what measuring will take, before it is done."""

from __future__ import annotations

import json
import math

import msgspec

from tilelab.cli.screen import assumption_rows, duration
from tilelab.measure.forecast import Forecast
from tilelab.text import counted, format_bytes, size_text


def as_json(plans: dict[str, Forecast]) -> str:
    """The plan of one image, or those of several by their names."""
    documents = {name: msgspec.to_builtins(plan) for name, plan in plans.items()}
    return json.dumps(documents if len(documents) > 1 else next(iter(documents.values())), indent=1)


def as_text(plan: Forecast) -> str:
    """The plan for people."""
    measured, empty = plan.samples
    stored = "" if plan.bytes_stored is None else f", stored in about {format_bytes(plan.bytes_stored)}"
    passes = "" if plan.passes == 1 else f", the labels {plan.passes} times"
    rows = {
        "labels": f"{size_text(plan.shape)} (z, y, x), {math.prod(plan.shape) / 1e6:,.1f} MP, chunks "
        f"{size_text(plan.chunks)}",
        "blocks": f"{plan.blocks:,} of at most {size_text(plan.block)} px",
        "read": f"{format_bytes(plan.bytes_read)} decoded{passes}{stored}",
    }
    if plan.objects is not None:
        rows["objects"] = f"about {counted(plan.objects, 'object')}"
        if plan.bytes_temporary:
            rows["objects"] += f", {format_bytes(plan.bytes_temporary)} in a temporary file"
    if "objects" in plan.bytes_written:
        rows["write"] = f"at most {format_bytes(plan.bytes_written['objects'])} of numbers before compression"
    if plan.bytes_written.get("table"):
        rows["table"] = f"about {format_bytes(plan.bytes_written['table'])} as CSV"
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.memory.items() if name != "total")
    rows["memory"] = f"{format_bytes(plan.memory['total'])} beside Python ({parts})"
    if plan.seconds is None or plan.megapixels_per_second is None:
        rows["time"] = "unknown"
    else:
        rows["time"] = f"about {duration(plan.seconds)} ({plan.megapixels_per_second:,.0f} MP/s"
        rows["time"] += f" in {counted(measured, 'piece')}" + (f", {empty} without an object)" if empty else ")")
    for i, note in enumerate(plan.notes):
        rows["note" if i == 0 else " " * i] = note
    rows |= assumption_rows(plan.assumptions)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
