"""From what the user named to a job that can run: the image and the model opened, checked against each other, planned.

Everything that can be refused is refused here, before a pixel is computed or a file is written.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilelab.assumptions import Assumption, check_strict
from tilelab.engines.base import Engine, GpuRoom
from tilelab.errors import InputError, ModelError
from tilelab.geometry import Cuts
from tilelab.io.images.finite import look_for_gaps
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume, network_input
from tilelab.machine.cpu import physical_core_count
from tilelab.run.idle import idle_flags, refuse_idle
from tilelab.run.intensities import glance
from tilelab.run.journal.fingerprint import Fingerprint
from tilelab.run.kind.suit import suit
from tilelab.run.normalize import normalization_constants
from tilelab.run.opening import OpenedImage, open_its_mask, open_source
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan, make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written, written_maps
from tilelab.spec import ModelSpec

if TYPE_CHECKING:
    from tilelab.run.sweep.job import Job  # brings Numba, which planning does without


@dataclass(frozen=True)
class Prepared:
    """A job, its plan and its engine; a context that closes what was opened for it, but the engine.

    normalization: how intensities were normalised, for the report.
    notes: one line each, for the user.
    assumptions: what had to be guessed of image and model.
    fingerprint: what the result's bytes depend on.
    named: what the user named as the image.
    scale: of the image as it is segmented to what is stored, where it was resampled by one.
    """

    opened: OpenedImage
    engine: Engine
    plan: Plan
    job: Job
    normalization: dict[str, Any]
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    fingerprint: Fingerprint
    named: Any = field(repr=False)
    scale: float | None = None

    @property
    def image(self) -> Image:
        """What is segmented."""
        return self.opened.image

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.job.close()
        self.opened.close()


def probability_classes(spec: ModelSpec, wanted: tuple[str, ...] | None) -> tuple[int, ...]:
    """The classes that get a probability channel.

    Raises:
        ModelError: a name is unknown.
    """
    names = [c.name for c in spec.classes]
    if wanted is None:
        return tuple(range(1, len(names)))
    if wanted == ("all",):
        return tuple(range(len(names)))
    if wanted == ("none",):
        return ()
    for name in wanted:
        if name not in names:
            raise ModelError(f"the model has no class {name!r}: choose among {', '.join(names)} (or all, none)")
    return tuple(sorted({names.index(name) for name in wanted}))


def expected_streams(options: Options) -> int:
    """Runs that an engine which is not loaded will have under way at once: one for each core that a worker has.

    Engines have fewer where memory is short, and one on a GPU.
    """
    if options.device.startswith("cuda"):
        return 1
    return options.threads or max(1, physical_core_count() // (options.workers or 1))


def written_of(spec: ModelSpec, options: Options) -> Written:
    """What is written for each pixel, of what the model gives and the user asks.

    Raises:
        ModelError: it does not give what was asked for.
    """
    first = spec.outputs[0]
    labels, logits = options.labels, 0
    classes: tuple[int, ...] = ()
    if not spec.classified:
        labels = False
        if options.probabilities not in (None, ("none",)):
            raise ModelError("the model gives maps alone, without classes: leave --probabilities out")
    elif first.kind == "labels":
        for flag, asked in (
            ("--probabilities", options.probabilities not in (None, ("none",))),
            ("--logits", options.logits),
        ):
            if asked:
                raise ModelError(f"the model gives labels alone: leave {flag} out")
    else:
        classes = probability_classes(spec, options.probabilities)
        logits = spec.values_of(first) if options.logits else 0
    written = Written(labels, classes, logits, written_maps(spec))
    if not written.bytes_per_pixel:
        raise ModelError("nothing would be written: leave --no-labels out, or ask for probabilities or logits")
    return written


def make_request(
    image: Image, spec: ModelSpec, options: Options, batch: int, streams: int, gpu: GpuRoom | None = None
) -> Request:
    """What a plan is asked for an opened image.

    Raises:
        ModelError, PlanError: image, model and options do not fit.
    """
    return Request.of(
        ImageFacts.of(network_input(Volume(image), spec)),
        spec,
        written_of(spec, options),
        batch=batch,
        streams=streams,
        symmetries=8 if options.symmetries else 1,
        masked=options.mask is not None or options.skip_empty,
        gpu=gpu,
    )


def plan_request(request: Request, options: Options, cuts: tuple[Cuts, ...] | None = None) -> Plan:
    """The plan that `options` ask for; `cuts` is the split of a run that is continued."""
    return make_plan(
        request,
        memory_limit=options.memory_bytes,
        lanes=options.lanes,
        spans=options.spans,
        workers=options.workers or 1,
        cuts=cuts,
    )


def plan_image(
    image: Image, spec: ModelSpec, options: Options, batch: int = 1, streams: int = 1, gpu: GpuRoom | None = None
) -> Plan:
    """The plan for an opened image, and an engine of so many tiles per run and runs at once, on this GPU if on one."""
    return plan_request(make_request(image, spec, options, batch, streams, gpu), options)


def prepare(image: Any, engine: Engine, options: Options) -> Prepared:
    """Check image, model and options against each other and plan the run.

    Raises:
        InputError, ModelError, PlanError: they do not fit; the message says what to do.
    """
    spec = engine.spec
    with contextlib.ExitStack() as failing:
        opened = failing.enter_context(open_source(image, options, spec))
        volume = Volume(opened.image)
        check_strict(opened.assumptions + engine.assumptions, options.strict)
        mean, gain, normalization = normalization_constants(
            volume, spec.normalization, spec.channels, options.intensity_range, neighbours=spec.neighbours
        )
        suited = suit(opened, engine, options, mean, gain)
        opened, mean, gain = suited.opened, suited.mean, suited.gain
        volume, normalization = Volume(opened.image), normalization | suited.said
        mask = open_its_mask(volume, options)
        if mask is not None:
            failing.callback(mask.image.close)
        assumptions = opened.assumptions + engine.assumptions + (mask.image.assumptions if mask else ())
        left_out = mask.image.warnings if mask is not None and options.skip_empty else ()
        check_strict(assumptions, options.strict)
        refuse_idle(options, spec)
        normal, limits = spec.normalization, spec.outputs[0].thresholds
        on_gpu = spec.plain and not limits and normal.per == "stack" and normal.clip is None
        gpu = engine.gpu_room if on_gpu else None
        plan = plan_image(opened.image, spec, options, engine.batch, engine.streams, gpu).on(engine)
        gaps = look_for_gaps(volume, mask, options.nan)
        assumptions += (*glance(volume, spec, mean, gain), *suited.assumptions)
        check_strict(assumptions, options.strict)
        from tilelab.run.sweep.job import Job

        job = Job.of(volume, plan.request, mean, gain, mask, options.nan)
        fingerprint = make_fingerprint(opened.image, engine, plan.request, job, options.nan)
        failing.pop_all()
    return Prepared(
        opened,
        engine,
        plan,
        job,
        normalization,
        (*opened.notes, *left_out, *gaps, *engine.warnings, *idle_flags(options, engine, volume, plan)),
        assumptions,
        fingerprint,
        image,
        suited.scale,
    )


def make_fingerprint(image: Image, engine: Engine, request: Request, job: Job, nan: float | None = None) -> Fingerprint:
    """What the bytes of a job's result depend on."""
    spec, written = engine.spec, request.written
    mask = "none" if job.mask is None else _digest(str(sorted(job.mask.image.fingerprint().items())).encode())
    return Fingerprint(
        input=_identify(image),
        model={"description": _digest(spec.to_json().encode()), "file": engine.model_digest},
        engine={
            "name": engine.name,
            "device": engine.device.partition(":")[0],
            "precision": engine.precision,
            "batch": str(engine.batch),
            **engine.versions(),
        },
        lattice={name: str(getattr(spec, name)) for name in ("tile", "overlap", "window", "stride")},
        options={
            "labels": str(written.labels),
            "probabilities": str(written.probabilities),
            "logits": str(written.logits > 0),
            "symmetries": str(request.symmetries > 1),
            "mask": mask,
            "normalization": _normalization(job),
            "pixel_size_nm": str(image.pixel_size_nm),
            **({} if nan is None else {"nan": str(nan)}),
            **({"maps": str(written.maps)} if written.maps else {}),
        },
    )


def _normalization(job: Job) -> str:
    """The numbers that intensities are normalised by; of many slices a digest."""
    if job.mean.ndim > 1:
        return f"per slice {_digest(job.mean.tobytes() + job.gain.tobytes())} {job.clip}"
    return f"{job.mean.tolist()} {job.gain.tolist()}" + (f" {job.clip}" if job.clip else "")


def check_unchanged(prepared: Prepared, options: Options) -> None:
    """Refuse a result of an image that is not, after the work, what it was before.

    A path is opened anew, so that a file which took the place of the one that was read is seen, too.

    Raises:
        InputError: it changed, or is gone.
    """
    before = prepared.fingerprint.input
    if isinstance(prepared.named, str | Path):
        with open_source(prepared.named, replace(options, scale=prepared.scale), prepared.engine.spec) as opened:
            now = _identify(opened.image)
    else:
        now = _identify(prepared.image)
    changed = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if changed:
        raise InputError(
            f"{prepared.image.uri} was changed while it was read ({', '.join(changed)}), the result would be of both: "
            "run again with --restart when nothing writes to it"
        )


def _identify(image: Image) -> dict[str, str]:
    return image.fingerprint() | {"shape": str(image.shape), "dtype": str(image.dtype), "axes": image.axes}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
