"""From what the user named to a job that can run: the image and the model opened, checked against each other, planned.

Everything that can be refused is refused here, before a pixel is computed or a file is written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelab.assumptions import Assumption, check_strict
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.mask import open_mask
from tilelab.io.images.region import crop
from tilelab.io.images.volume import Volume, network_input
from tilelab.io.zarr.layout import Layout
from tilelab.kernels.reference import SIGMOID, SOFTMAX
from tilelab.run.journal.fingerprint import Fingerprint
from tilelab.run.normalize import normalization_constants
from tilelab.run.options import Options
from tilelab.run.plan.plan import Outputs, Plan, Source, make_plan
from tilelab.spec import ModelSpec
from tilelab.text import size_text

if TYPE_CHECKING:
    from tilelab.run.sweep.job import Job  # brings Numba, which planning does without

PIXEL_SIZE_TOLERANCE = 0.1


@dataclass(frozen=True)
class Prepared:
    """A job, its plan and its engine.

    probabilities: the classes that get a channel.
    normalization: how intensities were normalised, for the report.
    notes: one line each, for the user.
    assumptions: what had to be guessed of image and model.
    fingerprint: what the result's bytes depend on.
    """

    image: Image
    engine: Engine
    plan: Plan
    job: Job
    probabilities: tuple[int, ...]
    normalization: dict[str, Any]
    notes: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    fingerprint: Fingerprint


def open_source(image: Any, options: Options, spec: ModelSpec) -> tuple[Image, list[str]]:
    """Open `image` (anything `open_image` reads) with a pixel size that suits the model, and say what was decided.

    Raises:
        InputError: it cannot be read.
        ModelError: its pixel size differs from the model's by more than 10 %.
    """
    if isinstance(image, Image):
        opened = image if options.region is None else crop(image, options.region)
    else:
        from tilelab.io.images.open import open_image

        opened = open_image(
            image,
            level=options.level,
            channel=options.channel,
            timepoint=options.timepoint,
            region=options.region,
        )
    notes = list(opened.warnings)
    spatial = opened.axes.replace("c", "")
    if options.pixel_size_nm is not None:
        size = options.pixel_size_nm * len(spatial) if len(options.pixel_size_nm) == 1 else options.pixel_size_nm
        if len(size) != len(spatial):
            raise InputError(
                f"--pixel-size has {len(size)} entries, {opened.uri} has axes {spatial}: give 1 or that many"
            )
        opened.pixel_size_nm = size
    want, have = spec.pixel_size_nm, opened.pixel_size_nm
    if want is None or options.ignore_pixel_size:
        return opened, notes
    if have is None:
        known = size_text(f"{s:g}" for s in want)
        opened.assumptions += (
            Assumption(
                what=f"the pixel size of {opened.uri}",
                taken=f"the model's, {known} nm",
                because="nothing states it",
                flag="--pixel-size",
            ),
        )
        return opened, notes
    ratios = [h / w for h, w in zip(have[-len(want) :], want, strict=True)]
    if all(abs(r - 1) <= PIXEL_SIZE_TOLERANCE for r in ratios):
        return opened, notes
    if options.rescale:
        from tilelab.io.images.resample import ResampledImage

        target = (*have[: len(have) - len(want)], *want)
        notes.append(f"resampled from {have[-1]:g} to {want[-1]:g} nm per pixel")
        return ResampledImage(opened, target), notes
    raise ModelError(
        f"{opened.uri} has {have[-1]:g} nm per pixel, the model was trained on {want[-1]:g}: "
        "resample with --rescale, or run as it is with --ignore-pixel-size"
    )


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


def plan_image(image: Image, spec: ModelSpec, options: Options, batch: int = 1, **split: Any) -> Plan:
    """The plan for an opened image; `split` is passed on to `make_plan`."""
    volume = network_input(Volume(image), spec)
    outputs = Outputs(
        options.labels,
        len(probability_classes(spec, options.probabilities)),
        spec.outputs if options.logits else 0,
    )
    layout = Layout.fit(
        volume.shape,
        volume.pixel_size_nm,
        "2d" if spec.axes == "yx" else "3d",
        outputs.bytes_per_pixel,
    )
    if not (options.labels or outputs.probabilities or options.logits):
        raise ModelError("nothing would be written: leave --no-labels out, or ask for probabilities or logits")
    return make_plan(
        Source(volume.shape, volume.chunks, volume.channels, volume.dtype.itemsize),
        spec,
        layout,
        outputs,
        batch=batch,
        memory_limit=options.memory_bytes,
        **({"lanes": options.lanes, "spans": options.spans, "workers": options.workers or 1} | split),
    )


def prepare(image: Any, engine: Engine, options: Options) -> Prepared:
    """Check image, model and options against each other and plan the run.

    Raises:
        InputError, ModelError, PlanError: they do not fit; the message says what to do.
    """
    spec = engine.spec
    opened, notes = open_source(image, options, spec)
    notes += engine.warnings
    assumptions = opened.assumptions + engine.assumptions
    check_strict(assumptions, options.strict)
    volume = Volume(opened)
    if options.symmetries and spec.tile[-1] != spec.tile[-2]:
        raise ModelError(f"the 8 symmetries need a square tile, this one is {size_text(spec.tile)}")
    plan = plan_image(opened, spec, options, engine.batch)
    mask = None if options.mask is None else open_mask(options.mask, volume)
    mean, gain, normalization = normalization_constants(
        volume, spec.normalization, spec.channels, options.intensity_range
    )
    probabilities = probability_classes(spec, options.probabilities)
    from tilelab.run.sweep.job import Job

    job = Job(
        image=network_input(volume, spec),
        lattice=plan.lattice,
        frame=plan.frame,
        mean=mean,
        gain=gain,
        activation=SOFTMAX if spec.activation == "softmax" else SIGMOID,
        channels=np.array(probabilities, np.int64),
        labels=options.labels,
        logits=options.logits,
        mask=mask,
        symmetries=8 if options.symmetries else 1,
    )
    fingerprint = {
        "input": opened.fingerprint() | {"shape": str(opened.shape), "dtype": str(opened.dtype), "axes": opened.axes},
        "model": {"description": _digest(spec.to_json().encode()), "file": engine.model_digest},
        "engine": {
            "name": engine.name,
            "device": engine.device.partition(":")[0],
            "precision": engine.precision,
            "batch": str(engine.batch),
            **engine.versions(),
        },
        "lattice": {name: str(getattr(spec, name)) for name in ("tile", "overlap", "window", "stride")},
        "options": {
            "labels": str(options.labels),
            "probabilities": str(probabilities),
            "logits": str(options.logits),
            "symmetries": str(options.symmetries),
            "mask": "none" if mask is None else _digest(str(sorted(mask.image.fingerprint().items())).encode()),
            "normalization": f"{mean.tolist()} {gain.tolist()}",
            "pixel_size_nm": str(opened.pixel_size_nm),
        },
    }
    return Prepared(opened, engine, plan, job, probabilities, normalization, tuple(notes), assumptions, fingerprint)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
