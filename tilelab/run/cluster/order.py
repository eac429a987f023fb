"""What is sent to workers: the order, once to each, and errands, many; and what they say of their engine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from tilelab.arrays import Float32
from tilelab.assumptions import Assumption
from tilelab.engines.base import Engine, GpuRoom
from tilelab.geometry import Box
from tilelab.io.images.volume import Volume
from tilelab.io.storage.place import Place
from tilelab.machine.version import __version__
from tilelab.run.opening import open_its_mask, open_source
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan
from tilelab.run.sweep.job import Job
from tilelab.spec import ModelSpec, OutputKind


@dataclass(frozen=True)
class EngineFacts:
    """What the result's bytes depend on in a worker's engine; must be the same on all workers."""

    name: str
    device: str
    precision: str
    batch: int
    spec: str
    digest: str
    versions: tuple[tuple[str, str], ...]
    tilelab: str = __version__

    @classmethod
    def of(cls, engine: Engine) -> EngineFacts:
        """Of a loaded engine."""
        return cls(
            engine.name,
            engine.device.partition(":")[0],
            engine.precision,
            engine.batch,
            engine.spec.to_json(),
            engine.model_digest,
            tuple(engine.versions().items()),
        )

    def differences(self, other: EngineFacts) -> list[str]:
        """One phrase for each field that differs."""
        mine, theirs = ({**vars(f), **dict(f.versions)} for f in (self, other))
        return [
            f"{name} {mine.get(name, 'absent')} and {theirs.get(name, 'absent')}"
            for name in sorted({*mine, *theirs} - {"versions"})
            if mine.get(name) != theirs.get(name)
        ]


class EngineAccount(NamedTuple):
    """What a worker says of its engine; its streams and its GPU decide what a unit may hold, not the result."""

    facts: EngineFacts
    streams: int
    warnings: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    gpu_room: GpuRoom | None
    output_is: OutputKind


@dataclass(frozen=True)
class Order:
    """A job as it is sent to workers: everything but the image, the output and the engine, which they open themselves.

    topic: under which messages are sent.
    facts: what the first worker's engine is.
    report_seconds: between two reports of one worker.
    """

    topic: str
    image: str
    model: str
    options: Options
    plan: Plan
    facts: EngineFacts
    mean: Float32
    gain: Float32
    output: Place
    report_seconds: float

    @contextmanager
    def job(self, spec: ModelSpec) -> Iterator[Job]:
        """The job, with image and mask open."""
        with ExitStack() as opened:
            volume = Volume(opened.enter_context(open_source(self.image, self.options, spec)).image)
            mask = open_its_mask(volume, self.options)
            if mask is not None:
                opened.callback(mask.image.close)
            yield Job.of(volume, self.plan.request, self.mean, self.gain, mask, self.options.nan)


@dataclass(frozen=True, slots=True)
class Errand:
    """What a worker is sent out for: rows of a unit.

    number: of the attempt.
    unit: its index.
    start, stop: sweep positions.
    eager: say at once what is on disk.
    """

    number: int
    unit: int
    start: int
    stop: int
    eager: bool


def box_of(plan: Plan, unit: int, start: int, stop: int) -> Box:
    """The region of a unit of `plan` between two sweep positions."""
    box, axis = plan.units[unit].box, plan.frame.sweep_axis
    return Box(
        tuple(start if a == axis else n for a, n in enumerate(box.start)),
        tuple(stop if a == axis else n for a, n in enumerate(box.stop)),
    )


def count_tiles(plan: Plan, unit: int, start: int, stop: int) -> int:
    """Tiles of a unit of `plan` between two sweep positions."""
    return plan.lattice.count(box_of(plan, unit, start, stop)) if start < stop else 0
