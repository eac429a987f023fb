"""`tilelab plan IMAGE --model M`: what `infer` would do, before it does it."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from tilelab.cli.run_arguments import add_run_arguments, options_from_args
from tilelab.cli.screen import say
from tilelab.engines.base import Engine
from tilelab.memory import format_bytes
from tilelab.planning import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("--no-calibration", action="store_true", help="do not run the engine to estimate the time")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan; a plan over the memory limit is an error."""
    from tilelab.autotile import choose_tile
    from tilelab.options import load
    from tilelab.prepare import open_source, plan_image

    options = options_from_args(args)
    if options.auto_tile:
        options = choose_tile(args.model, args.image, options, say)
    engine = load(args.model, options)
    image, notes = open_source(args.image, options, engine.spec)
    plan = plan_image(image, engine.spec, options, engine.batch)
    seconds = None if args.no_calibration else calibrate(engine) * plan.tiles * (8 if options.symmetries else 1)
    engine.close()
    document = describe(plan, engine, seconds, notes)
    print(json.dumps(document, indent=1) if args.json else as_text(document))
    return 0


def calibrate(engine: Engine, least_seconds: float = 1.0) -> float:
    """Seconds per tile, the median over batches of noise for about `least_seconds`."""
    tiles = np.random.default_rng(0).normal(size=(engine.batch, engine.spec.channels, *engine.tile)).astype(np.float32)
    out = np.empty((engine.batch, engine.spec.outputs, *engine.tile), np.float32)
    engine.run(tiles, out)
    times: list[float] = []
    while sum(times) < least_seconds or len(times) < 3:
        began = time.perf_counter()
        engine.run(tiles, out)
        times.append(time.perf_counter() - began)
    return float(np.median(times)) / engine.batch


def describe(plan: Plan, engine: Engine, seconds: float | None, notes: list[str]) -> dict[str, Any]:
    """The plan as a document."""
    return {
        "image": {
            "shape": list(plan.source.shape),
            "chunks": list(plan.source.chunks),
            "megapixels": plan.pixels / 1e6,
        },
        "engine": {
            "name": engine.name,
            "device": engine.device,
            "precision": engine.precision,
            "tile": list(engine.tile),
            "batch": engine.batch,
        },
        "overlap": list(plan.spec.overlap),
        "window": plan.spec.window,
        "tiles": plan.tiles,
        "tiles_computed_twice": plan.recomputed,
        "units": len(plan.units),
        "unit_shape": [c.extent if len(c) > 1 else c.size for c in plan.units.cuts],
        "bytes_read": plan.source.bytes,
        "bytes_written_at_most": plan.bytes_written,
        "levels": plan.layout.levels,
        "memory": {"total": plan.memory_bytes, **plan.memory},
        "seconds": seconds,
        "notes": notes,
    }


def as_text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    image, engine, memory = plan["image"], plan["engine"], plan["memory"]
    rows = {
        "image": f"{_size(image['shape'])} (z, y, x), {image['megapixels']:.1f} MP, chunks {_size(image['chunks'])}",
        "engine": f"{engine['name']} {engine['precision']} on {engine['device']}, tile {_size(engine['tile'])}, "
        f"batch {engine['batch']}",
        "tiles": f"{plan['tiles']}, overlap {_size(plan['overlap'])} px, {plan['window']} window, "
        f"{plan['tiles_computed_twice']:.2%} computed twice",
        "units": f"{plan['units']} of at most {_size(plan['unit_shape'])} px",
        "read": format_bytes(plan["bytes_read"]),
        "write": f"at most {format_bytes(plan['bytes_written_at_most'])} before compression, {plan['levels']} levels",
        "memory": f"{format_bytes(memory['total'])} beside the engine ("
        + ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items() if name != "total")
        + ")",
    }
    if plan["seconds"] is not None:
        rows["time"] = f"about {_duration(plan['seconds'])} ({image['megapixels'] / plan['seconds']:.2f} MP/s)"
    for i, note in enumerate(plan["notes"]):
        rows["note" if i == 0 else " " * i] = note
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _size(extent: list[int]) -> str:
    return " x ".join(map(str, extent))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
