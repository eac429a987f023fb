"""What an ONNX file holds, read from its bytes: no ONNX library, no weights touched, a few milliseconds.

An ONNX file is one protobuf message.  Weights are skipped by their length.  Field numbers are those of ``onnx.proto``.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tilelab.engines.files.bounds import find_ending
from tilelab.engines.files.graph import Graph
from tilelab.engines.files.model_file import ModelFile, Port
from tilelab.engines.files.onnx_graph import few_numbers, read_dims, read_node
from tilelab.engines.files.protobuf import Data, Malformed, payload_field, read_fields, read_text
from tilelab.errors import ModelError
from tilelab.machine.disk import replacing
from tilelab.spec import METADATA_KEY, ModelSpec, Precision

_DTYPES = {1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool"}
_DTYPES |= {10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16"}
_METADATA_PROPS = 14  # field of ModelProto
_EXTERNAL = 1  # TensorProto.data_location


def _pair(data: Data, start: int, stop: int) -> tuple[str, str]:
    """A StringStringEntryProto."""
    key = value = ""
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            key = read_text(data, a, b)
        elif number == 2:
            value = read_text(data, a, b)
    return key, value


def _port(data: Data, start: int, stop: int) -> Port:
    """A ValueInfoProto: name, element type and shape of an input or output."""
    name, dtype, shape = "", "", []
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            name = read_text(data, a, b)
        elif number == 2:  # TypeProto
            for kind, c, d, _ in read_fields(data, a, b):
                if kind != 1:  # not a tensor: a sequence, a map, an optional
                    continue
                for part, e, f, _ in read_fields(data, c, d):
                    if part == 1:
                        dtype = _DTYPES.get(e, f"type {e}")
                    elif part == 2:
                        shape = [_dimension(data, g, h) for n, g, h, _ in read_fields(data, e, f) if n == 1]
    return Port(name, dtype, tuple(shape))


def _dimension(data: Data, start: int, stop: int) -> int | str:
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            return a
        if number == 2:
            return read_text(data, a, b)
    return ""


@dataclass
class _Graph:
    """What a walk over a GraphProto gathers."""

    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    operators: Counter[str] = field(default_factory=Counter)
    graph: Graph = field(default_factory=Graph)
    weights: Counter[str] = field(default_factory=Counter)
    """Element types of the initializers."""
    names: set[str] = field(default_factory=set)
    """Names of the initializers."""
    external: dict[str, int] = field(default_factory=dict)
    """Files beside the model and the least size each must have."""


def _walk_graph(data: Data, start: int, stop: int) -> _Graph:
    graph = _Graph()
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 1:
            operation, constant = read_node(data, a, b)
            graph.operators[operation.operator] += 1
            graph.graph.add(operation)
            if constant is not None and operation.outputs:
                graph.graph.constants[operation.outputs[0]] = constant
        elif number == 5:
            _walk_tensor(data, a, b, graph)
        elif number == 11:
            graph.inputs.append(_port(data, a, b))
        elif number == 12:
            graph.outputs.append(_port(data, a, b))
    return graph


def _walk_tensor(data: Data, start: int, stop: int, graph: _Graph) -> None:
    where: dict[str, str] = {}
    external, name = False, ""
    for number, a, b, _ in read_fields(data, start, stop):
        if number == 2:
            graph.weights[_DTYPES.get(a, f"type {a}")] += 1
        elif number == 8:
            name = read_text(data, a, b)
            graph.names.add(name)
        elif number == 13:
            key, value = _pair(data, a, b)
            where[key] = value
        elif number == 14:
            external = a == _EXTERNAL
    if not external and (values := few_numbers(data, start, stop)) is not None:
        graph.graph.constants[name] = values
    graph.graph.shapes[name] = read_dims(data, start, stop)
    if external and "location" in where:
        end = int(where.get("offset") or 0) + int(where.get("length") or 0)
        graph.external[where["location"]] = max(end, graph.external.get(where["location"], 0))


def _native_precision(graph: _Graph) -> Precision:
    """The arithmetic the file itself prescribes: quantised activations make int8, the weights' type the rest."""
    if any(o == "QuantizeLinear" or o.startswith("QLinear") or o.endswith("Integer") for o in graph.operators):
        return "int8"
    floats = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    counts: list[tuple[int, Precision]] = [(graph.weights[d], p) for d, p in floats.items()]  # type: ignore[misc]
    return max(counts, key=lambda pair: pair[0])[1]


def read_onnx(path: Path) -> ModelFile:
    """Inputs, outputs, metadata and precision of an ONNX file.

    Raises:
        ModelError: missing, empty, not ONNX, truncated, or its external weights are missing or too short.
    """
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty: not an ONNX model")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                model = _walk_model(path, data)
    except (Malformed, ValueError, OverflowError, struct.error) as error:
        raise ModelError(f"{path} is not an ONNX model, or it is truncated or corrupt") from error
    except OSError as error:
        raise ModelError(f"cannot read the model {path}: {error.strerror or error}") from error
    return model


def _walk_model(path: Path, data: mmap.mmap) -> ModelFile:
    graph: _Graph | None = None
    metadata: dict[str, str] = {}
    opset, producer = None, ""
    for number, a, b, _ in read_fields(data, 0, len(data)):
        if number == 2:
            producer = read_text(data, a, b)
        elif number == 7:
            graph = _walk_graph(data, a, b)
        elif number == 8:
            entry = {n: (c, d) for n, c, d, _ in read_fields(data, a, b)}
            domain = read_text(data, *entry[1]) if 1 in entry else ""
            if domain in ("", "ai.onnx") and 2 in entry:
                opset = entry[2][0]
        elif number == _METADATA_PROPS:
            key, value = _pair(data, a, b)
            metadata[key] = value
    if graph is None or not (graph.operators or graph.inputs or graph.outputs):
        raise Malformed
    for name, least in graph.external.items():
        beside = path.parent / name
        if not beside.is_file():
            raise ModelError(f"{path} keeps its weights in {name}, which is missing: put it beside the model")
        if beside.stat().st_size < least:
            raise ModelError(f"{beside} is truncated: {path.name} needs {least} bytes of it")
    return ModelFile(
        path=path,
        format="onnx",
        files=(path, *(path.parent / name for name in sorted(graph.external))),
        inputs=tuple(port for port in graph.inputs if port.name not in graph.names),
        outputs=tuple(graph.outputs),
        precision=_native_precision(graph),
        description=metadata.get(METADATA_KEY),
        endings={port.name: find_ending(graph.graph, port.name) for port in graph.outputs},
        opset=opset,
        producer=producer,
    )


def embed_spec(path: str | Path, spec: ModelSpec) -> None:
    """Store `spec` in an ONNX file, replacing an earlier one; everything else keeps its bytes.

    The file is replaced atomically.

    Raises:
        ModelError: the file is not an ONNX model.
    """
    path = Path(path)
    read_onnx(path)
    key, value = METADATA_KEY.encode(), spec.to_json().encode()
    entry = payload_field(1, key) + payload_field(2, value)
    with replacing(path) as temporary, path.open("rb") as file, temporary.open("wb") as out:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            kept = 0  # everything before this position is in `out` or dropped
            for number, a, b, before in read_fields(data, 0, len(data)):
                if number == _METADATA_PROPS and _pair(data, a, b)[0] == METADATA_KEY:
                    out.write(data[kept:before])
                    kept = b
            out.write(data[kept:])
        out.write(payload_field(_METADATA_PROPS, entry))
