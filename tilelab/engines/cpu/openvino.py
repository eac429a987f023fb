"""OpenVINO on the CPU; the only module that imports openvino."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from tilelab.arrays import Array
from tilelab.engines.cpu.openvino_constants import computed_constants, fold_constants
from tilelab.engines.cpu.openvino_downsampling import fold_downsampling
from tilelab.engines.cpu.openvino_upsampling import count_macs, fold_upsampling
from tilelab.engines.files.bounds import find_ending
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.files.openvino_graph import read_graph
from tilelab.engines.loading import (
    Availability,
    FileEngine,
    LoadRequest,
    Target,
    affordable_streams,
    refuse,
)
from tilelab.errors import EngineError, ModelError
from tilelab.machine.cpu import cpu_features, has_cpu_feature
from tilelab.spec import METADATA_KEY, Precision
from tilelab.text import explain, install_hint, size_text

_CONVERTER = "openvino.tools.ovc"
HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
_DTYPES = {"f32": "float32", "f16": "float16", "f64": "float64", "bf16": "bfloat16", "u8": "uint8", "u16": "uint16"}
_DTYPES |= {"i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u32": "uint32", "boolean": "bool"}


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Import in here what would report each import to Google Analytics, from a process that it forks."""
    blocked = "openvino_telemetry"
    absent = blocked not in sys.modules
    if absent:
        sys.modules[blocked] = None  # type: ignore[assignment]  # an import of it fails; its users go on without
    try:
        yield
    finally:
        if absent:
            del sys.modules[blocked]


def import_openvino() -> Any:
    """The library, without its telemetry; its converter of other formats, half of its import, comes when it is used."""
    absent = "openvino" not in sys.modules and _CONVERTER not in sys.modules
    if absent:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment]
    try:
        with without_telemetry():
            import openvino
    finally:
        if absent:
            del sys.modules[_CONVERTER]
    if absent:

        def find(name: str) -> Any:
            if name != "convert_model":
                raise AttributeError(f"module 'openvino' has no attribute {name!r}")
            return import_converter().convert_model

        openvino.__getattr__ = find
    return openvino


def import_converter() -> Any:
    """OpenVINO's converter; it has to be there before others import it, with its telemetry."""
    import_openvino()
    with without_telemetry():
        return import_module(_CONVERTER)


@lru_cache(maxsize=1)
def _core() -> Any:
    core = import_openvino().Core()
    core.set_property("CPU", {"LOG_LEVEL": "LOG_NONE"})
    return core


@lru_cache(maxsize=1)
def probe() -> Availability:
    """What OpenVINO can do here."""
    try:
        openvino = import_openvino()
        core = _core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except ImportError as error:
        return Availability("", f"openvino cannot be imported ({explain(error)}): {install_hint('cpu')}")
    except RuntimeError as error:
        return Availability(openvino.__version__, f"openvino finds no CPU device: {explain(error)}")
    reasons = {"bf16": "", "fp16": ""}
    if "BF16" not in capabilities:
        reasons["bf16"] = "this CPU has no bf16 arithmetic"
    elif has_cpu_feature("avx512_bf16", "amx_bf16", "bf16") is False:
        reasons["bf16"] = "this CPU only emulates bf16, slower than fp32"
    if "FP16" not in capabilities:
        reasons["fp16"] = "this CPU has no fp16 arithmetic"
    targets = (
        Target("cpu", "fp32"),
        Target("cpu", "int8"),
        Target("cpu", "bf16", reasons["bf16"]),
        Target("cpu", "fp16", reasons["fp16"]),
    )
    return Availability(openvino.__version__.partition("-")[0], targets=targets)


def read_ir(path: Path) -> ModelFile:
    """Inputs, outputs, metadata and precision of an OpenVINO IR (.xml with its .bin).

    Raises:
        EngineError: OpenVINO is not installed.
        ModelError: missing or broken.
    """
    available = probe()
    if available.reason:
        raise EngineError(f"{path} is an OpenVINO model: {available.reason}")
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelError(f"{path} keeps its weights in {weights.name}, which is missing: put it beside the model")
    return _read_ir(path, weights, _version(path), _version(weights))


def _version(path: Path) -> tuple[int, int, int]:
    """What changes with a file."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=4)  # a run asks for it several times, and a network of many layers takes 50 ms
def _read_ir(path: Path, weights: Path, *_versions: tuple[int, int, int]) -> ModelFile:
    try:
        text = path.read_bytes()
        if b"<net" not in text[:4096] or not text.rstrip().endswith(b"</net>"):  # openvino would ask every importer
            raise ModelError(f"{path} is not an OpenVINO model, or it is truncated")
        model = _core().read_model(path)
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    except RuntimeError as error:
        raise ModelError(f"{path} is not an OpenVINO model, or it is corrupt: {explain(error)}") from error
    kinds = {op.get_type_name() for op in model.get_ops()}
    weight_types = [op.get_element_type().get_type_name() for op in model.get_ops() if op.get_type_name() == "Constant"]
    names = [_port(port).name for port in model.outputs]
    graph = read_graph(model, names)
    half = weight_types.count("f16") > weight_types.count("f32")
    return ModelFile(
        path=path,
        format="openvino",
        files=(path, weights),
        inputs=tuple(_port(port) for port in model.inputs),
        outputs=tuple(_port(port) for port in model.outputs),
        precision="int8" if "FakeQuantize" in kinds else "fp16" if half else "fp32",
        description=_description(model),
        endings={name: find_ending(graph, name) for name in names},
    )


def _port(port: Any) -> Port:
    kind = port.element_type.get_type_name()
    shape = tuple(int(n.get_length()) if n.is_static else "" for n in port.partial_shape)
    return Port(port.any_name if port.names else port.node.friendly_name, _DTYPES.get(kind, kind), shape)


def _description(model: Any) -> str | None:
    """The spec's JSON: converted from ONNX it lies under ``framework``, set by hand at the root."""
    for where in (["framework", METADATA_KEY], [METADATA_KEY]):
        if model.has_rt_info(where):
            value = model.get_rt_info(where)
            return str(getattr(value, "value", value))
    return None


def load(request: LoadRequest) -> OpenvinoEngine:
    """A model compiled for one batch shape.

    Raises:
        ModelError: OpenVINO cannot run the model, or it does not fit its description.
        EngineError: OpenVINO would not compute in the precision that was asked for.
    """
    return OpenvinoEngine(request)


class OpenvinoEngine(FileEngine):
    """A model in OpenVINO: each core computes a tile of its own.

    Several cores on one tile would give other last bits with each number of cores: OpenVINO cuts the sums of a
    convolution to suit it (2026.4: of fp32 from 3 cores on, of bf16 with 3). One core for each tile gives the same
    bytes everywhere, is no slower on two cores and need not wait for others after every layer.
    """

    name = "openvino"

    def __init__(self, request: LoadRequest) -> None:
        super().__init__(request)
        hint = HINTS[request.precision]
        path = request.file.path
        try:
            model = _core().read_model(path)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {path}: {explain(error)}") from error
        fixed = request.source.shape[0] if request.source.shape else ""
        self._group = fixed if isinstance(fixed, int) else 1  # tiles that the network takes at once
        try:
            model.reshape({model.input(0): request.source.native((self._group, *request.input_shape[1:]))})
            fold_upsampling(model)
            self.macs = count_macs(model) // self._group  # of a tile
            fold_downsampling(model)
            fold_constants(model)
            count = affordable_streams(request.threads, working_bytes(model, 4 if hint == "f32" else 2))
            config: dict[str, Any] = {
                "INFERENCE_PRECISION_HINT": hint,  # left alone it is bf16 wherever the CPU has it
                "NUM_STREAMS": count,
                "INFERENCE_NUM_THREADS": count,
                "ENABLE_CPU_PINNING": False,  # several workers on one machine would pin themselves to the same cores
            }
            names = [_port(output).name for output in model.outputs]
            self._indices = [names.index(target.name) for target in request.targets]
            compiled = _core().compile_model(model, "CPU", config)
            granted = min(int(compiled.get_property(name)) for name in ("NUM_STREAMS", "INFERENCE_NUM_THREADS"))
            if granted < count:  # there are fewer cores than asked for: a stream must not have two
                count = config["NUM_STREAMS"] = config["INFERENCE_NUM_THREADS"] = max(1, granted)
                compiled = _core().compile_model(model, "CPU", config)
            infers = [compiled.create_infer_request() for _ in range(count)]
            if count > 1 and computed_constants(compiled):  # a race of its streams: each is compiled on its own
                config["NUM_STREAMS"] = config["INFERENCE_NUM_THREADS"] = 1
                infers = [_core().compile_model(model, "CPU", config).create_infer_request() for _ in range(count)]
            shapes = [_static_shape(model.outputs[index]) for index in self._indices]
            if None in shapes:  # known only by running
                infers[0].infer()
                shapes = [tuple(infers[0].get_output_tensor(index).shape) for index in self._indices]
            groups = request.batch // self._group
            self.fit_outputs([(shape[0] * groups, *shape[1:]) if groups > 1 else shape for shape in shapes if shape])
        except RuntimeError as error:
            raise refuse("OpenVINO", request, error) from error
        actual = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if actual != hint:
            raise EngineError(f"OpenVINO computes in {actual} where {hint} was asked for: choose another --precision")
        if request.precision == "int8" and _saturates() and (wide := wide_weights(model)):
            words = (
                "this CPU adds products of int8 in 16 bits (it has no VNNI), which weights of {} layers can exceed: "
                "labels may differ from what was proved; export the model anew, or use --precision fp32"
            )
            self.warnings += (words.format(wide),)
        openvino = import_openvino()
        self._tensor: Any = openvino.Tensor
        self._version: str = openvino.__version__
        self._infers: list[Any] = infers
        self._open_streams(count, np.dtype(request.source.dtype), np.dtype(request.target.dtype))

    def _compute(self, source: Array, targets: tuple[Array, ...], stream: int) -> None:
        if not source.flags.writeable:  # openvino shares memory with arrays that it might write to, and no others
            source = source.copy()
        infer = self._infers[stream]
        try:
            for start in range(0, self.batch, self._group):
                # a network without an axis for the batch takes one tile: all of its array
                tiles = slice(start, start + self._group) if self.batch > self._group else slice(None)
                infer.set_input_tensor(self._tensor(source[tiles], shared_memory=True))
                for index, target in zip(self._indices, targets, strict=True):
                    infer.set_output_tensor(index, self._tensor(target[tiles], shared_memory=True))
                infer.start_async()
                infer.wait()
        except RuntimeError as error:
            raise EngineError(f"OpenVINO failed on a batch of {size_text(source.shape)}: {explain(error)}") from error

    def versions(self) -> Mapping[str, str]:
        """Of OpenVINO, and the instruction sets that choose its kernels."""
        return {"openvino": self._version, "cpu": cpu_features()}

    def close(self) -> None:
        """Drop the compiled model."""
        self._infers = []


def _saturates() -> bool:
    """Whether sums of products of bytes are cut off at 16 bits: on x86 without instructions for them."""
    return bool(has_cpu_feature("avx2")) and not has_cpu_feature("avx512_vnni", "avx_vnni", "amx_int8")


def wide_weights(model: Any) -> int:
    """Layers whose weights of 8 bits exceed 64 at least once: pairs of products with 255 then exceed 16 bits.

    Args:
        model: an ``openvino.Model``.
    """
    stored = [
        node for node in model.get_ops() if node.get_type_name() == "Constant" and len(node.get_output_shape(0)) > 1
    ]
    return sum(
        int(np.abs(np.asarray(node.data, np.int16)).max(initial=0)) > 64
        for node in stored
        if node.get_element_type().get_type_name() == "i8"
    )


def _static_shape(output: Any) -> tuple[int, ...] | None:
    """Of an output, where it is known before running."""
    return tuple(output.shape) if output.partial_shape.is_static else None


def working_bytes(model: Any, item: int) -> int:
    """Most bytes of intermediate results that live at a time while a model computes; unknown sizes count as 1.

    Args:
        model: an ``openvino.Model``.
        item: bytes of a number.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
    last = {source.get_node().get_name(): at for at, node in enumerate(nodes) for source in node.input_values()}
    leave: dict[int, int] = {}  # bytes that nobody reads after each node
    held = most = 0
    for at, node in enumerate(nodes):
        sizes = [[n.get_length() if n.is_static else 1 for n in out.get_partial_shape()] for out in node.outputs()]
        made = item * sum(map(math.prod, sizes))
        held += made
        most = max(most, held)
        end = max(at, last.get(node.get_name(), at))
        leave[end] = leave.get(end, 0) + made
        held -= leave.pop(at, 0)
    return most
