"""Find the engine: which there are, what works on this machine, and the best that a model permits.

An engine is a module with ``probe() -> Availability`` and ``load(LoadRequest) -> Engine``; its library is imported by
those two only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

from tilelab.engines.base import Engine
from tilelab.engines.bundled import bundled_models, quantised_file
from tilelab.engines.combined import CombinedEngine, combined_spec
from tilelab.engines.files.foreign import foreign_model
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.files.tensorrt_plan import read_header, read_plan_file
from tilelab.engines.function import load_function
from tilelab.engines.identity import IdentityEngine, identity_spec
from tilelab.engines.loading import Availability, FileEngine, LoadRequest, try_out
from tilelab.engines.meaning import read_meaning
from tilelab.engines.outputs import choose_ports
from tilelab.engines.overrides import SpecOverrides, resolve_spec
from tilelab.engines.packages import bioimage, czann
from tilelab.engines.packages.address import fetch_model, is_address
from tilelab.engines.packages.bioimage import is_package
from tilelab.engines.packages.checkpoint import is_checkpoint, read_checkpoint
from tilelab.errors import EngineError, ModelError
from tilelab.machine import nvidia
from tilelab.spec import ModelSpec, Precision, parse_precision
from tilelab.text import did_you_mean, size_text

# Module of each engine, and the model formats it reads.
ENGINES = {
    "openvino": ("tilelab.engines.cpu.openvino", ("onnx", "openvino")),
    "onnxruntime": ("tilelab.engines.cpu.onnxruntime", ("onnx",)),
    "tensorrt": ("tilelab.engines.cuda.tensorrt", ("tensorrt",)),
    "onnxruntime-cuda": ("tilelab.engines.cuda.onnxruntime_cuda", ("onnx",)),
    "onnxruntime-tensorrt": ("tilelab.engines.cuda.onnxruntime_tensorrt", ("onnx",)),
    "onnxruntime-rtx": ("tilelab.engines.cuda.onnxruntime_rtx", ("onnx",)),
    "aotinductor": ("tilelab.engines.aotinductor", ("aotinductor",)),
    "torchscript": ("tilelab.engines.cpu.torchscript", ("torchscript",)),
}
# What `auto` tries, fastest first: GPUs, then CPUs as measured on U-Nets.  A fixed order: the choice must not change
# between a run and its continuation.  Last, and so only when asked for, what builds for minutes when first loaded.
RANKING: tuple[tuple[str, str, Precision], ...] = (
    *(("tensorrt", "cuda", precision) for precision in ("int8", "fp16", "bf16", "fp32")),
    *(("aotinductor", "cuda", precision) for precision in ("fp16", "bf16", "fp32")),
    ("onnxruntime-cuda", "cuda", "fp16"),
    ("onnxruntime-cuda", "cuda", "fp32"),
    *(("aotinductor", "cpu", precision) for precision in ("bf16", "fp32", "fp16")),
    ("openvino", "cpu", "int8"),
    ("openvino", "cpu", "bf16"),
    ("openvino", "cpu", "fp32"),
    ("onnxruntime", "cpu", "int8"),
    ("onnxruntime", "cpu", "fp32"),
    ("torchscript", "cpu", "fp32"),
    *((name, "cuda", p) for name in ("onnxruntime-tensorrt", "onnxruntime-rtx") for p in ("fp16", "fp32")),
)
_SUFFIXES = {
    ".onnx": "onnx",
    ".xml": "openvino",
    ".engine": "tensorrt",
    ".plan": "tensorrt",
    ".pt2": "aotinductor",
}
_GPU_BATCH = 8  # fewer leave a large GPU idle, more only take memory
_COMPILED = ("tensorrt", "aotinductor")  # formats whose arithmetic was fixed when they were made


def load_engine(
    model: str | Path | Callable[[Any], Any],
    *,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    batch: int | None = None,
    tile: tuple[int, ...] | None = None,
    threads: int | None = None,
    spec_overrides: SpecOverrides | None = None,
    trial: bool = True,
    digest: str = "",
) -> Engine:
    """Load a model for one batch shape, on the fastest engine that is asked for, permitted and working here.

    >>> engine = tilelab.load_engine("superalloy", device="cpu", tile=(256, 256))
    >>> logits = np.empty((engine.batch, 3, 256, 256), np.float32)
    >>> engine.run(np.zeros((engine.batch, 1, 256, 256), np.float32), logits)
    >>> engine.close()

    Args:
        model: path of an .onnx, .xml, .engine, .plan or .pt2 file, of a checkpoint of `tilelab train` (exported
            first), a package of bioimage.io or a .czann; the address of one of these; name of a bundled model,
            ``identity`` or ``identity:K``; or a torch module, or any other function of batches (see `load_function`).
        engine: ``auto`` or one of `ENGINES`.
        device: ``auto``, or a kind of device (``cpu``), or one of several of a kind (``cuda:1``).
        precision: ``auto`` (fp32, or a faster one that the model permits) or one of `PRECISIONS`; one that the model
            does not permit is used when asked for, and ``engine.warnings`` says that it is unverified.
        batch: tiles per run; by default what the file fixes, else 1 on CPUs and 8 on GPUs.
        tile: pixels per axis; by default the model's.
        threads: of the engine, on a CPU each with a tile of its own; by default one for each core.
        spec_overrides: what the user says of the model.
        trial: refuse a model that answers a made-up batch with NaN or infinite values.
        digest: identifies a function, for results (see `load_function`); files have one of their own.

    Raises:
        ModelError: the model is missing, broken or incomplete, or does not allow what is asked.
        EngineError: no working engine does what is asked; the message says why.
    """
    if threads is not None and threads < 1:
        raise EngineError(f"{threads} threads were asked for: give at least 1")
    if batch is not None and batch < 1:
        raise EngineError(f"a batch of {batch} was asked for: give at least 1")
    given = spec_overrides or SpecOverrides()
    if tile is not None:
        given = replace(given, tile=tile)
    if given.uncertainty is not None or len(members_of(model)) > 1:
        words = {"engine": engine, "device": device, "precision": precision, "batch": batch, "threads": threads}
        return _load_combined(model, given, {**words, "trial": trial, "digest": digest})
    if not isinstance(model, str | Path):
        for asked, only in ((engine, "function"), (device, ""), (precision, "fp32")):
            if asked not in ("auto", only):
                raise EngineError(f"a function is called as it is, not by {asked}: leave that out")
        return load_function(model, given, batch=batch, trial=trial, digest=digest)
    outputs = identity_outputs(model)
    if outputs is not None:
        return _load_identity(outputs, engine, device, precision, batch, given)
    file = read_model(model)
    spec = resolve_spec(file, given)
    check_tile(spec)
    chosen = choose_file(model, file, spec, engine, device, precision)
    name, kind, arithmetic = chosen.engine, chosen.device, chosen.precision
    if chosen.file is not file:
        file = chosen.file
        spec = resolve_spec(file, given)
    ports = choose_ports(file, given.output, given.output_is, given.axes)
    source, target = ports.source, ports.targets[0]
    single = not all(port.batched for port in (source, *ports.targets))
    count = _batch(file, (1,) if single else source.shape, batch, kind)
    warnings = file.notes
    if arithmetic not in permitted(file, spec):
        warnings += (f"{arithmetic} is unverified for this model: it permits {', '.join(permitted(file, spec))}",)
    if source.raw and (given.mean, given.std, given.normalization, given.intensity_dtype) != (None,) * 4:
        warnings += (
            f"--mean, --std and the like do nothing: the network takes {source.dtype} intensities as they are",
        )
    if spec.overlapping and (file.description is None or spec.outputs[0].thresholds):
        line = (
            "its classes may overlap: a label is that of the class which exceeds its threshold "
            f"({_thresholds(spec)}) most, in log-odds; the probabilities keep each class apart"
        )
        warnings = (*warnings, line)
    meaning = read_meaning(file, target, spec, given.first_is)
    meaning = replace(meaning, assumptions=(*ports.assumptions, *meaning.assumptions))
    request = LoadRequest(
        file, source, ports.targets, spec, kind, arithmetic, count, spec.tile, threads, warnings, meaning
    )
    loaded: FileEngine = _module(name).load(request)
    loaded.assumptions += file.assumptions
    if trial:
        meaning = meaning.confirm(try_out(loaded, file.path)[:, : spec.class_values])
        loaded.measure_memory()
    loaded.settle(meaning)
    return loaded


def _thresholds(spec: ModelSpec) -> str:
    """For people."""
    return ", ".join(f"{value:g}" for value in spec.outputs[0].thresholds or (0.5,))


def read_model(model: str | Path) -> ModelFile:
    """What a model file holds, without loading an engine; `model` is a path or the name of a bundled model.

    Raises:
        ModelError: missing, broken, or of an unknown format.
    """
    if is_address(model):
        path, lines, believed = fetch_model(str(model))
        fetched = read_model(path)
        return replace(fetched, notes=(*lines, *fetched.notes), assumptions=(*believed, *fetched.assumptions))
    path = locate_model(model)
    if path.suffix.lower() == czann.SUFFIX and path.is_file():
        return czann.read_czann(path)
    if is_checkpoint(path):
        return read_checkpoint(path)
    if is_package(path):
        return bioimage.read_package(path)
    if path.is_dir() or path.suffix.lower() not in _SUFFIXES:
        raise foreign_model(path, tuple(_SUFFIXES))
    kind = _SUFFIXES[path.suffix.lower()]
    if kind == "onnx":
        return read_onnx(path)
    if kind == "openvino":
        file: ModelFile = _module("openvino").read_ir(path)
        return file
    if kind == "tensorrt":
        return read_plan_file(path)
    from tilelab.engines.files.aotinductor_package import read_package

    return read_package(path)


def read_spec(
    model: str | Path, overrides: SpecOverrides | None = None, any_tile: tuple[int, ...] | None = None
) -> ModelSpec | None:
    """What a model says of itself, without loading an engine.

    Args:
        model: path or name.
        overrides: what the user says of it.
        any_tile: see `resolve_spec`.

    Returns:
        Its description under `overrides`; None when the file has none and `overrides` is not given.

    Raises:
        ModelError: as `read_model`; or with `overrides`, something is still missing (the message names the flag).
    """
    plain = overrides and replace(overrides, uncertainty=None)
    if (overrides is not None and overrides.uncertainty is not None) or len(members_of(model)) > 1:
        tile = overrides.tile if overrides is not None and overrides.uncertainty == "symmetries" else None
        if tile is not None and len(set(tile[-2:])) > 1:
            raise ModelError(f"the 8 symmetries need a square tile, not --tile {','.join(map(str, tile))}")
        found = [read_spec(one, plain, any_tile) for one in members_of(model)]
        known = [spec for spec in found if spec is not None]
        return combined_spec(known, overrides.uncertainty if overrides else None) if len(known) == len(found) else None
    outputs = identity_outputs(model)
    if outputs is not None:
        return identity_spec(outputs, overrides)
    file = read_model(model)
    if overrides is None and file.description is None:
        return None
    return resolve_spec(file, overrides, any_tile)


def members_of(model: Any) -> list[Any]:
    """The models of an ensemble, ``A,B``; of anything else itself."""
    if not isinstance(model, str) or "," not in model or is_address(model) or Path(model).expanduser().exists():
        return [model]
    return [part.strip() for part in model.split(",")]


def _load_combined(model: Any, given: SpecOverrides, words: dict[str, Any]) -> Engine:
    """Every member for the tiles that suit all, as one engine."""
    plain, names = replace(given, uncertainty=None), members_of(model)
    if all(isinstance(one, str | Path) for one in names):
        spec = read_spec(model, given)
        assert spec is not None  # noqa: S101 - it is only None without overrides
        plain = replace(plain, tile=spec.tile, overlap=spec.overlap)
    loaded: list[Engine] = []
    try:
        loaded += [load_engine(one, spec_overrides=plain, **words) for one in names]
        if len({(one.tile, one.batch) for one in loaded}) > 1:
            raise ModelError(f"the models of {model} fix tiles or batches of different sizes: export them alike")
        spec = combined_spec([one.spec for one in loaded], given.uncertainty)
        return CombinedEngine(loaded, spec, given.uncertainty)
    except BaseException:
        for one in loaded:
            one.close()
        raise


def locate_model(model: str | Path) -> Path:
    """The file behind a path or the name of a bundled model.

    Raises:
        ModelError: there is none; the bundled names are listed.
    """
    path = Path(model).expanduser()
    if path.exists():
        if not path.is_file() and not path.is_dir():
            raise ModelError(f"{path} is a device, a pipe or a socket: copy what it gives into a file")
        return path
    known = bundled_models()
    if str(model) in known:
        return known[str(model)]
    if path.suffix or path.parent != Path():
        raise ModelError(f"there is no model file {model}")
    likely = did_you_mean(str(model), known)
    names = ", ".join([*known, "identity"])
    raise ModelError(f"there is no model {str(model)!r}: give a file, or one of {names}{likely}")


def model_files(model: object) -> list[Path]:
    """The files of a model that is named by its path, its weights among them; none of others, or where it is broken."""
    if len(members := members_of(model)) > 1:
        return [file for one in members for file in model_files(one)]
    if not isinstance(model, str | Path) or "\0" in str(model) or not Path(model).expanduser().is_file():
        return []
    path = Path(model).expanduser()
    if path.suffix.lower() not in _SUFFIXES:  # it only leads to one
        return [path]
    try:
        return list(read_model(path).files)
    except ModelError:  # whoever loads it says why
        return [path]


def availability(name: str) -> Availability:
    """What an engine can do on this machine; imports its library."""
    found: Availability = _module(name).probe()
    return found


def permitted(file: ModelFile, spec: ModelSpec) -> tuple[Precision, ...]:
    """The precisions that a model may run in unasked: those that passed its parity gate, and fp32, their yardstick."""
    if file.format in _COMPILED:
        return (file.precision,)
    if file.precision == "int8":
        return tuple(p for p in spec.precisions if p == "int8")
    return tuple(dict.fromkeys(("fp32", *(p for p in spec.precisions if p != "int8"))))


def choose(
    file: ModelFile, spec: ModelSpec, engine: str = "auto", device: str = "auto", precision: str = "auto"
) -> tuple[str, str, Precision]:
    """Engine, device and precision for a model: the first of `RANKING` that is asked for, permitted and working.

    Raises:
        EngineError: none is; the message says why.
    """
    if engine != "auto" and engine not in ENGINES:
        raise EngineError(f"unknown engine {engine!r}: choose auto, {', '.join(ENGINES)}")
    kinds = list(dict.fromkeys(kind for _, kind, _ in RANKING))
    if device != "auto" and device.partition(":")[0] not in kinds:
        raise EngineError(f"no engine here runs on device {device!r}: choose auto, {', '.join(kinds)}")
    wanted = None if precision == "auto" else parse_precision(precision)
    _check_native(file, wanted)
    allowed = (wanted,) if wanted else permitted(file, spec)
    if not allowed:
        raise EngineError(
            f"{file.path} is quantised (int8), but its description permits {', '.join(spec.precisions)} only: "
            f"--precision int8 runs it unverified"
        )
    reasons: dict[str, None] = {}
    known = [name for name in ENGINES if engine in ("auto", name)]
    ranked = [entry for entry in RANKING if entry[0] in known and entry[2] in allowed]
    # What is asked for but never chosen unasked (fp16 on a CPU) comes last.
    ranked += [e for e in product(known, kinds, allowed if wanted else ()) if e not in ranked]
    for name, kind, arithmetic in ranked:
        if device.partition(":")[0] not in ("auto", kind):
            continue
        if file.format not in ENGINES[name][1]:
            if engine == "auto":
                continue
            reasons[f"{name} does not read {file.path.suffix} files"] = None
            continue
        if kind == "cuda" and not spec.plain and device == "auto":
            reasons["GPU engines do not take labels, maps, several outputs or such of another size yet"] = None
            continue
        if file.device not in (None, kind):
            reasons[f"it was compiled for {file.device}"] = None
            continue
        if kind == "cuda" and device == "auto" and (problem := nvidia.driver_problem()):
            reasons[problem] = None  # before its modules are imported, which takes seconds
            continue
        found = availability(name)
        if found.reason:
            reasons[found.reason] = None
            continue
        for target in found.targets:
            if target.precision != arithmetic or target.device.partition(":")[0] != kind:
                continue
            if device in ("auto", kind, target.device):
                if not target.reason:
                    return name, target.device, arithmetic
                reasons[target.reason] = None
    number = device.removeprefix("cuda:")
    if number.isdecimal() and (problem := nvidia.missing_gpu(int(number))):
        reasons = {problem: None}
    asked = " ".join(w for w in (engine, device, precision) if w != "auto") or "any engine"
    raise EngineError(f"{asked} cannot run {file.path}: {'; '.join(reasons) or 'no engine does this'}")


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a model runs in: one of its files, by an engine, on a device, at a precision."""

    file: ModelFile
    engine: str
    device: str
    precision: Precision


def choose_file(
    model: object,
    file: ModelFile,
    spec: ModelSpec,
    engine: str = "auto",
    device: str = "auto",
    precision: str = "auto",
) -> Chosen:
    """As `choose`; a bundled model that was proved in int8 has a second file, taken where that stands before the first.

    Args:
        model: as it was named.
        file, spec: what `read_model` gives for it, and its description.
        engine, device, precision: what is asked for.

    Raises:
        EngineError: none does what is asked; the message says why.
    """
    beside = quantised_file(model) if precision in ("auto", "int8") else None
    quick = None if beside is None else _choose_quantised(beside, engine, device)
    if quick is not None and precision == "int8":
        return quick
    found = Chosen(file, *choose(file, spec, engine, device, precision))
    return min((c for c in (quick, found) if c is not None), key=_rank)


def _choose_quantised(path: Path, engine: str, device: str) -> Chosen | None:
    """How a quantised file runs here; None where it does not, or was not proved."""
    try:
        file = read_model(path)
        return None if file.spec is None else Chosen(file, *choose(file, file.spec, engine, device))
    except (EngineError, ModelError):
        return None


def _rank(chosen: Chosen) -> int:
    """Its place in `RANKING`; what is only chosen when asked for comes last."""
    entry = chosen.engine, chosen.device.partition(":")[0], chosen.precision
    return RANKING.index(entry) if entry in RANKING else len(RANKING)


def check_tile(spec: ModelSpec) -> None:
    """Raise `ModelError` when the tile is smaller than the model allows."""
    least = spec.tile_min
    if least is not None and any(t < m for t, m in zip(spec.tile, least, strict=True)):
        raise ModelError(
            f"a tile of {size_text(spec.tile)} is too small for this model: give at least {size_text(least)}"
        )


def _check_native(file: ModelFile, wanted: Precision | None) -> None:
    """A file fixes whether it is quantised, and a compiled one all of its arithmetic."""
    if wanted not in (None, file.precision) and file.format in _COMPILED:
        raise EngineError(f"{file.path} was built for {file.precision}: build another for {wanted}")
    if wanted is None or (wanted == "int8") == (file.precision == "int8"):
        return
    if wanted == "int8":
        raise EngineError(f"{file.path} is not quantised: int8 needs a model file exported for it")
    raise EngineError(f"{file.path} is quantised: it runs in int8 only, not in {wanted}")


def _batch(file: ModelFile, shape: tuple[int | str, ...], asked: int | None, device: str) -> int:
    """Tiles per run: what the file fixes, else what was asked for, else what suits the device."""
    fixed = shape[0] if shape else ""
    if isinstance(fixed, int) and fixed >= 1:
        if asked not in (None, fixed):
            raise ModelError(f"{file.path} fixes its batch to {fixed}: {asked} was asked for, leave --batch out")
        return fixed
    if asked is not None:
        return asked
    if not device.startswith("cuda"):
        return 1
    header = read_header(file.path)[0] if file.format == "tensorrt" else None
    return _GPU_BATCH if header is None else header.batch[1]


def identity_outputs(model: str | Path) -> int | None:
    """K for ``identity:K``, 1 for ``identity``, None for anything else."""
    name, colon, count = str(model).partition(":")
    if name != "identity":
        return None
    if not colon:
        return 1
    if not count.isdecimal():
        raise ModelError(f"{model} names no engine: use identity, or identity:K with K outputs")
    return int(count)


def _load_identity(
    outputs: int, engine: str, device: str, precision: str, batch: int | None, given: SpecOverrides
) -> Engine:
    for asked, only in ((engine, "identity"), (device, "cpu"), (precision, "fp32")):
        if asked not in ("auto", only):
            raise EngineError(f"the identity engine is {only}, not {asked}: leave that out")
    if given.axes is None and given.tile is not None and len(given.tile) == 3:
        given = replace(given, axes="zyx")
    spec = identity_spec(outputs, given)
    check_tile(spec)
    return IdentityEngine(spec, spec.tile, batch or 1)


def _module(name: str) -> ModuleType:
    return import_module(ENGINES[name][0])
