"""From a checkpoint or an ONNX file to a verified engine file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tilelab.engines.files.half import convert_to_half, simulate_half
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.registry import ENGINES, RANKING, availability, load_engine, model_files, read_model
from tilelab.errors import EngineError, ModelError, OutputError
from tilelab.exporting.home import learn_home
from tilelab.exporting.parity import Parity, ParityError, Reference, Sample, check_parity, compare
from tilelab.exporting.seams import measure_file
from tilelab.exporting.source import CheckpointSource, OnnxSource, open_network
from tilelab.exporting.write import FORMATS, Format, Request, Writing
from tilelab.geometry import Window
from tilelab.io.images.image import Image
from tilelab.io.storage.claims import Write, claim
from tilelab.machine import nvidia
from tilelab.machine.disk import move_whole, remove_entry, why_unwritten, work_folder
from tilelab.spec import Home, ModelSpec, Precision
from tilelab.text import install_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How the network is to be tiled; None leaves what it says of itself.  Pixels.

    free_size leaves height and width of an ONNX file free; it is proved at three more sizes.
    """

    tile: int | None = None
    overlap: int | None = None
    window: Window | None = None
    free_size: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written: the file, what it holds, its description, and every comparison that was made."""

    path: Path
    file: ModelFile
    spec: ModelSpec
    checks: tuple[Parity, ...]


def export_model(
    source: Path | CheckpointSource | OnnxSource,
    output: Path,
    samples: Sequence[Sample] | Callable[[ModelSpec], Sequence[Sample]],
    *,
    precision: Precision | None = None,
    place: Place | None = None,
    request: Request | None = None,
    require: Sequence[Precision] = (),
    trained: Sequence[Image] = (),
    known: Sequence[Image] = (),
    foreign: Sequence[Sequence[Image]] = (),
    seams: bool = True,
    calibrate: bool = True,
    force: bool = False,
    report: Callable[[str], None] = lambda _: None,
) -> Exported:
    """Write an engine file and pass it through the parity gate.

    Args:
        source: a checkpoint of `tilelab train`, or a described ONNX file.
        output: its suffix is the format; the file appears only when everything has passed.
        samples: images to compare on, at least one; or what gives them for the description.
        precision: the arithmetic that the file holds; None is that of the source.
        place: how it is to be tiled.
        request: what compilers and quantisers want to know.
        require: precisions that engines must reach with the file, beside its own; others that they reach are tried
            too, and permitted if they pass.
        trained: images that the network was trained on: what they look like is kept in the file, see `learn_home`.
        known: others that it is at home with, beside the samples.
        foreign: groups of images that it is not at home with.
        seams: measure how far tiles are from the whole image; False keeps what the source says of it.
        calibrate: find the temperature of the probabilities, where truth is known; False keeps what the source says.
        force: replace an existing output.
        report: called with one line per check.

    Raises:
        ModelError: the source is broken, or its network cannot be exported.
        ParityError: the file does not reproduce the network; nothing is left under the final name.
        OutputError: `output` exists or cannot be written.
        EngineError: a library, device or precision that is needed is not to be had here.
    """
    place, request = place or Place(), request or Request()
    if isinstance(source, Path):
        source = open_network(source)
    kind = check_output(source, output, force)
    held = _check_precision(source, output, kind, precision, request)
    if place.free_size and kind.fixed:
        raise ModelError(f"{output.suffix} files have their size fixed: leave --free-size out")
    if kind.name != "onnx" and len(availability_of(kind.name)) == 0:
        reasons = dict.fromkeys(availability(name).reason for name in readers(kind.name))
        raise EngineError(f"{output.suffix} files cannot be made and checked here: {'; '.join(reasons)}")
    spec = source.place(place.tile, place.overlap, place.window, free_size=place.free_size)
    spec = msgspec.structs.replace(spec, precisions=(held,))
    if kind.fixed:
        spec = msgspec.structs.replace(spec, tile_fixed=True, tile_min=None)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with work_folder(output.parent, ".export-") as folder:
            partial = folder / output.name
            written = Writing(source, spec, held, partial, request, folder).write()
            images = samples(spec) if callable(samples) else samples
            reference = Reference(source.reference, images)
            gate = _Gate(reference, partial, source.threads, request, report)
            passed = gate.pass_all(spec, require)
            spec = msgspec.structs.replace(
                spec, precisions=passed, training={**spec.training, "proved": gate.proved(passed)}
            )
            if seams and spec.axes == "yx" and spec.plain and gate.file.device is None:
                spec = msgspec.structs.replace(spec, seams=measure_file(partial, images, source.threads))
            if calibrate:
                spec = msgspec.structs.replace(spec, confidence=reference.confidence(spec))
            if trained:
                spec = msgspec.structs.replace(
                    spec, home=_home(partial, source.threads, trained, images, known, foreign)
                )
            written.describe(spec)
            written_files = list(
                reversed(read_model(partial).files)
            )  # the file itself last, when its weights are there
            claim_output(source, output, force, [output.parent / file.name for file in written_files])
            for file in written_files:
                move_whole(file, output.parent / file.name)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {why_unwritten(error)}") from error
    return Exported(output, read_model(output), spec, tuple(gate.checks))


def _home(
    path: Path,
    threads: int | None,
    trained: Sequence[Image],
    samples: Sequence[Sample],
    known: Sequence[Image],
    foreign: Sequence[Sequence[Image]],
) -> Home:
    """What `trained` look like to the exported file; the gate's images are known to it, too."""
    engine = load_engine(path, device="auto", threads=threads, trial=False)
    try:
        return learn_home(engine, trained, [*(sample.image for sample in samples), *known], foreign)
    finally:
        engine.close()


def check_output(source: CheckpointSource | OnnxSource, output: Path, force: bool) -> Format:
    """The format of `output`; raises `OutputError` where it may not be written."""
    kind = FORMATS.get(output.suffix)
    if kind is None:
        raise OutputError(f"cannot export to {output}: give a name that ends with one of {', '.join(FORMATS)}")
    claim_output(source, output, force)
    return kind


def claim_output(
    source: CheckpointSource | OnnxSource, output: Path, force: bool, files: Sequence[Path] | None = None
) -> None:
    """Refuse to write over the source, or without `force` over anything; an .xml has its weights in a .bin beside it.

    Raises:
        OutputError: it names the file.
    """
    if files is None:
        files = [output, *([output.with_suffix(".bin")] if output.suffix == ".xml" else [])]
    for file in files:
        if os.path.lexists(file) and not force:
            raise OutputError(f"{file} exists: give another name or --force")
    reads = {"what shall be exported": model_files(source.path) or source.path}
    claim(reads, [Write(file, "-o", "model") for file in files])


def _check_precision(
    source: CheckpointSource | OnnxSource, output: Path, kind: Format, asked: Precision | None, request: Request
) -> Precision:
    """The precision that `output` will hold; raises where it cannot."""
    held = asked or source.precision
    if held not in kind.precisions:
        hint = ": engines compute an fp32 file so where it passes (see --require)" if held == "bf16" else ""
        raise EngineError(f"{output.suffix} files hold {', '.join(kind.precisions)}, not {held}{hint}")
    if held != source.precision and source.precision != "fp32":
        raise ModelError(f"{source.path} holds {source.precision}: export {held} from the fp32 file or the checkpoint")
    if held == "int8" and source.precision != "int8" and not request.calibration:
        raise ModelError("int8 needs images to measure the ranges of activations on: give --calibrate IMAGES")
    return held


def readers(name: str) -> list[str]:
    """The engines that read a format."""
    return [engine for engine, (_, formats) in ENGINES.items() if name in formats]


def availability_of(name: str) -> list[str]:
    """Those of them that work here and are chosen without being asked for (others build for minutes)."""
    ranks = {entry[0]: i for i, entry in reversed(list(enumerate(RANKING)))}
    last_asked = min(ranks[engine] for engine in ("onnxruntime-tensorrt", "onnxruntime-rtx"))
    chosen = [engine for engine in readers(name) if ranks[engine] < last_asked]
    if nvidia.driver_problem():  # before the modules of a GPU's engines are imported, which takes a second
        on_cpu = {engine for engine, kind, _ in RANKING if kind == "cpu"}
        chosen = [engine for engine in chosen if engine in on_cpu]
    return [engine for engine in chosen if not availability(engine).reason]


@dataclass
class _Gate:
    """Every comparison of one file; `checks` keeps them."""

    reference: Reference
    path: Path
    threads: int | None
    request: Request
    report: Callable[[str], None]

    def __post_init__(self) -> None:
        self.checks: list[Parity] = []
        self.file = read_model(self.path)

    def pass_all(self, spec: ModelSpec, require: Iterable[Precision]) -> tuple[Precision, ...]:
        """Check every engine here; returns the precisions that are permitted.

        Raises:
            ParityError: what must pass does not.
            EngineError: no engine here can run the file, or one in `require` is not to be had.
        """
        held = self.file.precision
        engines = availability_of(self.file.format)
        if not engines:
            raise EngineError(f"nothing to check the export with: {install_hint('cpu')}")
        wanted, passed, native = set(require), {held: None}, False
        for engine in engines:
            for precision, device in self._arithmetic(engine).items():
                must = precision in (held, "fp32") or precision in wanted
                native = native or precision == "fp16"
                parity = self._check(engine, precision, device)
                if self._judge(parity, must=must) and precision != "fp32":
                    passed[precision] = None
        if not spec.tile_fixed:
            for size in _other_sizes(spec):
                first: Precision = "int8" if held == "int8" else "fp32"
                self._judge(self._check(engines[-1], first, "auto", size), must=True)
        if held in ("fp32", "fp16") and self.file.format == "onnx" and not native:
            simulated = self._simulate_half()
            if simulated is not None and self._judge(simulated, must=held == "fp16" or "fp16" in wanted):
                passed["fp16"] = None
        missing = wanted - set(passed) - {"fp32"}
        if missing:
            raise EngineError(
                f"no engine on this machine computes {self.path.name} in {', '.join(sorted(missing))}, "
                "so it cannot be proved here: leave it out"
            )
        return tuple(passed)

    def proved(self, passed: Iterable[Precision]) -> dict[str, str]:
        """What the checks found of each precision that passed: most labels changed, and the score with its own tile."""
        found: dict[str, str] = {}
        for precision in passed:
            own = [check for check in self.checks if check.precision == precision and check.failure() is None]
            if not own:
                continue
            found[precision] = f"labels {1 - max(check.changed for check in own):.3%} those of the network"
            if own[0].iou_before is not None and own[0].iou_after is not None:
                found[precision] += f", mean IoU {own[0].iou_before:.4f} to {own[0].iou_after:.4f}"
        return found

    def _arithmetic(self, engine: str) -> dict[Precision, str]:
        """What an engine may compute the file in, with the first device for each."""
        held = self.file.precision
        found: dict[Precision, str] = {}
        for target in availability(engine).targets:
            kind = target.device.partition(":")[0]
            if target.reason or target.precision in found or self.file.device not in (None, kind):
                continue
            compiled = self.file.device is not None
            if target.precision == held or (not compiled and "int8" not in (held, target.precision)):
                found[target.precision] = self.request.device if kind == "cuda" and compiled else target.device
        return found

    def _check(self, engine: str, precision: Precision, device: str, size: int | None = None) -> Parity:
        parity = check_parity(
            self.reference,
            self.path,
            engine=engine,
            precision=precision,
            device=device,
            tile=size,
            batch=None if self.file.device else 1,
            threads=self.threads,
        )
        self.report(str(parity) + (f" (tile {size})" if size else ""))
        return parity

    def _simulate_half(self) -> Parity | None:
        """The file with every result rounded to half precision, as a GPU would; None where that cannot be done."""
        if availability("onnxruntime").reason:
            return None
        path = self.path.with_name("simulated.onnx")
        half = convert_to_half(self.path) if self.file.precision == "fp32" else self.path.read_bytes()
        path.write_bytes(simulate_half(half))
        engine = load_engine(
            path, engine="onnxruntime", device="cpu", precision="fp32", batch=1, threads=self.threads, trial=False
        )
        try:
            parity = compare(self.reference, engine, file=self.file.precision, name="simulated", precision="fp16")
        finally:
            engine.close()
            remove_entry(path)
        self.report(str(parity))
        return parity

    def _judge(self, parity: Parity, *, must: bool) -> bool:
        self.checks.append(parity)
        failure = parity.failure()
        if failure is not None and must:
            raise ParityError(failure)
        if failure is not None:
            self.report(f"{parity.precision} is not permitted: {failure}")
        return failure is None


def _other_sizes(spec: ModelSpec) -> list[int]:
    """The smallest size that is promised, an odd multiple of the stride below the tile, and one above."""
    least = [] if spec.tile_min is None else [spec.tile_min[0]]
    side, stride = spec.tile[0], spec.stride
    return [
        *least,
        max([2 * stride, *least, (side // stride // 2 | 1) * stride]),  # one stride leaves no room for an overlap
        side + (stride if side // stride % 2 == 0 else 2 * stride),
    ]
