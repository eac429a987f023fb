"""`tilelab plan IMAGE --model M`: what `infer` would do, before it does it."""

from __future__ import annotations

import argparse
import json
from typing import Any

import msgspec

from tilelab.assumptions import Assumption, check_strict
from tilelab.cli.run_arguments import add_run_arguments, options_from_args
from tilelab.cli.screen import assumption_rows, say
from tilelab.engines.base import Engine
from tilelab.errors import PlanError
from tilelab.io.images.volume import Volume
from tilelab.run.plan.estimate import Samples, calibrate, expected_seconds, sample_tiles, seconds_per_tile, stored_bytes
from tilelab.run.plan.plan import Plan
from tilelab.text import format_bytes, size_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    add_run_arguments(parser)
    parser.add_argument("--no-calibration", action="store_true", help="do not run the engine to estimate the time")
    parser.add_argument(
        "--speed", type=_positive, metavar="MP/s", help="of one worker, as a report or `bench` says; loads no engine"
    )
    parser.add_argument("--price", type=_positive, metavar="X", help="of one worker for an hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the plan; a plan over the memory limit is an error."""
    from tilelab.engines.registry import read_spec
    from tilelab.run.autotile import choose_tile
    from tilelab.run.options import load
    from tilelab.run.prepare import open_source, plan_image

    options = options_from_args(args)
    if args.price is not None and args.no_calibration and args.speed is None:
        raise PlanError("--price needs a speed: give --speed, or leave --no-calibration out")
    if options.auto_tile:
        options = choose_tile(args.model, args.image, options, say)
    engine = load(args.model, options) if args.speed is None else None
    spec = read_spec(args.model, options.model) if engine is None else engine.spec
    assert spec is not None  # noqa: S101 - it is only None without overrides
    image, notes = open_source(args.image, options, spec)
    assumptions = image.assumptions + (engine.assumptions if engine else ())
    check_strict(assumptions, options.strict)
    plan = plan_image(image, spec, options, engine.batch if engine else options.batch or 1)
    per_tile = None if args.speed is None else seconds_per_tile(plan, args.speed)
    if engine is not None:
        if not args.no_calibration:
            per_tile = calibrate(engine) * (8 if options.symmetries else 1)
        engine.close()
    document = describe(
        plan,
        engine,
        per_tile,
        notes,
        assumptions,
        workers=options.workers or 1,
        price=args.price,
        stored=stored_bytes(image),
        samples=sample_tiles(Volume(image), plan),
    )
    image.close()
    print(json.dumps(document, indent=1) if args.json else as_text(document))
    return 0


def describe(
    plan: Plan,
    engine: Engine | None,
    per_tile: float | None,
    notes: list[str],
    assumptions: tuple[Assumption, ...] = (),
    *,
    workers: int = 1,
    price: float | None = None,
    stored: int | None = None,
    samples: Samples | None = None,
) -> dict[str, Any]:
    """The plan as a document.

    Args:
        plan: the plan.
        engine: None when none was loaded.
        per_tile: seconds of one worker for one tile; None when unknown.
        notes: for the user.
        assumptions: of image and model.
        workers: how many share the work.
        price: of one worker for an hour.
        stored: bytes of the image as it is stored.
        samples: tiles that were looked at.
    """
    seconds = None if per_tile is None else expected_seconds(plan, per_tile, workers)
    hours = None if seconds is None else seconds * workers / 3600
    return {
        "image": {
            "shape": list(plan.source.shape),
            "chunks": list(plan.source.chunks),
            "megapixels": plan.pixels / 1e6,
        },
        "engine": {
            "name": engine.name if engine else None,
            "device": engine.device if engine else None,
            "precision": engine.precision if engine else None,
            "tile": list(plan.spec.tile),
            "batch": plan.batch,
        },
        "overlap": list(plan.spec.overlap),
        "window": plan.spec.window,
        "tiles": plan.tiles,
        "tiles_computed_twice": plan.recomputed,
        "units": len(plan.units),
        "unit_shape": [c.extent if len(c) > 1 else c.size for c in plan.units.cuts],
        "sample_tiles": None if samples is None else {"read": samples.tiles, "blank": samples.blank},
        "bytes_read": plan.source.bytes,
        "bytes_stored": stored,
        "bytes_written_at_most": plan.bytes_written,
        "levels": plan.layout.levels,
        "memory": {"total": plan.memory_bytes, **plan.memory},
        "device_memory": _device_memory(plan, engine),
        "workers": workers,
        "seconds": seconds,
        "worker_hours": hours,
        "cost": None if hours is None or price is None else hours * price,
        "notes": notes,
        "assumptions": msgspec.to_builtins(assumptions),
    }


def _device_memory(plan: Plan, engine: Engine | None) -> dict[str, Any] | None:
    """What the largest unit takes on the engine's GPU, by purpose, and what was free there; None without a GPU."""
    if engine is None or not engine.device.startswith("cuda"):
        return None
    from tilelab.run.plan.device_buffers import plan_buffers

    unit = plan.units[0].box
    buffers = plan_buffers(plan.source, plan.spec, plan.outputs, plan.lattice, plan.frame, engine.batch, unit)
    own = int(getattr(engine, "device_bytes", 0))
    info = getattr(engine, "info", None)
    parts = {**buffers.bytes(), **({"engine": own} if own else {})}
    return {"total": sum(parts.values()), "free": None if info is None else info.free_bytes, "parts": parts}


def as_text(plan: dict[str, Any]) -> str:
    """The plan for people."""
    image, engine, memory = plan["image"], plan["engine"], plan["memory"]
    rows = {
        "image": f"{size_text(image['shape'])} (z, y, x), {image['megapixels']:.1f} MP, "
        f"chunks {size_text(image['chunks'])}",
        "engine": (f"{engine['name']} {engine['precision']} on {engine['device']}, " if engine["name"] else "")
        + f"tile {size_text(engine['tile'])}, batch {engine['batch']}",
        "tiles": f"{plan['tiles']}, overlap {size_text(plan['overlap'])} px, {plan['window']} window, "
        f"{plan['tiles_computed_twice']:.2%} computed twice",
        "units": f"{plan['units']} of at most {size_text(plan['unit_shape'])} px",
        "read": format_bytes(plan["bytes_read"])
        + ("" if plan["bytes_stored"] is None else f" decoded, stored in about {format_bytes(plan['bytes_stored'])}"),
        "write": f"at most {format_bytes(plan['bytes_written_at_most'])} before compression, {plan['levels']} levels",
        "memory": f"{format_bytes(memory['total'])} per worker, beside the engine ("
        + ", ".join(f"{name} {format_bytes(size)}" for name, size in memory.items() if name != "total")
        + ")",
    }
    gpu = plan["device_memory"]
    if gpu is not None:
        largest = sorted(gpu["parts"].items(), key=lambda part: -part[1])[:4]
        rows["GPU memory"] = f"{format_bytes(gpu['total'])} ({', '.join(f'{n} {format_bytes(b)}' for n, b in largest)})"
        if gpu["free"] is not None:
            rows["GPU memory"] += f" of {format_bytes(gpu['free'])} free"
            if gpu["total"] > gpu["free"]:
                rows["GPU memory"] += ": too much, raise --lanes, or lower --batch or --tile"
    if plan["seconds"] is not None:
        shared = f" on {plan['workers']} workers" if plan["workers"] > 1 else ""
        rate = image["megapixels"] / plan["seconds"]
        rows["time"] = f"about {duration(plan['seconds'])}{shared} ({rate:.2f} MP/s)"
        rows["work"] = f"{plan['worker_hours']:.2f} worker-hours"
        if plan["cost"] is not None:
            rows["cost"] = f"about {plan['cost']:.2f}"
    samples = plan["sample_tiles"]
    if samples and samples["blank"]:
        rows["samples"] = f"{samples['blank']} of {samples['read']} sample tiles are blank: those take no engine time"
    for i, note in enumerate(plan["notes"]):
        rows["note" if i == 0 else " " * i] = note
    rows |= assumption_rows(plan["assumptions"])
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} days"
