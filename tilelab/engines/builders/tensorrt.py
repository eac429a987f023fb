"""From an ONNX file to a TensorRT engine file, on the GPU it is for.

Only what TensorRT 10.x and 11 have in common is used: networks are strongly typed, so the arithmetic is what the ONNX
graph says, and a model for fp16 or int8 is converted before it comes here.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tilelab.engines.files.ending import Ending
from tilelab.engines.files.model_file import ModelFile
from tilelab.engines.files.onnx import read_onnx
from tilelab.engines.files.tensorrt_plan import Compatibility, PlanHeader, this_system, write_plan
from tilelab.engines.outputs import choose_ports
from tilelab.engines.overrides import resolve_spec
from tilelab.errors import EngineError, ModelError
from tilelab.machine.disk import replacing
from tilelab.machine.version import __version__
from tilelab.spec import Precision

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How to build.

    Attributes:
        batch: tiles per run: one number for exactly that, or least, best and most.
        device: GPU to build on and for, ``cuda:N``.
        compatibility: GPUs the engine shall run on: ``this`` one, all of its ``capability``, or all from Ampere on
            (``ampere+``, slower).
        tf32: allow the 10-bit multiplications of tensor cores for fp32.
        workspace_bytes: most scratch memory of a layer; None leaves all of the GPU's.
        optimization_level: 0 (fast build) to 5 (fast engine); None leaves TensorRT's default, 3.
        timing_cache: file that remembers the timing of layers between builds; None: none.
    """

    batch: int | tuple[int, int, int] = 8
    device: str = "cuda:0"
    compatibility: Compatibility = "this"
    tf32: bool = False
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    timing_cache: Path | None = None


def default_timing_cache(tensorrt: str, capability: tuple[int, int]) -> Path:
    """Where timings are kept between builds: in the user's cache folder, per version and GPU."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "tilelab" / f"tensorrt-{tensorrt}-sm{capability[0]}{capability[1]}.timing"


def build_engine(
    onnx: Path,
    output: Path,
    *,
    precision: Precision | None = None,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    origin: tuple[str, str] | None = None,
) -> PlanHeader:
    """Build an engine file from an ONNX file whose graph has the wanted precision.

    Args:
        onnx: with a description (`tilelab export` embeds it).
        output: written when the build has succeeded.
        precision: expected of the graph; None takes what it has.
        options: see `BuildOptions`.
        progress: called as the build advances; an exception in it cancels the build.
        origin: name and SHA-256 (empty: any) of the ONNX file that the header shall name, by which the engine can be
            checked later; None is `onnx` itself.

    Returns:
        The header that was written.

    Raises:
        ModelError: the ONNX file is broken, undescribed or of another precision, or TensorRT cannot parse it.
        EngineError: TensorRT is not installed, no GPU is usable, or the build failed; the message has its reason.
    """
    options = options or BuildOptions()
    file = read_onnx(onnx)
    spec = resolve_spec(file)
    if precision is not None and file.precision != precision:
        raise ModelError(
            f"{onnx} holds {file.precision} arithmetic, not {precision}: TensorRT takes the precision from the graph, "
            "so convert that first (tilelab export does)"
        )
    ports = choose_ports(file)
    source, target = ports.source, ports.targets[0]
    from tilelab.kernels import device  # a compiler for GPUs, half a second: whoever exports for a CPU needs none

    info = device.select(device.parse_index(options.device))
    trt = import_tensorrt()
    plan, batch = _build(trt, file, source.name, (spec.channels, *spec.tile), options, progress, info.name)
    name, digest = origin or (onnx.name, file.digest())
    header = PlanHeader(
        spec=spec,
        tensorrt=trt.__version__,
        capability=info.capability,
        compatibility=options.compatibility,
        gpu=info.name,
        driver=info.driver,
        system=this_system(),
        precision=file.precision,
        tf32=options.tf32,
        batch=batch,
        input=(source.name, source.dtype),
        output=(target.name, target.dtype),
        activation=_activation(file, target.name),
        source=name,
        source_sha256=digest,
        tilelab=__version__,
    )
    write_plan(output, header, plan)
    return header


def _activation(file: ModelFile, output: str) -> str:
    """The activation that the network ends in, as an ONNX operator, however it is written."""
    ending = file.endings.get(output, Ending())
    if ending.kind != "probabilities":
        return ""
    return "Softmax" if ending.unit else "Sigmoid"


def _build(
    trt: Any,
    file: ModelFile,
    source: str,
    tile: tuple[int, ...],
    options: BuildOptions,
    progress: Progress | None,
    gpu: str,
) -> tuple[memoryview, tuple[int, int, int]]:
    """The serialised plan of an ONNX file, and the batch sizes that it takes; `tile` begins with the channels."""
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(file.path)):
        errors = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
        raise ModelError(f"TensorRT {trt.__version__} cannot read {file.path}: {errors or log.tell()}")
    config = builder.create_builder_config()
    asked = (options.batch,) * 3 if isinstance(options.batch, int) else options.batch
    batch = _add_profile(builder, config, file, source, tile, asked)
    _configure(trt, config, options)
    _use_timing_cache(config, options.timing_cache)
    failure: list[BaseException] = []
    if progress is not None:
        config.progress_monitor = _make_monitor(trt, progress, failure)
    plan = builder.build_serialized_network(network, config)
    if failure:
        raise failure[0]
    if plan is None:
        raise EngineError(f"TensorRT {trt.__version__} could not build {file.path} on {gpu}: {log.tell()}")
    _keep_timing_cache(config, options.timing_cache)
    return memoryview(plan), batch


def import_tensorrt() -> Any:
    """The library, or an `EngineError` that says how to get it."""
    try:
        import tensorrt
    except ImportError as error:
        raise EngineError(
            f"TensorRT does not load ({error}): pip install tensorrt (it comes from NVIDIA's own index)"
        ) from error
    return tensorrt


def make_log(trt: Any) -> Any:
    """A logger that keeps errors for our messages and prints nothing; ``tell()`` gives the last few."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(" ".join(msg.split()))

        def tell(self) -> str:
            return "; ".join(self.errors[-3:])[:600] or "it gave no reason"

    return Log()


def _make_monitor(trt: Any, progress: Progress, failure: list[BaseException]) -> Any:
    """Passes the build's progress on; TensorRT swallows exceptions, so the first is kept and cancels the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self.steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return not failure

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self.steps.pop(phase_name, 0))

        def _tell(self, phase: str, done: int) -> None:
            if failure:
                return
            try:
                progress(phase, done, self.steps.get(phase, done))
            except BaseException as error:  # noqa: BLE001 - raised again by build_engine, Ctrl-C included
                failure.append(error)

    return Monitor()


def _add_profile(
    builder: Any, config: Any, file: ModelFile, name: str, rest: tuple[int, ...], batch: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Fix what the graph leaves free; returns the batch sizes that the engine will take."""
    shape = file.inputs[0].shape
    if shape and all(isinstance(n, int) for n in shape):
        return (int(shape[0]),) * 3
    if not 1 <= batch[0] <= batch[1] <= batch[2]:
        raise EngineError(f"batch sizes {batch} must be at least 1 and rise: least, best, most")
    profile = builder.create_optimization_profile()
    profile.set_shape(name, *((n, *rest) for n in batch))
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"TensorRT refused batches of {batch} tiles of {rest}: lower --batch or --tile")
    return batch


def _configure(trt: Any, config: Any, options: BuildOptions) -> None:
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # on by default
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    levels = trt.HardwareCompatibilityLevel
    if options.compatibility == "ampere+":
        config.hardware_compatibility_level = levels.AMPERE_PLUS
    elif options.compatibility == "capability":
        config.hardware_compatibility_level = levels.SAME_COMPUTE_CAPABILITY


def _use_timing_cache(config: Any, path: Path | None) -> None:
    """Begin with the timings of earlier builds; those of another version or GPU are refused by TensorRT and dropped."""
    if path is None:
        return
    known = path.read_bytes() if path.is_file() else b""
    if not config.set_timing_cache(config.create_timing_cache(known), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    cache = config.get_timing_cache() if path is not None else None
    if path is None or cache is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(memoryview(cache.serialize()))
