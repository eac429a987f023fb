"""What `tilelab plan` tells: as a document, and in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tilelab.assumptions import Assumption
from tilelab.cli.screen import assumption_rows, duration
from tilelab.engines.base import Engine
from tilelab.run.plan.buffers import sizes
from tilelab.run.plan.choice import Candidate
from tilelab.run.plan.device_buffers import largest_device_buffers
from tilelab.run.plan.estimate import Samples, expected_seconds
from tilelab.run.plan.plan import Plan
from tilelab.text import format_bytes, sides_text, size_text

_SHOWN = 8  # choices


@dataclass(frozen=True)
class PlannedImage:
    """Extent and chunks ``(z, y, x)`` in pixels."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    megapixels: float


@dataclass(frozen=True)
class PlannedEngine:
    """What infers; without a name where none was loaded."""

    name: str | None
    device: str | None
    precision: str | None
    tile: tuple[int, ...]
    batch: int


@dataclass(frozen=True)
class SampleTiles:
    """Tiles of the image that were looked at, and how many of them need no network."""

    read: int
    blank: int


@dataclass(frozen=True)
class PlannedChoice:
    """Tiles that could have been: what they compute for each pixel of the image, and what it gains or costs.

    Attributes:
        computed_per_pixel: pixels of tiles for each of the image.
        labels_as_whole: share of labels that is to be expected as of the whole image at once, at least.
        rate: of the engine at that tile, relative to its fastest.
        memory: bytes beside the engine.
        seconds: relative to the first.
    """

    tile: tuple[int, ...]
    overlap: tuple[int, ...]
    computed_per_pixel: float
    labels_as_whole: float
    rate: float
    memory: int
    seconds: float


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes that the largest unit takes on a GPU, by purpose, and what was free there."""

    total: int
    free: int
    parts: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class PlanDocument:
    """A plan, ready for JSON: amounts in bytes, times in seconds; None for what is not known.

    Attributes:
        computed_per_pixel: pixels that the network computes for each of the image.
        tiles_computed_twice: share of tiles inferred a second time where units meet.
        choices: tiles that were compared, the chosen first; empty where tiles were given.
        unit_shape: of the largest.
        memory: of one worker, ``total`` and by purpose; of the engine what it may take after it is loaded.
        cost: in the currency of the price.
    """

    image: PlannedImage
    engine: PlannedEngine
    overlap: tuple[int, ...]
    window: str
    tiles: int
    computed_per_pixel: float
    tiles_computed_twice: float
    choices: tuple[PlannedChoice, ...]
    units: int
    unit_shape: tuple[int, ...]
    sample_tiles: SampleTiles | None
    bytes_read: int
    bytes_stored: int | None
    bytes_written_at_most: int
    levels: int
    memory: dict[str, int]
    device_memory: DeviceMemory | None
    workers: int
    seconds: float | None
    worker_hours: float | None
    cost: float | None
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]


def examine_plan(
    plan: Plan,
    engine: Engine | None,
    per_tile: float | None,
    notes: list[str],
    assumptions: tuple[Assumption, ...] = (),
    *,
    workers: int = 1,
    overhead: float = 0.0,
    price: float | None = None,
    stored: int | None = None,
    samples: Samples | None = None,
    candidates: Sequence[Candidate] = (),
) -> PlanDocument:
    """The plan as a document.

    Args:
        plan: the plan.
        engine: None when none was loaded.
        per_tile: seconds of one worker for one tile; None when unknown.
        notes: for the user.
        assumptions: of image and model.
        workers: how many share the work.
        overhead: seconds beside those of the tiles.
        price: of one worker for an hour.
        stored: bytes of the image as it is stored.
        samples: tiles that were looked at.
        candidates: tilings that were compared, the chosen first.
    """
    seconds = None if per_tile is None else expected_seconds(plan, per_tile, workers) + overhead
    hours = None if seconds is None else seconds * workers / 3600
    return PlanDocument(
        image=PlannedImage(plan.source.shape, plan.source.chunks, plan.pixels / 1e6),
        engine=PlannedEngine(
            name=None if engine is None else engine.name,
            device=None if engine is None else engine.device,
            precision=None if engine is None else engine.precision,
            tile=plan.spec.tile,
            batch=plan.request.batch,
        ),
        overlap=plan.spec.overlap,
        window=plan.spec.window,
        tiles=plan.tiles,
        computed_per_pixel=plan.computed_per_pixel,
        tiles_computed_twice=plan.recomputed,
        choices=_choices(candidates),
        units=len(plan.units),
        unit_shape=plan.largest_unit,
        sample_tiles=None if samples is None else SampleTiles(samples.tiles, samples.blank),
        bytes_read=plan.source.bytes,
        bytes_stored=stored,
        bytes_written_at_most=plan.bytes_written,
        levels=plan.layout.levels,
        memory={"total": plan.memory_bytes, **plan.memory},
        device_memory=_device_memory(plan),
        workers=workers,
        seconds=seconds,
        worker_hours=hours,
        cost=None if hours is None or price is None else hours * price,
        notes=tuple(notes),
        assumptions=assumptions,
    )


def _choices(candidates: Sequence[Candidate]) -> tuple[PlannedChoice, ...]:
    """The chosen one and some that differ from it and from each other, the cheapest of each size."""
    kept: dict[int, Candidate] = {}
    for one in candidates:
        kept.setdefault(round(3 * math.log2(math.prod(one.tiling.tile))), one)
    return tuple(
        PlannedChoice(
            one.tiling.tile,
            one.tiling.overlap,
            one.computed,
            1 - one.wrong,
            one.rate,
            one.memory_bytes,
            one.cost / candidates[0].cost,
        )
        for one in list(kept.values())[:_SHOWN]
    )


def _device_memory(plan: Plan) -> DeviceMemory | None:
    """What the largest unit takes on the engine's GPU; None without one."""
    gpu = plan.request.gpu
    if gpu is None:
        return None
    parts = sizes(largest_device_buffers(plan.request, plan.largest_unit).device)
    return DeviceMemory(sum(parts.values()), gpu.free_bytes, parts)


def as_text(plan: PlanDocument) -> str:
    """The plan for people."""
    engine = plan.engine
    by_purpose = (f"{name} {format_bytes(size)}" for name, size in plan.memory.items() if name != "total")
    stored = "" if plan.bytes_stored is None else f" decoded, stored in about {format_bytes(plan.bytes_stored)}"
    rows = {
        "image": f"{size_text(plan.image.shape)} (z, y, x), {plan.image.megapixels:.1f} MP, "
        f"chunks {size_text(plan.image.chunks)}",
        "engine": (f"{engine.name} {engine.precision} on {engine.device}, " if engine.name else "")
        + f"tile {sides_text(engine.tile)}, batch {engine.batch}",
        "tiles": f"{plan.tiles}, overlap {sides_text(plan.overlap)} px, {plan.window} window, "
        f"{plan.computed_per_pixel:.2f} pixels computed for each of the image"
        + (f", {plan.tiles_computed_twice:.1%} of the tiles twice" if plan.tiles_computed_twice else ""),
        "units": f"{plan.units} of at most {size_text(plan.unit_shape)} px",
        "read": f"{format_bytes(plan.bytes_read)}{stored}",
        "write": f"at most {format_bytes(plan.bytes_written_at_most)} before compression, {plan.levels} levels",
        "memory": f"{format_bytes(plan.memory['total'])} per worker, beside the engine ({', '.join(by_purpose)})",
    }
    if plan.device_memory is not None:
        rows["GPU memory"] = _device_memory_text(plan.device_memory)
    rows |= _time_rows(plan)
    if plan.choices:
        rows["choices"] = _choices_text(plan.choices)
    samples = plan.sample_tiles
    if samples and samples.blank:
        rows["samples"] = f"{samples.blank} of {samples.read} sample tiles are blank: those take no engine time"
    for i, note in enumerate(plan.notes):
        rows["note" if i == 0 else " " * i] = note
    rows |= assumption_rows(plan.assumptions)
    width = max(map(len, rows))
    below = "\n" + " " * (width + 2)
    return "\n".join(f"{name:<{width}}  {value}".replace("\n", below) for name, value in rows.items())


def _choices_text(choices: Sequence[PlannedChoice]) -> str:
    """A table, the taken one first."""
    rows = [("tile", "overlap", "computed", "labels", "engine", "memory", "time")]
    rows += [
        (
            size_text(one.tile),
            size_text(one.overlap),
            f"{one.computed_per_pixel:.2f}",
            f"{one.labels_as_whole:.4f}",
            f"{one.rate:.2f}",
            format_bytes(one.memory),
            f"{one.seconds:.2f}",
        )
        for one in choices
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows) + (
        "\n(pixels computed for each of the image; labels as of the whole at once; engine's speed, time: relative)"
    )


def _device_memory_text(gpu: DeviceMemory) -> str:
    largest = sorted(gpu.parts.items(), key=lambda part: -part[1])[:4]
    text = f"{format_bytes(gpu.total)} ({', '.join(f'{n} {format_bytes(b)}' for n, b in largest)})"
    return text + f" of {format_bytes(gpu.free)} that are free beside the engine"


def _time_rows(plan: PlanDocument) -> dict[str, str]:
    if plan.seconds is None:
        return {}
    shared = f" on {plan.workers} workers" if plan.workers > 1 else ""
    rate = plan.image.megapixels / plan.seconds
    rows = {
        "time": f"about {duration(plan.seconds)}{shared} ({rate:.2f} MP/s)",
        "work": f"{_hundredths(plan.worker_hours)} worker-hours",
    }
    return rows if plan.cost is None else rows | {"cost": f"about {_hundredths(plan.cost)}"}


def _hundredths(value: float | None) -> str:
    """A number with two places; what rounds to nothing is not nothing."""
    return "less than 0.01" if value and value < 0.005 else f"{value or 0:.2f}"


@dataclass(frozen=True, kw_only=True)
class PlannedImages:
    """The sums of many plans, ready for JSON; None for what is not known.

    Attributes:
        images: how many can be done.
        failed: why others cannot, by path.
        memory: of the largest, in bytes; several are under way at a time as far as the limit goes.
        seconds: of the engine, one image after the other.
        notes, assumptions: each once.
        plans: of each image, by path.
    """

    images: int
    failed: dict[str, str]
    megapixels: float
    tiles: int
    bytes_read: int
    bytes_written_at_most: int
    memory: int
    seconds: float | None
    cost: float | None
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    plans: dict[str, PlanDocument]

    def as_text(self) -> str:
        """For people."""
        rows = {
            "images": f"{self.images}, {self.megapixels:.1f} MP",
            "tiles": f"{self.tiles}",
            "read": format_bytes(self.bytes_read),
            "write": f"at most {format_bytes(self.bytes_written_at_most)} before compression",
            "memory": f"{format_bytes(self.memory)} for the largest, beside the engine",
        }
        if self.seconds:
            rate = self.megapixels / self.seconds
            rows["time"] = f"about {duration(self.seconds)} of the engine ({rate:.2f} MP/s)"
        if self.cost is not None:
            rows["cost"] = f"about {_hundredths(self.cost)}"
        for i, note in enumerate(self.notes[:_LISTED]):
            rows["note" if i == 0 else " " * i] = note
        rows |= assumption_rows(self.assumptions[:_LISTED])
        if len(self.assumptions) > _LISTED:
            rows["and more"] = f"{len(self.assumptions) - _LISTED} assumptions of the kind, see --json"
        width = max(map(len, rows))
        lines = [f"{name:<{width}}  {value}" for name, value in rows.items()]
        return "\n".join([*lines, *(f"failed: {path}: {why}" for path, why in self.failed.items())])


_LISTED = 8


def sum_plans(plans: dict[str, PlanDocument], failed: dict[str, str], notes: list[str]) -> PlannedImages:
    """Add up the plans of many images."""
    all_of = list(plans.values())
    seconds = [p.seconds for p in all_of if p.seconds is not None]
    costs = [p.cost for p in all_of if p.cost is not None]
    return PlannedImages(
        images=len(all_of),
        failed=failed,
        megapixels=sum(p.image.megapixels for p in all_of),
        tiles=sum(p.tiles for p in all_of),
        bytes_read=sum(p.bytes_read for p in all_of),
        bytes_written_at_most=sum(p.bytes_written_at_most for p in all_of),
        memory=max((p.memory["total"] for p in all_of), default=0),
        seconds=sum(seconds) if seconds else None,
        cost=sum(costs) if costs else None,
        notes=tuple(dict.fromkeys([*notes, *(note for p in all_of for note in p.notes)])),
        assumptions=tuple(dict.fromkeys(a for p in all_of for a in p.assumptions)),
        plans=plans,
    )
