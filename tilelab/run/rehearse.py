"""A rehearsal: the whole job on a small part of the image that is spread over all of it, with an engine that copies.

Everything but the network is the real job's: the image's files, tiles, overlap, window, normalisation and outputs.
The result goes into a temporary folder, is compared pixel by pixel with what it must be, and is removed.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tilelab.arrays import Float32
from tilelab.assumptions import check_strict
from tilelab.engines.base import BaseEngine
from tilelab.errors import EngineError, OutputError
from tilelab.geometry import Box, boxes
from tilelab.io.images.finite import look_for_gaps
from tilelab.io.images.image import Image
from tilelab.io.images.volume import Volume, network_input
from tilelab.io.results.result import Result, read_result
from tilelab.io.storage.local_path import LocalPath
from tilelab.io.storage.place import Address, Place
from tilelab.kernels.reference import ACTIVATIONS, finish
from tilelab.machine.disk import why_unwritten
from tilelab.run.infer import infer
from tilelab.run.kind.suit import look_at_kind
from tilelab.run.normalize import normalization_constants
from tilelab.run.opening import open_its_mask, open_source
from tilelab.run.options import Options, load
from tilelab.run.places import try_places
from tilelab.run.plan.estimate import calibrate, expected_seconds, seconds_per_tile, stored_bytes
from tilelab.run.plan.plan import Plan
from tilelab.run.prepare import plan_image, prepare, probability_classes
from tilelab.run.target import check_format, check_options, convert_result, output_path, present, work_path
from tilelab.run.thinned import ThinnedImage
from tilelab.spec import ClassInfo, ModelSpec, Output, default_colors
from tilelab.text import format_bytes, size_text


class CopyingEngine(BaseEngine):
    """Stands in for a network of this description: output k is a multiple of an input channel."""

    name = "identity"

    def __init__(self, spec: ModelSpec, tile: tuple[int, ...], batch: int) -> None:
        super().__init__(spec, tile, batch)
        self.source = [k % spec.channels for k in range(spec.values)]
        self.factor = [(-1.0) ** k / (1 + k // 2) for k in range(spec.values)]  # all different: no ties

    def run(self, tiles: Float32, out: Float32) -> None:
        """Copy."""
        for k, (channel, factor) in enumerate(zip(self.source, self.factor, strict=True)):
            np.multiply(tiles[:, channel], np.float32(factor), out=out[:, k])


@dataclass(frozen=True)
class Expected:
    """What the real job will take.

    output: where the result goes.
    workers, tiles, units: how the work is shared.
    seconds: from the start of the first unit to the end of the last; `seconds_reading` of them, if nothing else is
        done meanwhile.
    bytes_read, bytes_stored: of the image, decoded and as it is stored (None when that cannot be told).
    read_bytes_per_second: as seen, decoded.
    bytes_written_at_most: before compression.
    memory_per_worker: bytes beside the engine.
    """

    output: str
    workers: int
    seconds: float
    tiles: int
    units: int
    bytes_read: int
    bytes_stored: int | None
    read_bytes_per_second: float
    seconds_reading: float
    bytes_written_at_most: int
    memory_per_worker: int


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found: one line for each thing that was checked, and what is to be expected."""

    checked: tuple[str, ...]
    expected: Expected

    def document(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"checked": list(self.checked), "expected": vars(self.expected)}


@dataclass(frozen=True)
class _Job:
    """The real job: its image, its plan, and a stand-in for its engine, which takes so many seconds for a tile."""

    image: Image
    plan: Plan
    stand_in: CopyingEngine
    seconds_per_tile: float


def dry_run(
    image: Any,
    model: str | Path,
    out: Address | None,
    options: Options,
    note: Callable[[str], None],
    speed: float | None = None,
) -> Rehearsal:
    """Rehearse `infer`; leaves nothing behind.

    Args:
        image, model, out, options: as for `infer`.
        note: told what the user should know.
        speed: megapixels per second of one worker; by default measured here, on this machine's engine.

    Raises:
        TilelabError: what the real job would meet: something does not fit, cannot be read or written.
    """
    target = output_path(image, out, model)
    check_options(target, options)
    checked: list[str] = []
    with contextlib.ExitStack() as opened:
        job = _open_job(image, model, options, note, speed, checked, opened)
        check_format(target, job.plan)
        checked.append(_check_target(target, job.plan, options.restart))
        tile = dict(zip(job.plan.spec.axes, job.plan.spec.tile, strict=True))
        allowed = options.nan if options.nan is not None or options.mask is None else 0.0  # in gaps of the mask
        thinned = ThinnedImage(job.image, least={axis: 2 * n for axis, n in tile.items()}, nan=allowed)
        with tempfile.TemporaryDirectory(prefix="tilelab-dry-run-") as folder:
            small = LocalPath(folder) / "rehearsal.ome.zarr"
            checked += _rehearse(thinned, job.stand_in, small, options)
            if work_path(target) != target:
                converted = LocalPath(folder) / f"rehearsal{''.join(target.suffixes[-2:])}"
                convert_result(small, converted, options)
                checked.append(f"the result was converted to {converted.suffix[1:]}")
        return Rehearsal(tuple(checked), _expect(job, thinned, target, max(1, options.workers or 1)))


def _open_job(
    image: Any,
    model: str | Path,
    options: Options,
    note: Callable[[str], None],
    speed: float | None,
    checked: list[str],
    opened: contextlib.ExitStack,
) -> _Job:
    """Open and plan the real job and measure its engine; `opened` closes the image, `checked` is told what is well."""
    engine = load(model, options)
    try:
        source = opened.enter_context(open_source(image, options, engine.spec))
        assumptions = source.assumptions + engine.assumptions
        check_strict(assumptions, options.strict)
        for said in (*source.notes, *assumptions):
            note(str(said))
        plan = plan_image(source.image, engine.spec, options, engine.batch, engine.streams, engine.gpu_room).on(engine)
        own = replace(
            _for_rehearsal(options),
            device=options.device,
            invert=options.invert,
            fit=options.fit,
            mask=options.mask,
            mask_axes=options.mask_axes,
            mask_series=options.mask_series,
        )
        with prepare(source.image, engine, own) as prepared:
            for said in prepared.assumptions:
                if said not in assumptions:
                    note(str(said))
            hints: list[str] = []
            unlike = look_at_kind(prepared.image, engine, own, prepared.job.mean, prepared.job.gain, hints.append)
            for line in (*map(str, unlike), *hints):
                note(line)
            check_strict(unlike, options.strict)
            places = try_places(prepared)
        per_tile = calibrate(engine) * plan.request.symmetries if speed is None else seconds_per_tile(plan, speed)
        stand_in = CopyingEngine(_plain(engine.spec), engine.tile, engine.batch)
        checked.append(f"{engine.name} {engine.precision} on {engine.device} loads the model and runs it")
        checked.append(f"{places} places of the image went through it: all logits are finite")
    finally:
        engine.close()
    volume = Volume(source.image)
    mask = open_its_mask(volume, options)
    for said in look_for_gaps(volume, mask, options.nan):
        note(said)
    if mask is not None:
        if options.skip_empty:
            note(mask.image.warnings[0])
        mask.image.close()
        if options.mask is not None:
            checked.append("the mask fits the image")
    return _Job(source.image, plan, stand_in, per_tile)


def _rehearse(thinned: ThinnedImage, stand_in: CopyingEngine, out: Place, options: Options) -> list[str]:
    """Segment the thinned image into `out` and look at every pixel; returns what was seen.

    Raises:
        EngineError: a pixel is wrong.
    """
    began = time.perf_counter()
    run = infer(thinned, stand_in, out, options=_for_rehearsal(options))
    seconds = time.perf_counter() - began
    tiles = run.report["tiles"]
    pixels = _compare(thinned, read_result(out), stand_in, options)
    size = f"{thinned.axes} {size_text(thinned.shape)}"
    read = f"{format_bytes(thinned.bytes)} in {thinned.seconds:.1f} s"
    return [
        f"{thinned.blocks[0]} of {thinned.blocks[1]} blocks spread over the image were read ({size}, {read})",
        f"{tiles['inferred'] + tiles['skipped']} tiles were cut, blended and written in {seconds:.1f} s",
        f"all {pixels} pixels written are those that the copying engine must give",
    ]


def _expect(job: _Job, thinned: ThinnedImage, target: Place, workers: int) -> Expected:
    """What the real job will take, by the rates that were seen."""
    plan = job.plan
    rate = thinned.bytes / max(1e-9, thinned.seconds)
    return Expected(
        output=str(target),
        workers=workers,
        seconds=expected_seconds(plan, job.seconds_per_tile, workers),
        tiles=plan.tiles,
        units=len(plan.units),
        bytes_read=plan.source.bytes,
        bytes_stored=stored_bytes(job.image),
        read_bytes_per_second=rate,
        seconds_reading=plan.source.bytes / rate / workers,
        bytes_written_at_most=plan.bytes_written,
        memory_per_worker=plan.memory_bytes,
    )


def _plain(spec: ModelSpec) -> ModelSpec:
    """The same for one output of logits as large as its tile, and intensities of the stack: what is compared here."""
    changes: dict[str, Any] = {"outputs": (Output(),), "home": None}  # no image is of the kind that copying knows
    if len(spec.classes) < 2:
        changes["classes"] = tuple(ClassInfo(f"class {i}", color) for i, color in enumerate(default_colors(2)))
    normalization = msgspec.structs.replace(spec.normalization, per="stack", clip=None)
    return msgspec.structs.replace(spec, normalization=normalization, **changes)


def _for_rehearsal(options: Options) -> Options:
    """The same job on an image that is open already, in this process."""
    return replace(
        options,
        level=0,
        series=None,
        channel=None,
        timepoint=None,
        axes=None,
        region=None,
        mask=None,
        mask_axes=None,
        mask_series=None,
        bar=None,
        skip_empty=False,
        pixel_size_nm=None,
        ignore_pixel_size=True,
        rescale=False,
        scale=None,
        fit=False,
        invert=False,
        exact=False,
        workers=None,
        scheduler=None,
        restart=False,
        auto_tile=False,
        device="cpu",
    )


def _check_target(target: Place, plan: Plan, restart: bool) -> str:
    """Whether the result can be written; returns what was found.

    Raises:
        OutputError: it cannot.
    """
    if present(target) and not restart:
        return f"{target} exists: the run would only go on if it is a result of the very same job"
    try:
        free = target.free_bytes()
    except OSError as error:
        raise OutputError(f"cannot write {target}: {why_unwritten(error)}") from None
    if free is None:
        return f"{target} can be written"
    if free < plan.bytes_written:
        return (
            f"{target} can be written, but {format_bytes(free)} are free there and up to "
            f"{format_bytes(plan.bytes_written)} may be needed (before compression)"
        )
    return f"{target} can be written, {format_bytes(free)} are free there"


def _compare(image: ThinnedImage, result: Result, engine: CopyingEngine, options: Options) -> int:
    """Compare a result with what it must be; returns the number of pixels.

    Raises:
        EngineError: it differs.
    """
    spec = engine.spec
    volume = network_input(Volume(image), spec)
    mean, gain, _ = normalization_constants(volume, spec.normalization, spec.channels, options.intensity_range)
    chosen = np.array(probability_classes(spec, options.probabilities), np.int64)
    flat = "z" not in result.info.axes
    for box in boxes(volume.shape, (1, 256, volume.shape[2])):
        raw = volume.read(box).astype(np.float32)
        scaled = (raw - mean[:, None, None, None]) * gain[:, None, None, None]
        logits = np.stack([scaled[k] * np.float32(f) for k, f in zip(engine.source, engine.factor, strict=True)])
        ranked = np.sort(np.concatenate([logits, np.zeros_like(logits[:1])]), axis=0)
        clear = ranked[-1] - ranked[-2] > 1e-3 * (1 + np.abs(ranked[-1]))  # blending rounds where two are equal
        labels = np.empty(box.shape, np.uint8)
        shares = np.empty((len(chosen), *box.shape), np.uint8)
        finish(
            logits, 0, ACTIVATIONS[spec.activation], labels, shares, chosen, np.empty((0, 0, 0, 0), np.float32),
            spec.sharpness,
        )  # fmt: skip
        part = Box(box.start[1:], box.stop[1:]) if flat else box
        wrong = 0
        if options.labels:
            wrong += int(((result.labels[0].read(part).reshape(box.shape) != labels) & clear).sum())
        if len(chosen):
            lead = Box((0, *part.start), (len(chosen), *part.stop))
            found = result.probabilities[0].read(lead).reshape(shares.shape)
            wrong += int((np.abs(found.astype(np.int16) - shares) > 1).sum())
        if wrong:
            raise EngineError(f"the rehearsal went wrong: {wrong} values in {box} are not those of the image")
    return math.prod(volume.shape)
