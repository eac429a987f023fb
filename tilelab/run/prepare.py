"""From what the user named to a job that can run: the image and the model opened, checked against each other, planned.

Everything that can be refused is refused here, before a pixel is computed or a file is written.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tilelab.assumptions import Assumption, check_strict
from tilelab.engines.base import Engine, GpuRoom
from tilelab.errors import InputError, ModelError
from tilelab.geometry import Cuts
from tilelab.io.images.image import Image
from tilelab.io.images.mask import open_mask
from tilelab.io.images.region import crop
from tilelab.io.images.view import given_pixel_size
from tilelab.io.images.volume import Volume, network_input
from tilelab.machine.cpu import physical_core_count
from tilelab.run.journal.fingerprint import Fingerprint
from tilelab.run.normalize import normalization_constants
from tilelab.run.options import Options
from tilelab.run.plan.plan import Plan, make_plan
from tilelab.run.plan.request import ImageFacts, Request, Written
from tilelab.spec import ModelSpec
from tilelab.text import size_text

if TYPE_CHECKING:
    from tilelab.run.sweep.job import Job  # brings Numba, which planning does without

PIXEL_SIZE_TOLERANCE = 0.1


@dataclass(frozen=True)
class OpenedImage:
    """An image as a run reads it; a context that closes what was opened for it, and leaves what the caller gave open.

    notes: one line each, for the user.
    assumptions: what had to be guessed of it.
    """

    image: Image
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    _close: Callable[[], None] = field(repr=False)

    def close(self) -> None:
        """Close the image if it was opened here."""
        self._close()

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Prepared:
    """A job, its plan and its engine; a context that closes what was opened for it, but the engine.

    normalization: how intensities were normalised, for the report.
    notes: one line each, for the user.
    assumptions: what had to be guessed of image and model.
    fingerprint: what the result's bytes depend on.
    """

    opened: OpenedImage
    engine: Engine
    plan: Plan
    job: Job
    normalization: dict[str, Any]
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    fingerprint: Fingerprint

    @property
    def image(self) -> Image:
        """What is segmented."""
        return self.opened.image

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self.job.close()
        self.opened.close()


def open_source(image: Any, options: Options, spec: ModelSpec) -> OpenedImage:
    """Open `image` (anything `open_image` reads) with a pixel size that suits the model, and say what was decided.

    An `Image` stays as it is: a pixel size that is stated is that of a copy.

    Raises:
        InputError: it cannot be read.
        ModelError: its pixel size differs from the model's by more than 10 %, or it is to be resampled and one of the
            two is not known.
    """
    if options.rescale and options.ignore_pixel_size:
        raise ModelError("--rescale and --ignore-pixel-size contradict each other: give one of them")
    with contextlib.ExitStack() as failing:
        opened = _open(image, options)
        if not isinstance(image, Image):
            failing.callback(opened.close)
        suited, notes, assumptions = _suit_pixel_size(opened, options, spec)
        return OpenedImage(
            suited, (*opened.warnings, *notes), opened.assumptions + assumptions, failing.pop_all().close
        )


def _open(image: Any, options: Options) -> Image:
    """Open `image` as `options` say; one that is open already is what it is, but for region and pixel size."""
    if not isinstance(image, Image):
        from tilelab.io.images.open import open_image

        return open_image(
            image,
            level=options.level,
            channel=options.channel,
            timepoint=options.timepoint,
            axes=options.axes,
            pixel_size_nm=options.pixel_size_nm,
            region=options.region,
        )
    if options.level or any(v is not None for v in (options.channel, options.timepoint, options.axes)):
        raise InputError(f"{image.uri} is open already: level, channel and the like are chosen when it is opened")
    if options.pixel_size_nm is not None:
        image = copy.copy(image)
        image.pixel_size_nm = given_pixel_size(options.pixel_size_nm, image.axes.replace("c", ""), image.uri)
        image.assumptions = tuple(a for a in image.assumptions if a.flag != "--pixel-size")
    return image if options.region is None else crop(image, options.region)


def _suit_pixel_size(
    opened: Image, options: Options, spec: ModelSpec
) -> tuple[Image, tuple[str, ...], tuple[Assumption, ...]]:
    """`opened` with a pixel size that suits the model, what to note, and what was assumed; see `open_source`."""
    want, have = spec.pixel_size_nm, opened.pixel_size_nm
    if want is None or have is None:
        return (opened, *_without_pixel_size(opened, options, want))
    shared = min(len(have), len(want))
    seen, trained = have[-shared:], want[-shared:]
    if all(abs(h / w - 1) <= PIXEL_SIZE_TOLERANCE for h, w in zip(seen, trained, strict=True)):
        same = f"{_sizes(seen)} nm of the image and {_sizes(trained)} nm of the model are within 10 %"
        flags = (("--rescale", options.rescale), ("--ignore-pixel-size", options.ignore_pixel_size))
        return opened, tuple(f"{flag} does nothing: {same}" for flag, asked in flags if asked), ()
    if options.ignore_pixel_size:
        return opened, (), ()
    if options.rescale:
        from tilelab.io.images.resample import ResampledImage

        resampled = f"resampled from {_sizes(seen)} to {_sizes(trained)} nm per pixel"
        return ResampledImage(opened, (*have[: len(have) - shared], *trained)), (resampled,), ()
    raise ModelError(
        f"{opened.uri} has {_sizes(seen)} nm per pixel, the model was trained on {_sizes(trained)}: "
        "resample with --rescale, or run as it is with --ignore-pixel-size"
    )


def _without_pixel_size(
    opened: Image, options: Options, want: tuple[float, ...] | None
) -> tuple[tuple[str, ...], tuple[Assumption, ...]]:
    """What to note and what was assumed where the image or the model states no pixel size."""
    if options.rescale:
        what, flag = ("the model", "--model-pixel-size") if want is None else (opened.uri, "--pixel-size")
        raise ModelError(f"--rescale needs the pixel size of {what}, which is not stated: give it with {flag}")
    if options.ignore_pixel_size:
        what = "the model states no pixel size" if want is None else "the image's pixel size is not known"
        return (f"--ignore-pixel-size does nothing: {what}",), ()
    if want is None:
        return (), ()
    assumed = Assumption(
        what=f"the pixel size of {opened.uri}",
        taken=f"the model's, {size_text(f'{s:g}' for s in want)} nm",
        because="nothing states it",
        flag="--pixel-size",
    )
    return (), (assumed,)


def _sizes(nm: Sequence[float]) -> str:
    """Pixel sizes for people: one number where they are equal."""
    return f"{nm[0]:g}" if len(set(nm)) == 1 else " x ".join(f"{size:g}" for size in nm)


def open_its_mask(volume: Volume, options: Options) -> Volume | None:
    """The mask that `options` name for an image, if they do; see `open_mask`."""
    return None if options.mask is None else open_mask(options.mask, volume, options.mask_axes)


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
    return tuple(sorted(names.index(name) for name in wanted))


def expected_streams(options: Options) -> int:
    """Runs that an engine which is not loaded will have under way at once: one for each core that a worker has.

    Engines have fewer where memory is short, and one on a GPU.
    """
    if options.device.startswith("cuda"):
        return 1
    return options.threads or max(1, physical_core_count() // (options.workers or 1))


def make_request(
    image: Image, spec: ModelSpec, options: Options, batch: int, streams: int, gpu: GpuRoom | None = None
) -> Request:
    """What a plan is asked for an opened image.

    Raises:
        ModelError, PlanError: image, model and options do not fit.
    """
    written = Written(
        options.labels,
        probability_classes(spec, options.probabilities),
        spec.outputs if options.logits else 0,
    )
    if not written.bytes_per_pixel:
        raise ModelError("nothing would be written: leave --no-labels out, or ask for probabilities or logits")
    return Request.of(
        ImageFacts.of(network_input(Volume(image), spec)),
        spec,
        written,
        batch=batch,
        streams=streams,
        symmetries=8 if options.symmetries else 1,
        masked=options.mask is not None,
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
        mask = open_its_mask(volume, options)
        if mask is not None:
            failing.callback(mask.image.close)
        assumptions = opened.assumptions + engine.assumptions + (mask.image.assumptions if mask else ())
        check_strict(assumptions, options.strict)
        plan = plan_image(opened.image, spec, options, engine.batch, engine.streams, engine.gpu_room)
        mean, gain, normalization = normalization_constants(
            volume, spec.normalization, spec.channels, options.intensity_range
        )
        from tilelab.run.sweep.job import Job

        job = Job.of(volume, plan.request, mean, gain, mask)
        fingerprint = make_fingerprint(opened.image, engine, plan.request, job)
        failing.pop_all()
    return Prepared(
        opened, engine, plan, job, normalization, (*opened.notes, *engine.warnings), assumptions, fingerprint
    )


def make_fingerprint(image: Image, engine: Engine, request: Request, job: Job) -> Fingerprint:
    """What the bytes of a job's result depend on."""
    spec, written = engine.spec, request.written
    mask = "none" if job.mask is None else _digest(str(sorted(job.mask.image.fingerprint().items())).encode())
    return Fingerprint(
        input=image.fingerprint() | {"shape": str(image.shape), "dtype": str(image.dtype), "axes": image.axes},
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
            "normalization": f"{job.mean.tolist()} {job.gain.tolist()}",
            "pixel_size_nm": str(image.pixel_size_nm),
        },
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
