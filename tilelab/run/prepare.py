"""From what the user named to a job that can run: the image and the model opened, checked against each other, planned.

Everything that can be refused is refused here, before a pixel is computed or a file is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tilelab.assumptions import Assumption, check_strict
from tilelab.engines.base import Engine
from tilelab.errors import InputError, ModelError
from tilelab.io.images.image import Image
from tilelab.io.images.mask import open_mask
from tilelab.io.images.region import crop
from tilelab.io.images.view import given_pixel_size
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
        ModelError: its pixel size differs from the model's by more than 10 %, or it is to be resampled and one of the
            two is not known.
    """
    if options.rescale and options.ignore_pixel_size:
        raise ModelError("--rescale and --ignore-pixel-size contradict each other: give one of them")
    opened = _open(image, options)
    try:
        return _suit_pixel_size(opened, options, spec)
    except ModelError:
        if opened is not image:
            opened.close()
        raise


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
        spatial = image.axes.replace("c", "")
        image.pixel_size_nm = given_pixel_size(options.pixel_size_nm, spatial, image.uri)
        image.assumptions = tuple(a for a in image.assumptions if a.flag != "--pixel-size")
    return image if options.region is None else crop(image, options.region)


def _suit_pixel_size(opened: Image, options: Options, spec: ModelSpec) -> tuple[Image, list[str]]:
    """`opened` with a pixel size that suits the model, and what there is to say; see `open_source`."""
    notes = list(opened.warnings)
    want, have = spec.pixel_size_nm, opened.pixel_size_nm
    if options.rescale and (want is None or have is None):
        what, flag = ("the model", "--model-pixel-size") if want is None else (opened.uri, "--pixel-size")
        raise ModelError(f"--rescale needs the pixel size of {what}, which is not stated: give it with {flag}")
    if want is None or have is None:
        if options.ignore_pixel_size:
            what = "the model states no pixel size" if want is None else "the image's pixel size is not known"
            notes.append(f"--ignore-pixel-size does nothing: {what}")
        elif want is not None:
            known = " x ".join(f"{s:g}" for s in want)
            opened.assumptions += (
                Assumption(
                    what=f"the pixel size of {opened.uri}",
                    taken=f"the model's, {known} nm",
                    because="nothing states it",
                    flag="--pixel-size",
                ),
            )
        return opened, notes
    shared = min(len(have), len(want))
    seen, trained = have[-shared:], want[-shared:]
    if all(abs(h / w - 1) <= PIXEL_SIZE_TOLERANCE for h, w in zip(seen, trained, strict=True)):
        for flag, asked in (("--rescale", options.rescale), ("--ignore-pixel-size", options.ignore_pixel_size)):
            if asked:
                same = f"{_sizes(seen)} nm of the image and {_sizes(trained)} nm of the model are within 10 %"
                notes.append(f"{flag} does nothing: {same}")
        return opened, notes
    if options.ignore_pixel_size:
        return opened, notes
    if options.rescale:
        from tilelab.io.images.resample import ResampledImage

        target = (*have[: len(have) - shared], *trained)
        notes.append(f"resampled from {_sizes(seen)} to {_sizes(trained)} nm per pixel")
        return ResampledImage(opened, target), notes
    raise ModelError(
        f"{opened.uri} has {_sizes(seen)} nm per pixel, the model was trained on {_sizes(trained)}: "
        "resample with --rescale, or run as it is with --ignore-pixel-size"
    )


def _sizes(nm: Sequence[float]) -> str:
    """Pixel sizes for people: one number where they are equal."""
    return f"{nm[0]:g}" if len(set(nm)) == 1 else " x ".join(f"{size:g}" for size in nm)


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
    volume = Volume(opened)
    mask = None if options.mask is None else open_mask(options.mask, volume, options.mask_axes)
    assumptions = opened.assumptions + engine.assumptions + (mask.image.assumptions if mask else ())
    check_strict(assumptions, options.strict)
    if options.symmetries and spec.tile[-1] != spec.tile[-2]:
        raise ModelError(f"the 8 symmetries need a square tile, this one is {size_text(spec.tile)}")
    plan = plan_image(opened, spec, options, engine.batch)
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
